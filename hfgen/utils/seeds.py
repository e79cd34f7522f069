"""Seeds that follow from a purpose and numbers, so that nothing depends on what was drawn before."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Mix a purpose and numbers into one 63-bit seed that differs whenever any of them does."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device.

    `torch.manual_seed` seeds every kind of accelerator, and for each that is not there it formats a stack trace, in
    all more than a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
