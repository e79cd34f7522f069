"""Seeds that follow from a purpose and numbers, so that nothing depends on what was drawn before."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Mix a purpose and numbers into one 63-bit seed that differs whenever any of them does."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
