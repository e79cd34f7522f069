"""Figures: image grids, animations and plots."""
