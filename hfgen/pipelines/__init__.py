"""One self-contained file per pipeline; each travels with the weights that it draws from."""
