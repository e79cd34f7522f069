"""Sampling images from models, and editing existing ones."""
