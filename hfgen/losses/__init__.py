"""Training objectives as pure functions, each with its equation and source."""
