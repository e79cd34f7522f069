"""Images, from whatever source: decoded once, loaded in batches, augmented, degraded, paired."""
