"""One self-contained file per network family; each travels with the weights that it describes."""
