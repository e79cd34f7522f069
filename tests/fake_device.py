"""A device of tensors that compute on the CPU, as an Apple GPU would refuse to: without double precision."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "lazy"  # which torch lets tensors be on that compute nothing; here they compute on the CPU
MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class OnDevice(torch.Tensor):
    """A tensor on the device, with a tensor of the CPU that holds its values."""

    def __new__(cls, held: torch.Tensor):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device has no {held.dtype}")
        options = {"strides": held.stride(), "dtype": held.dtype, "device": DEVICE}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes tensors on the device where they are asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Values(TorchFunctionMode):
    """Lets `torch.tensor` keep the values that it is given for the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


def compute(function, args, kwargs):
    """Compute on the CPU with what is held; the result is on the device, or where it is asked to be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    given = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if given and function._schema.name not in MAY_MIX:
        elsewhere = [tensor for tensor in tensors if tensor.ndim and not isinstance(tensor, OnDevice)]
        assert not elsewhere, f"{function} of tensors of two devices"
    asked = kwargs.get("device")
    is_here = given if asked is None else torch.device(asked).type == DEVICE
    kwargs = kwargs if asked is None else kwargs | {"device": "cpu"}
    held_args, held_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    made = function(*held_args, **held_kwargs)
    if function._schema.name.endswith("_"):  # in place
        return args[0]
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, made) if is_here else made


@contextlib.contextmanager
def fake_device() -> Iterator[str]:
    """Let tensors be on the device, whose name this gives, the accelerator of this machine."""
    module = SimpleNamespace(manual_seed=torch.manual_seed)
    accelerator = {"current_accelerator": lambda check_available: torch.device(DEVICE), "device_count": lambda: 1}
    found = mock.patch.multiple(torch.accelerator, **accelerator)
    with mock.patch.object(torch, DEVICE, module, create=True), found, Values(), Device():
        yield DEVICE
