"""How many probe responses a run measures where nothing is said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dyn_probe.train.options.config import RunConfig

MOST_PROBED, PAIRS_A_PROBE = 8, 60
"""Prompts that are probed at most; one for every so many pairs that the run trains on, which takes a few hundredths of
the run at most (docs/measures.md)."""
PROBING = ("probe_set", "probe_size", "probe_initial")
"""Options that only matter where probe responses are measured."""


def probed_unasked(config: RunConfig) -> int:
    """Prompts that are probed at the start and the end; 0 where an option says something of probing, and where the
    weights are sharded."""
    usual = type(config).__dataclass_fields__
    said = config.mass_every is not None or any(getattr(config, name) != usual[name].default for name in PROBING)
    if said or config.parallel == "fsdp2":
        return 0
    return min(MOST_PROBED, config.steps * config.pairs_per_step // PAIRS_A_PROBE)
