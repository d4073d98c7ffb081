"""The methods of the study of objectives side by side, from manifests: what each did to both sides. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dyn_probe.studies.arms.arm_manifest import ArmManifest
from dyn_probe.studies.arms.claims_table import COLUMNS as MODELS
from dyn_probe.studies.arms.claims_table import HELD, STUDIES, of_column, table
from dyn_probe.studies.arms.objective_arms import METHODS
from dyn_probe.studies.arms.objective_page import shown
from dyn_probe.studies.claims import Estimate

NOT_RUN = "not run"


def method_table(found: Sequence[ArmManifest]) -> str:
    """Per method Δ chosen and Δ rejected of the training pairs (nats/sequence), in brackets of the held-out ones, each
    with its standard error, for every model and data that any arm was run on."""
    study = next(one for one in STUDIES if one.study == "objectives")
    columns = {model.title: of_column(study, model, found) for model in MODELS}
    columns = {title: figures for title, figures in columns.items() if figures}
    rows = [(name, *(_cell(list(figures.get(name, {}).values())) for figures in columns.values())) for name in METHODS]
    return table(("method", *(f"{title}: Δ chosen / Δ rejected" for title in columns)), rows)


def _cell(seeds: Sequence[Mapping[str, Estimate]]) -> str:
    return f"{_side(seeds, 'chosen')} / {_side(seeds, 'rejected')}" if seeds else NOT_RUN


def _side(seeds: Sequence[Mapping[str, Estimate]], side: str) -> str:
    here, there = ([one[name] for one in seeds if name in one] for name in (side, HELD[side]))
    return f"{shown(here)} ({shown(there)})"
