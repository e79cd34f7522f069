"""How good generated images are: `evaluate` modules, and the classifiers in whose features they compare images.

Each folder with a module, such as `frechet_distance/`, stands alone: it imports nothing of hfgen, `evaluate.load`
takes its path, and it can be pushed to the Hub as it is.
"""
