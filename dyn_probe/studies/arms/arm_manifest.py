"""What is kept of an arm: a small file with its command, seed, versions, time, device, final figures and curves.

The claims are judged on these files alone, so that a table of many arms needs none of their traces. No torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.studies.arms.arm import Arm
from dyn_probe.studies.claims import Estimate

NAME = "arm.json"
DIGITS = 6
Figures = Mapping[str, Mapping[int, Mapping[str, Estimate]]]
"""Arm → seed → figure → its number."""


@dataclass(frozen=True)
class ArmManifest:
    """An arm that is done; ``settings`` are the options of its run that differ from their defaults."""

    study: str
    arm: str
    seed: int
    model: str
    data: str
    command: str
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    seconds: float
    finished: str
    figures: dict[str, Estimate]
    curves: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""


def write_arm(folder: Path, found: ArmManifest) -> Path:
    """Leave the manifest in the arm's folder, whole or not at all."""
    part = folder / f"{NAME}.part"
    part.write_text(json.dumps(plain_arm(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, folder / NAME)
    return folder / NAME


def plain_arm(found: ArmManifest) -> dict[str, Any]:
    """As JSON takes it: numbers to DIGITS places, what is not finite as null."""
    figures = {name: [_short(value) for value in asdict(one).values()] for name, one in found.figures.items()}
    curves = {name: [_short(value) for value in values] for name, values in found.curves.items()}
    return asdict(found) | {"figures": figures, "curves": curves}


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def arm_of(row: Mapping[str, Any], place: str = "the manifest") -> ArmManifest:
    """A manifest as it was read.

    Raises:
        BadInput: it lacks a field, or a figure is no list of four numbers.
    """
    try:
        figures = {
            str(name): Estimate(*(_number(value) for value in values)) for name, values in row["figures"].items()
        }
        curves = {name: [_number(value) for value in values] for name, values in row.get("curves", {}).items()}
        return ArmManifest(**{**row, "figures": figures, "curves": curves})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{place} is not the manifest of an arm: {error}") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def read_arm(folder: Path) -> ArmManifest | None:
    """The manifest in a run's folder; None where there is none, or none that can be read."""
    try:
        return arm_of(json.loads((folder / NAME).read_text(encoding="utf-8")), str(folder / NAME))
    except (OSError, ValueError, BadInput):
        return None


def done(arm: Arm) -> ArmManifest | None:
    """The manifest of an arm that was trained with these very settings; None where it has to be trained."""
    found = read_arm(arm.folder)
    same = found is not None and json.loads(json.dumps(arm.settings)) == found.settings
    return found if same and found is not None and found.seed == arm.seed and found.arm == arm.name else None


def figures_by_arm(found: Iterable[ArmManifest]) -> dict[str, dict[int, dict[str, Estimate]]]:
    """The figures of many arms, as the claims are judged on them."""
    table: dict[str, dict[int, dict[str, Estimate]]] = {}
    for one in found:
        table.setdefault(one.arm, {})[one.seed] = one.figures
    return table


def write_collection(file: Path, found: Sequence[ArmManifest]) -> Path:
    """Many manifests as one file, a line each."""
    lines = [json.dumps(plain_arm(one), ensure_ascii=False) for one in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


def read_collection(files: Iterable[Path]) -> list[ArmManifest]:
    """The manifests of such files; of two of the same arm the last counts.

    Raises:
        BadInput: a line is no manifest.
    """
    found: dict[tuple[str, str, int, str, str], ArmManifest] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                one = arm_of(json.loads(line), f"{file.name}:{number}")
            except ValueError as error:
                raise BadInput(f"{file.name}:{number} is not JSON: {error}") from error
            found[one.study, one.arm, one.seed, one.model, one.data] = one
    return list(found.values())
