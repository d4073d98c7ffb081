"""A copy of a module: the same forward with other parameters, without hooks, sharing everything else."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def module_copy(module: nn.Module, **parameters: Tensor | None) -> nn.Module:
    """A shallow copy of ``module`` whose own parameters are the given tensors; the module is left as it is."""
    other = copy.copy(module)
    other.__dict__["_parameters"] = {**module._parameters, **parameters}
    other.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    for hooks in _HOOKS:
        other.__dict__[hooks] = OrderedDict()
    return other


def agree(got: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are one up to the rounding of ``got``'s dtype; entries that are NaN in both agree."""
    if got.shape != wanted.shape:
        return False
    room = 2e-2 if got.dtype in (torch.bfloat16, torch.float16) else 1e-4
    got, wanted = got.detach().float().nan_to_num(), wanted.detach().float().nan_to_num()
    return bool(torch.dist(got, wanted) <= room * got.norm() + 1e-30)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def weights_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the model's modules hold copies of their weights in ``dtype`` (shared ones once, trained ones trained);
    the parameters themselves, which optimizers and wrappers know, are not touched."""
    owners = [
        (module, name, p) for module in model.modules() for name, p in module._parameters.items() if p is not None
    ]
    copies = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad) for _, _, p in owners}
    try:
        for module, name, p in owners:
            module._parameters[name] = copies[id(p)]
        yield
    finally:
        for module, name, p in owners:
            module._parameters[name] = p


def copy_size(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the model's weights in ``dtype``."""
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def pass_size(model: nn.Module, positions: int, dtype: torch.dtype) -> int:
    """About how many bytes a forward and a backward over so many positions hold: what each weight matrix puts out, its
    gradient, and a copy; the logits are those of the head's, or of a tied embedding's."""
    wide = sum(max(p.shape) for p in model.parameters() if p.dim() > 1)
    return 3 * positions * wide * dtype.itemsize
