"""Pictures: grids, animations, plots."""
