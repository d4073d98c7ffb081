"""The page of a study that is judged and drawn from its arms' manifests: claims, a row per arm, figures. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dyn_probe.report.output import check_folder
from dyn_probe.studies.arms import gate_page, objective_page
from dyn_probe.studies.arms.arm_manifest import ArmManifest, figures_by_arm
from dyn_probe.studies.arms.claim_rows import Claim, judge
from dyn_probe.studies.arms.objective_page import rows_of
from dyn_probe.studies.claims import ERRORS, Finding
from dyn_probe.studies.page import write_page


@dataclass(frozen=True)
class StudyPage:
    """What the page of a study shows."""

    title: str
    lead: str
    claims: tuple[Claim, ...]
    columns: Mapping[str, str]
    figures: Mapping[str, tuple[Callable[[Sequence[ArmManifest]], Figure], str]]


PAGES: dict[str, StudyPage] = {
    "objectives": StudyPage(
        "Ten objectives on the same pairs",
        "The methods of Yuan et al. 2024 (arXiv 2410.13828), its balanced DPO★ and AdaDPO, from the same start on the "
        "same pairs in the same order, with the same learning rate.",
        objective_page.CLAIMS,
        objective_page.COLUMNS,
        objective_page.FIGURES,
    ),
    "gate": StudyPage(
        "The gate, looked at closely",
        "The gates of Mouiche 2026 (arXiv 2605.02626) with one constant changed at a time, beside DPO; then DPO and "
        "both gates from a policy that DPO had trained until the most probable tokens rose and chosen fell.",
        gate_page.CLAIMS,
        gate_page.COLUMNS,
        gate_page.FIGURES,
    ),
}
"""Study → its page."""


def write_arms(
    study: str, arms: Sequence[ArmManifest], out: Path, settings: Mapping[str, Any], missing: Sequence[str] = ()
) -> tuple[Path, list[Finding]]:
    """Judge and draw; returns the page and the claims.

    Args:
        arms: those that were run.
        missing: a line for each that was not.

    Raises:
        BadInput: ``out`` holds something other than a report.
    """
    check_folder(out, False)
    row = PAGES[study]
    judged = judge(row.claims, figures_by_arm(arms))
    data = {
        "title": row.title,
        "lead": row.lead,
        "columns": dict(row.columns),
        "rows": rows_of(arms, list(row.columns)),
        "errors": f"{ERRORS:g}",
        "missing": list(missing),
        "settings": {name: str(value) for name, value in settings.items()},
    }
    return write_page(out, "arms.html.j2", row.figures, arms, judged, data), judged
