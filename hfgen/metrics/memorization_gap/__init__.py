"""An `evaluate` module."""
