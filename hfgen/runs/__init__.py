"""What lies in a run folder, and who may write it."""
