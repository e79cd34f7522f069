"""Utilities: errors, files, seeds, devices, Markdown, and checks of untrusted input."""
