"""The claims table: every claim of the four papers × built-in model × pretrained model on generated and on real data.

Written from the arms' manifests alone; training pairs and held-out pairs stand side by side, since they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dyn_probe.studies.arms.arm import BUILT_IN, GENERATED, arm_key
from dyn_probe.studies.arms.arm_manifest import ArmManifest, Figures, figures_by_arm
from dyn_probe.studies.arms.claim_rows import Claim, arms_of, numbers_of
from dyn_probe.studies.arms.gate_page import CLAIMS as GATE
from dyn_probe.studies.arms.objective_page import CLAIMS as OBJECTIVES
from dyn_probe.studies.claims import FAILS, HOLDS, NOT_RUN, OPEN, Estimate, pooled, verdict
from dyn_probe.studies.sentiment_page import CLAIMS as SENTIMENT
from dyn_probe.studies.squeezing_page import claim_rows

MODEL = "models/smollm2-135m-instruct"
HELD: dict[str, str] = {"chosen": "held_chosen", "rejected": "held_rejected"}
"""Figure of the training pairs → the same of the held-out ones."""
PUSHES: dict[str, str] = {
    "push_own_chosen": "the pair's own chosen", "push_own_rejected": "its own rejected", "push_others": "other pairs",
    "push_past": "the momentum",
}  # fmt: skip


@dataclass(frozen=True)
class StudyRows:
    """A study's claims in the table; ``options`` names the real data on the command line (None: not run on any)."""

    study: str
    title: str
    claims: tuple[Claim, ...]
    options: str | None = None
    pretrained: bool = True


STUDIES = (
    StudyRows("sentiment", "Entanglement by answer style (Yuan et al. 2024, Figs. 3, 4a, 4b)", SENTIMENT,
              "--statements tweet_sentiment.jsonl"),
    StudyRows("objectives", "Objectives (Yuan et al. 2024, Figs. 1, 2, 5, 6 and §5.1; AdaDPO; extended SFT; CHES)",
              OBJECTIVES, "--data sentiment:long-suffix@tweet_sentiment.jsonl"),
    StudyRows("squeezing", "Squeezing, and the gates (Ren & Sutherland 2024; Mouiche 2026)", claim_rows(),
              "--probe-file hh_helpful_probe.jsonl"),
    StudyRows("gate", "The gate's constants, and a collapsed policy (Mouiche 2026)", GATE, pretrained=False),
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Model and data of a column, and which manifests are its own."""

    title: str
    fits: Callable[[ArmManifest], bool]
    pretrained: bool
    real: bool


COLUMNS = (
    Column("built-in", lambda one: one.model == BUILT_IN and one.data == GENERATED, False, False),
    Column("pretrained, generated", lambda one: one.model != BUILT_IN and one.data == GENERATED, True, False),
    Column("pretrained, real", lambda one: one.model != BUILT_IN and one.data != GENERATED, True, True),
)


@dataclass(frozen=True)
class Cell:
    """One claim in one column: its number over the seeds, the held-out one where there is one, and the verdicts."""

    said: str
    seeds: int = 0
    number: Estimate | None = None
    held: Estimate | None = None
    held_said: str = ""

    @property
    def text(self) -> str:
        """As the table has it."""
        if self.number is None:
            return self.said
        held = "" if self.held is None else f"<br>held out {_number(self.held)}: {self.held_said}"
        return f"{_number(self.number)} ({self.seeds}): **{self.said}**{held}"


def cell(row: Claim, figures: Figures) -> Cell:
    """A claim judged on the arms of one column."""
    seeds = numbers_of(row, figures)
    if not seeds:
        return Cell(NOT_RUN)
    said = verdict(seeds, row.above, row.limit)
    held = numbers_of(row, figures, HELD[row.figure]) if row.figure in HELD else []
    if not held:
        return Cell(said, len(seeds), pooled(seeds))
    return Cell(said, len(seeds), pooled(seeds), pooled(held), verdict(held, row.above, row.limit))


def _number(one: Estimate) -> str:
    error = "" if np.isnan(one.error) else f" ± {_places(one.error)}"
    sign = "+" if one.value >= 0 else "−"
    return f"{sign}{_places(abs(one.value))}{error}"


def _places(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def claims_table(found: Sequence[ArmManifest], theory: Sequence[tuple[str, str, str]] = ()) -> str:
    """The page's generated part as Markdown: what was decided, a table per study, what did not come out and why, the
    arms that were not run with their commands, and the arms that were.

    Args:
        found: manifests of all arms.
        theory: statement, formula and verdict of each theorem, which are about numbers and not about a model.
    """
    parts: list[str] = []
    cells: list[Cell] = []
    rows: list[list[Cell]] = []
    if theory:
        parts.append("## Theorems in numbers (Yuan et al. 2024)\n\n" + table(("statement", "formula", ""), theory))
    why: list[str] = []
    for study in STUDIES:
        lines = []
        for row in study.claims:
            shown = [_cell(study, row, column, found) for column in COLUMNS]
            rows.append([one for one in shown if one is not None])
            cells += rows[-1]
            lines.append((row.claim, row.expected, *("–" if one is None else one.text for one in shown)))
            why += [
                line
                for column, one in zip(COLUMNS, shown, strict=True)
                if (line := reason(row, column, one, found, study))
            ]
        head = ("claim", "expected", *(column.title for column in COLUMNS))
        parts.append(f"## {study.title}\n\n" + table(head, lines))
    parts.append("## What did not come out, and why\n\n" + ("\n".join(why) or "Every claim that was decided holds."))
    parts.append("## Not run\n\n" + not_run(found))
    parts.append("## The arms\n\n" + arms(found))
    return "\n\n".join([f"{summary(cells)} {decided_rows(rows)}", *parts])


def _cell(study: StudyRows, row: Claim, column: Column, found: Sequence[ArmManifest]) -> Cell | None:
    """None where the study has no such column."""
    return cell(row, of_column(study, column, found)) if fits(study, column) else None


def fits(study: StudyRows, column: Column) -> bool:
    """Whether a study is made in a column."""
    return (study.pretrained or not column.pretrained) and (study.options is not None or not column.real)


def of_column(study: StudyRows, column: Column, found: Sequence[ArmManifest]) -> Figures:
    """The figures of a study's arms in one column."""
    return figures_by_arm(one for one in found if one.study == study.study and column.fits(one))


def summary(cells: Sequence[Cell]) -> str:
    """How many claims were decided."""
    counts = {said: sum(one.said == said for one in cells) for said in (HOLDS, FAILS, OPEN, NOT_RUN)}
    decided, run = counts[HOLDS] + counts[FAILS], len(cells) - counts[NOT_RUN]
    words = ", ".join(f"{number} {said}" for said, number in counts.items())
    return f"Of {len(cells)} cells: {words}. Of the {run} that were run, {decided} are decided."


def decided_rows(rows: Sequence[Sequence[Cell]]) -> str:
    """How many claims were decided anywhere."""
    decided = sum(any(one.said in (HOLDS, FAILS) for one in row) for row in rows)
    return f"Of {len(rows)} claims, {decided} are decided on at least one model and data."


def reason(row: Claim, column: Column, one: Cell | None, found: Sequence[ArmManifest], study: StudyRows) -> str:
    """For a claim that does not hold: what pushed chosen in the arm that it is about, or that this is not known."""
    if one is None or one.said != FAILS:
        return ""
    seeds = of_column(study, column, found).get(row.arm, {})
    parts = {name: [own[name] for own in seeds.values() if name in own] for name in (*PUSHES, "balance")}
    start = f"- *{row.claim}* ({column.title}, {row.arm}): "
    if not parts["push_own_chosen"]:
        return start + "not known (no step of these arms was taken apart)."
    said = ", ".join(f"{words} {_number(pooled(parts[name]))}" for name, words in PUSHES.items() if parts[name])
    over = f"; balance {_number(pooled(parts['balance']))}" if parts["balance"] else ""
    return f"{start}pushes on chosen in a step that trains on the pair, in nats: {said}{over}."


def not_run(found: Sequence[ArmManifest]) -> str:
    """A line for each arm of the first seed that a claim needs and that was not run, with its command."""
    lines = []
    for study in STUDIES:
        for column in (one for one in COLUMNS if fits(study, one)):
            known = of_column(study, column, found)
            lines += [f"- `{command(study, column, arm)}`" for arm in arms_of(study.claims) if arm not in known]
    return "\n".join(lines) or "Every arm was run."


def command(study: StudyRows, column: Column, arm: str, seed: int = 0) -> str:
    """What trains an arm."""
    model = f" --model {MODEL}" if column.pretrained else ""
    real = f" {study.options}" if column.real else ""
    return f"dyn-probe reproduce {study.study}{model}{real} --arm {arm_key(arm, seed)}"


def arms(found: Sequence[ArmManifest]) -> str:
    """The arms that were run, a row per study, model, data and device."""
    groups: dict[tuple[str, ...], list[ArmManifest]] = {}
    for one in found:
        torch, transformers = (one.versions.get(name, "?") for name in ("torch", "transformers"))
        groups.setdefault((one.study, one.model, one.data, one.device, torch, transformers), []).append(one)
    rows = [
        (*key, str(len(group)), ", ".join(str(seed) for seed in sorted({one.seed for one in group})),
         f"{np.median([one.seconds for one in group]):.0f} s")
        for key, group in groups.items()
    ]  # fmt: skip
    head = ("study", "model", "data", "device", "torch", "transformers", "arms", "seeds", "median time")
    return table(head, rows) if rows else "None yet."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def theory_rows(judged: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """Statement, formula and verdict."""
    return [(one["claim"], one["expected"], f"**{one['verdict']}**") for one in judged]
