"""Bring the generated blocks of the docs up to date; with --check only say which pages are stale.

A page marks a block by `<!-- generated: NAME -->` and `<!-- end generated -->`. NAME is a row of BLOCKS: its
function writes what stands between the two from the tables of the code.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from dyn_probe_cli.app import app

import dyn_probe
from dyn_probe.data.files import READERS
from dyn_probe.data.shapes import EXTRA, SHAPES, Shape
from dyn_probe.metric import FAMILIES
from dyn_probe.objectives import OBJECTIVES, MethodText, describe
from dyn_probe.report.changes import run_change
from dyn_probe.report.figures import FIGURES, FigureRow
from dyn_probe.report.frames import median
from dyn_probe.report.ranked import RANKINGS
from dyn_probe.report.verdicts import TOPICS, VERDICTS
from dyn_probe.report.verdicts.advice import KNOBS
from dyn_probe.studies.arms.arm_manifest import read_collection
from dyn_probe.studies.arms.claims_table import claims_table, table, theory_rows
from dyn_probe.studies.arms.method_table import method_table
from dyn_probe.studies.arms.published_table import published_table
from dyn_probe.studies.arms.rate_choice import rate_lines
from dyn_probe.studies.theory_page import claims as theorems
from dyn_probe.studies.theory_page import run_statements
from dyn_probe.trace.docs import schema_markdown
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.references import reference_names

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "benchmarks"))
from cost.page import RESULTS, kept_cells, loops_line, short_table  # noqa: E402

CLAIMS = RESULTS / "claims"
MARKED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def commands() -> str:
    """`--help` of every command, as plain text of a fixed width."""
    group = typer.main.get_command(app)
    sections = []
    for name, command in getattr(group, "commands").items():  # noqa: B009
        command.rich_markup_mode = None
        context = command.context_class(
            command, info_name=f"dyn-probe {name}", terminal_width=100, max_content_width=100
        )
        lines = (line.rstrip() for line in command.get_help(context).splitlines())
        sections.append(f"## dyn-probe {name}\n\n```text\n" + "\n".join(lines).strip() + "\n```")
    return "\n\n".join(sections)


def objectives() -> str:
    """Every objective: an overview, then a section each."""
    return _methods("objective")


def warm_up_stages() -> str:
    """Every warm-up stage: an overview, then a section each."""
    return _methods("warm-up stage")


def shapings() -> str:
    """Every shaping: an overview, then a section each."""
    return _methods("shaping")


def method_names() -> str:
    """The names of all methods, kind by kind."""
    names: dict[str, list[str]] = {}
    for row in describe():
        names.setdefault(row.kind, []).append(_code(row.name))
    return "\n".join(f"- {kind.capitalize()}s: {', '.join(known)}." for kind, known in names.items())


def without_reference() -> str:
    """The objectives that have no reference policy."""
    free = [_code(row.name) for row in OBJECTIVES.values() if not row.needs_reference and not row.stage]
    return f"- {', '.join(free[:-1])} and {free[-1]} use no reference."


def likelihood_options() -> str:
    """The options that every objective has."""
    common = next(row.common for row in describe() if row.common)
    return "\n".join(f"- `{name}`{rest}" for name, rest in map(_split, common))


def _methods(kind: str) -> str:
    rows = [row for row in describe() if row.kind == kind]
    overview = _table((kind, "formula", "defaults", "paper"), map(_overview, rows))
    return "\n\n".join([overview, *map(_method, rows)])


def _overview(row: MethodText) -> tuple[str, ...]:
    return f"[`{row.name}`](#{row.name})", _code(row.formula), ", ".join(map(_code, row.defaults)) or "–", row.paper


def _method(row: MethodText) -> str:
    other = "Objectives" if row.kind == "shaping" else "Shapings"
    facts = [
        ("Use it", row.when),
        ("Dynamics", row.dynamics),
        ("Reads", ", ".join(map(_code, row.needs)) or "log-probabilities and lengths only"),
        ("Score", row.score),
        (other, ", ".join(map(_code, row.composes_with)) or "none"),
        ("Source", row.paper),
        ("Note", row.notes),
    ]
    options = "\n".join(f"- `{name}`{rest}" for name, rest in (_split(option) for option in row.options))
    lines = [f"**{label}.** {text}" for label, text in facts if text]
    return "\n\n".join([f"### {row.name}", f"    {row.formula}", *([options] if options else []), *lines])


def _split(option: str) -> tuple[str, str]:
    name, _, rest = option.partition(":")
    return name, f": {rest.strip()}" if rest else ""


def figures() -> str:
    """Every figure: what it shows, how to read it, what it needs."""
    return "\n\n".join(_figure(name, row) for name, row in FIGURES.items())


def _figure(name: str, row: FigureRow) -> str:
    paragraphs = [f"**{label}.** {text[:1].upper()}{text[1:]}" for label, text in row.text.items()]
    shown = f"![{row.title}, of the run of make demo](images/figures/{name}.png)"
    picture = [shown] if (DOCS / "images" / "figures" / f"{name}.png").is_file() else []
    columns = f"Columns: {', '.join(map(_code, row.needs))}."
    return "\n\n".join([f"### {row.title} {{ #{name} }}", *picture, *paragraphs, columns])


def verdicts() -> str:
    """What the report can say, topic by topic, and what it suggests to change."""
    rows = ((TOPICS[topic], "<br>".join(map(_first_line, said))) for topic, said in VERDICTS.items())
    knobs = "\n".join(f"- {text[:1].upper()}{text[1:]}." for text in KNOBS.values())
    return f"{_table(('topic', 'what is said'), rows)}\n\nWhat a verdict may suggest:\n\n{knobs}"


PUBLIC: dict[str, tuple[str, ...]] = {
    "dyn_probe": tuple(name for name in dyn_probe.__all__ if name[0] != "_"),
    "dyn_probe.attach.trl": ("ProbeCallback",),
    "dyn_probe.entanglement": ("predicted_delta", "batch_delta", "cases", "conditions", "counterfactual"),
    "dyn_probe.objectives": ("OBJECTIVES", "SHAPINGS", "Terms", "pulls", "pair_loss", "normalised_pulls"),
    "dyn_probe.token_analysis": (
        "TokenHeat", "recorded_heats", "region_inner", "token_groups", "significant_tokens",
    ),
    "dyn_probe.mass": ("find_place",),
    "dyn_probe.mass.squeezing": ("run_figures", "trajectories"),
    "dyn_probe.mass.toy": ("cases", "by_sharpness", "by_target_mass", "statements"),
    "dyn_probe.report.build": ("build_report",),
    "dyn_probe.report.changes": ("run_change",),
    "dyn_probe.report.ranked": ("ranked_pairs",),
    "dyn_probe.report.summary": ("summary_lines",),
    "dyn_probe.report.verdicts": ("verdicts",),
    "dyn_probe.report.token_draw": ("heat_figure", "heats_figure"),
    "dyn_probe.report.figures.mass_distributions": ("place_figure",),
}  # fmt: skip
"""Modules of the public surface, with the names that are public."""


def api() -> str:
    """Every public function and class: signature and docstring, with the public methods and properties of classes."""
    return "\n\n".join(
        _api(f"{module}.{name}", getattr(importlib.import_module(module), name))
        for module, names in PUBLIC.items()
        for name in names
    )


def _api(name: str, thing: Any) -> str:
    if isinstance(thing, Mapping):
        return f"### {name}\n\nName → row, each with its formula, options and paper: [the table](methods.md)."
    own = vars(thing).items() if inspect.isclass(thing) and not issubclass(thing, Exception) else ()
    members = [
        _entry(f"#### {key}", key, value.fget if isinstance(value, property) else value, isinstance(value, property))
        for key, value in own
        if key[0] != "_" and (inspect.isfunction(value) or isinstance(value, property)) and value.__doc__
    ]
    return "\n\n".join([_entry(f"### {name}", name.rpartition(".")[2], thing), *members])


def _entry(heading: str, name: str, thing: Any, plain: bool = False) -> str:
    """Heading, signature, the first paragraph of the docstring as text, the rest as it stands."""
    first, _, rest = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")
    signature = "" if plain or (inspect.isclass(thing) and issubclass(thing, Exception)) else _signature(name, thing)
    return "\n\n".join(filter(None, [heading, signature, first, f"```text\n{rest}\n```" if rest else ""]))


def _signature(name: str, thing: Any) -> str:
    taken = inspect.signature(thing)
    bare = (each.replace(annotation=each.empty) for each in taken.parameters.values() if each.name != "self")
    held = [str(each).replace("'", '"') for each in bare]
    text = ", ".join(held)
    return (
        f"```python\n{name}({text})\n```"
        if len(text) < 100
        else f"```python\n{name}(\n    " + ",\n    ".join(held) + ",\n)\n```"
    )


def optimizers() -> str:
    """The optimizers whose step is taken apart, and the parts of each."""
    families = dict.fromkeys(FAMILIES.values())
    head = ("optimizer", "P", "ω", "p", "decay")
    rows = ((f.title, f.metric_formula, f.weight_formula, f.past_formula, f.decay_formula) for f in families)
    return _table(head, rows)


def rankings() -> str:
    """The ways to rank pairs."""
    return _table(("name", "first come"), ((_code(name), row.meaning) for name, row in RANKINGS.items()))


def data_shapes() -> str:
    """The shapes of preference rows that are read, and the columns that are read beside any of them."""
    shapes = _table(("columns", "prompt", "chosen", "rejected", "written by"), map(_shape, SHAPES))
    parts = ((_code(part), ", ".join(map(_code, columns))) for part, columns in EXTRA.items())
    beside = _table(("part", "columns, the first that is there"), parts)
    return f"{shapes}\n\nBeside any shape are read:\n\n{beside}"


def _shape(row: Shape) -> tuple[str, ...]:
    user = f"{_code(row.user)}, as the user's turn" if row.user else ""
    prompt = _code(row.prompt) if row.prompt else user or "what both sides begin with"
    return row.name, prompt, _code(row.chosen), _code(row.rejected), row.used_by or "–"


def data_files() -> str:
    """Endings of the files that are read."""
    return ", ".join(map(_code, READERS)) + "; all but Parquet also with `.gz`"


def trust_figures() -> str:
    """What `make trust` printed when it was last run: trial by trial, what was tried and what came of it."""
    content = json.loads((DOCS.parent / "benchmarks/results/trust.json").read_text(encoding="utf-8"))
    whole = _table(("what was tried", "size", "cases", "must be 0", "measured beside"), map(_trial, content.values()))
    return "\n\n".join([whole, *(_kinds(row) for row in content.values() if row.get("parts"))])


def _kinds(row: dict[str, Any]) -> str:
    """The kinds of case of one trial, each with its own counts."""
    counts = list(next(iter(row["parts"].values())))
    lines = ((kind, *(f"{found[name]:,}" for name in counts)) for kind, found in row["parts"].items())
    return _table((row["title"], *counts), lines)


def _trial(row: dict[str, Any]) -> tuple[str, ...]:
    zero = ", ".join(f"{name} {count}" for name, count in row["zero"].items())
    facts = ", ".join(f"{name} {value}" for name, value in row["facts"].items())
    return row["title"], row["size"], f"{row['tried']:,}", zero, facts


def cost() -> str:
    """What recording costs, from the cells that benchmarks/run.py has kept, device by device."""
    return "\n\n".join(_cost_on(name, title) for name, title in (("cpu", "On a CPU"), ("gpu", "On a GPU")))


def _cost_on(name: str, title: str) -> str:
    kept = kept_cells(RESULTS / f"{name}.jsonl")
    if not kept:
        return f"{title}: not measured by this script yet; earlier figures are in `benchmarks/results/{name}.md`."
    device = kept[-1]["device"]
    machine = f"{device['name']}, torch {device['torch']}"
    said = f"{title} ({machine}); ratios to the plain step of the same round (smallest–largest):"
    picture = f"![ratio of recorded to plain steps against tokens, pairs and width](images/cost-{name}.png)"
    return "\n\n".join(part for part in (said, short_table(kept), loops_line(kept), picture) if part)


def _first_line(statement: Callable[..., object]) -> str:
    return " ".join((statement.__doc__ or "").split("\n\n")[0].split())


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def claims() -> str:
    """Every claim of the papers, judged on the manifests in benchmarks/results/claims."""
    judged = [asdict(one) for one in theorems(run_statements(3))]
    return claims_table(read_collection(sorted(CLAIMS.glob("*.jsonl"))), theory_rows(judged))


def learning_rates() -> str:
    """The choice of the small models' learning rates, from benchmarks/results/learning-rates."""
    head = ("study", "learning rate", "accuracy, held-out pairs", "Δ chosen, training pairs (nats)", "")
    return table(head, rate_lines(read_collection(sorted((CLAIMS.parent / "learning-rates").glob("*.jsonl")))))


def published() -> str:
    """The published Δ table beside the arms of the squeezing study."""
    return published_table(read_collection(sorted(CLAIMS.glob("*.jsonl"))))


def methods() -> str:
    """What each method of the study of objectives did to chosen and rejected."""
    return method_table(read_collection(sorted(CLAIMS.glob("*.jsonl"))))


def references() -> str:
    """Every reference trace: how it was trained, and what became of both responses."""
    rows = []
    for name in reference_names():
        trace = load_trace(f"reference:{name}")
        config, moved = trace.about.config, run_change(trace)
        assert moved is not None
        ends = (f"{median(moved.side(side)):+.2f}".replace("-", "−") for side in ("chosen", "rejected"))
        trained = f"{config['steps']} steps of {config['batch_size']} pairs at {config['lr']:g}"
        rows.append((f"`{name}`", config["model"], config["data"], config["objective"], trained, *ends))
    head = ("name", "model", "data", "objective", "training", "Δ chosen, nats/token", "Δ rejected")
    return table(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "objectives": objectives,
    "warm-up-stages": warm_up_stages,
    "shapings": shapings,
    "method-names": method_names,
    "without-reference": without_reference,
    "likelihood-options": likelihood_options,
    "figures": figures,
    "verdicts": verdicts,
    "rankings": rankings,
    "optimizers": optimizers,
    "api": api,
    "data-shapes": data_shapes,
    "data-files": data_files,
    "trace-schema": schema_markdown,
    "trust": trust_figures,
    "claims": claims,
    "learning-rates": learning_rates,
    "cost": cost,
    "references": references,
    "published-table": published,
    "method-table": methods,
}


def render(text: str) -> str:
    """The page with every block written anew; an unknown block is an error that lists the known ones."""

    def fill(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise KeyError(f"no generated block {match[2]!r}; choose from: {', '.join(BLOCKS)}")
        return f"{match[1]}\n{BLOCKS[match[2]]().strip()}\n\n{match[3]}"

    return MARKED.sub(fill, text)


def stale() -> dict[Path, str]:
    """Pages whose generated blocks differ from the code, with their new text."""
    known = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]
    pages = {page: page.read_text(encoding="utf-8") for page in known if page.is_file()}
    rendered = {page: render(text) for page, text in pages.items()}
    return {page: text for page, text in rendered.items() if text != pages[page]}


def main() -> int:
    """Write the stale pages, or with --check name them and return 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    check = parser.parse_args().check
    pages = stale()
    for page, text in pages.items():
        if not check:
            page.write_text(text, encoding="utf-8")
        print(f"{page.name} {'is stale: run make docs' if check else 'written'}")
    return int(check and bool(pages))


if __name__ == "__main__":
    sys.exit(main())
