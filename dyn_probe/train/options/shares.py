"""Shares as they are written."""

from __future__ import annotations

from dyn_probe.errors import BadInput


def read_budget(text: str) -> float:
    """``5%`` or ``0.05`` as a share.

    Raises:
        BadInput: neither.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise BadInput(f"wanted a share of the training's time above 0 and up to 100%, for example 5%; got {text!r}")
    return found
