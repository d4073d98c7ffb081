"""Shares as they are written."""

from __future__ import annotations

from dyn_probe.errors import BadInput


def read_budget(given: str | float) -> float:
    """``5%``, ``"0.05"`` or ``0.05`` as a share.

    Raises:
        BadInput: neither.
    """
    text = str(given).strip()
    shown = text if len(text) <= 20 else f"{text[:20]}…"
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise BadInput(f"wanted a share of the training's time above 0 and up to 100%, for example 5%; got {shown!r}")
    return found
