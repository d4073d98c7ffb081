"""The published Δ table of Gate-DPO beside what the arms of the squeezing study gave, from manifests. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dyn_probe.studies.arms.arm_manifest import ArmManifest
from dyn_probe.studies.arms.claims_table import COLUMNS as MODELS
from dyn_probe.studies.arms.claims_table import STUDIES, of_column, table
from dyn_probe.studies.claims import Estimate, pooled
from dyn_probe.studies.published import PUBLISHED, TRAINED

CHANGES = {"delta_chosen": "Δ chosen", "delta_rejected": "Δ rejected", "margin": "margin", "delta_others": "Δ others"}


def published_table(found: Sequence[ArmManifest]) -> str:
    """Per method the published changes, and those of each model and data with their standard errors (nats/sequence):
    Δ chosen, Δ rejected, margin, Δ others. "Not run" where no seed was."""
    study = next(one for one in STUDIES if one.study == "squeezing")
    columns = [of_column(study, column, found) for column in MODELS]
    rows = []
    for method, row in TRAINED.items():
        printed = (
            " / ".join(_signed(getattr(row, name)) for name in CHANGES) if method in PUBLISHED else "no row"
        )  # fmt: skip
        cells = [_cell([seeds.get(method, {})[seed] for seed in sorted(seeds.get(method, {}))]) for seeds in columns]
        rows.append((method, form(method), printed, *cells))
    return table(("method", "form", "published", *(column.title for column in MODELS)), rows)


def form(method: str) -> str:
    """The hyper-parameters that are not the default."""
    return ", ".join(f"{name}={str(value).lower()}" for name, value in TRAINED[method].hyper.items())


def _cell(seeds: Sequence[Mapping[str, Estimate]]) -> str:
    known = [one for one in seeds if set(CHANGES) <= set(one)]
    if not known:
        return "not run"
    means = (pooled([one[name] for one in known]) for name in CHANGES)
    return f"{' / '.join(_shown(one) for one in means)} ({len(known)})"


def _shown(one: Estimate) -> str:
    error = "" if np.isnan(one.error) else f" ± {one.error:.1f}"
    return f"{_signed(one.value, 1)}{error}"


def _signed(value: float, places: int = 2) -> str:
    return f"{value:+.{places}f}".replace("-", "−")
