"""Image data: reading and caching, batching, augmentation, degradation and pairing."""
