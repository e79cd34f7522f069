"""Training tasks, one file per model family: losses, preview, pipeline."""
