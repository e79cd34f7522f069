"""From a configuration to a finished run: what is checked and made around the loop, and the loop."""
