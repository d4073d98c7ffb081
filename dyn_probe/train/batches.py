"""Which pairs a step trains on."""

from __future__ import annotations

import random
from functools import lru_cache

from dyn_probe.errors import BadInput


def step_order(pairs: int, per_step: int, step: int, seed: int) -> list[int]:
    """Numbers of the pairs that ``step`` trains on: a function of its arguments alone, so a resumed run sees the
    same batches.

    Every epoch goes through the pairs in a new order drawn from ``seed``; no pair occurs twice in a step, and the
    remainder of an epoch that does not fill a step is dropped.

    Raises:
        BadInput: there are fewer pairs than a step needs.
    """
    if not 0 < per_step <= pairs:
        raise BadInput(
            f"a step takes {per_step} pairs (batch size × accumulation), but only {pairs} are usable; "
            f"lower --batch-size or --gradient-accumulation, or add data"
        )
    epoch, place = divmod(step, pairs // per_step)
    return list(_epoch_order(pairs, epoch, seed)[place * per_step : (place + 1) * per_step])


@lru_cache(maxsize=4)
def _epoch_order(pairs: int, epoch: int, seed: int) -> tuple[int, ...]:
    """All pairs in the order of one epoch."""
    order = list(range(pairs))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)
