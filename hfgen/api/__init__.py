"""The Python API: one call for each command, with the same names, messages and results."""
