"""The type that autocast computes in, read where a module runs, and entered again where it is run again."""

from __future__ import annotations

import torch


def autocast_type(device: str) -> torch.dtype | None:
    """The type of autocast for this kind of device, None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def computing_in(dtype: torch.dtype | None, device: str) -> torch.autocast:
    """Autocast as ``autocast_type`` found it."""
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)
