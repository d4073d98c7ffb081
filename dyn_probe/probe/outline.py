"""A batch of a step that is not recorded, where records are thinned: what the loop says of it is kept all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dyn_probe.pairs import sums_by_segment
from dyn_probe.probe.given import Told
from dyn_probe.probe.run_rows import RunRows


class Outline:
    """Takes one batch after another; ``open`` while there is one."""

    def __init__(self, rows: RunRows) -> None:
        self.rows, self.open = rows, False
        self._told: Told | None = None
        self._segments: Tensor | None = None

    @contextmanager
    def around(self, step: int, ids: Sequence[str] | None, segments: Tensor | None = None) -> Iterator[None]:
        """Around the forward and backward; see ``Probe.step``."""
        self.open, self._told, self._segments = True, None, segments
        try:
            yield
            if self._told is not None:
                self.rows.outline(step, ids, self._told)
        finally:
            self.open, self._told, self._segments = False, None, None

    def say(
        self, logps: Tensor, mask: Tensor | None, columns: Mapping[str, Tensor], vanishing: bool, **given: Any
    ) -> None:
        """What the loop says before the backward; see ``Probe.pairs``."""
        rows = logps if mask is None else sums_by_segment(logps.detach() * mask, self._segments)
        self._told = Told.of(rows, columns=columns, **given)

    def complete(self, loss_scale: float | Tensor | None, found: Mapping[str, Tensor]) -> None:
        """What was not known before the backward; see ``Probe.complete``."""
        if self._told is not None:
            told = {name: value for name, value in found.items() if name != "coefficients"}
            self._told = self._told.completed(loss_scale, told)
