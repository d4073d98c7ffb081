"""The one canonical layout, made at the door: ``[rows, positions, features]``."""

from __future__ import annotations

from torch import Tensor

from dyn_probe.errors import UnsupportedUse


def rows_first(tensor: Tensor, rows: int, length: int, features: int = 1) -> Tensor:
    """``tensor`` as ``[rows, positions, *feature dimensions]`` without copying where strides allow it.

    Args:
        tensor: ``[rows, ..., d]``, or ``[rows * length, d]`` as models that flatten rows and positions have it.
        rows: rows of the batch.
        length: positions of the batch.
        features: trailing dimensions that are one feature (1 for a vector).

    Raises:
        UnsupportedUse: the leading dimension is neither ``rows`` nor ``rows * length``.
    """
    tail = tensor.shape[tensor.dim() - features :]
    if tensor.dim() > features and tensor.shape[0] in (rows, rows * length):
        return tensor.reshape(rows, -1, *tail)
    raise UnsupportedUse(
        f"wanted a tensor whose first dimension is the {rows} rows of the batch (or {rows} x {length} flattened); "
        f"got {list(tensor.shape)}"
    )
