"""Network architectures, one self-contained file per family, which is saved with the weights."""
