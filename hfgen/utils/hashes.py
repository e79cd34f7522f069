"""Hashes that identify networks."""

import hashlib

import torch
from safetensors.torch import save


def sha256_of(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's weights, serialised as safetensors."""
    weights = save({name: value.cpu().contiguous() for name, value in module.state_dict().items()})
    return hashlib.sha256(weights).hexdigest()
