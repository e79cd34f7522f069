"""What every other room stands on: errors, files, seeds, devices, checks of what strangers made."""
