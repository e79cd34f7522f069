"""Seeds derived from a purpose and numbers, independent of other random numbers drawn before."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Hash a purpose and numbers to a 63-bit seed, which differs if any of them does."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the CPU and of a device.

    `torch.manual_seed` takes over a millisecond: it seeds all types of accelerators, and formats a stack trace for
    each missing one.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
