"""The classifiers in whose features images are compared, and their weights."""
