"""Metrics of generated images, as `evaluate` modules.

Each folder, such as `frechet_distance/`, is self-contained: it imports nothing from hfgen, can be loaded by path with
`evaluate.load`, and can be pushed to the Hub.
"""
