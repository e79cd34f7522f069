"""Training objectives as functions, each with its equation and source."""
