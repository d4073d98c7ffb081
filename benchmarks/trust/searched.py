"""Each door again, by Hypothesis: structured values in place of damaged bytes, shrunk to the smallest that fails."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from transformers.utils import logging

from dyn_probe import load_trace
from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.data.prepared import Reading, prepare_pairs
from dyn_probe.data.shapes import SHAPES
from dyn_probe.data.token_facts import Limit
from dyn_probe.report.build import page
from dyn_probe.report.page_data import report_data
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.unfit import naming_runs
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.options.config import OPTIONS
from dyn_probe.train.options.config_file import make_config
from trust import door_model, door_options, door_page, door_trace, noise
from trust.doors import attempt, new_tally
from trust.tally import Tally

Search = Callable[[Path], tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]

TEXTS = st.one_of(st.text(max_size=30), st.sampled_from([*noise.TEXTS, *door_page.PARTS]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
NAMES = sorted({"prompt", "chosen", "rejected", "messages", "score", "system", *(shape.chosen for shape in SHAPES)})
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": JSON}))


def options(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """Values for several options of ``record`` at once."""
    names = st.sampled_from([name for name in OPTIONS if name != "resume"])
    values = st.one_of(JSON, st.sampled_from(door_options.WORDS))
    given_ = st.dictionaries(names, values, min_size=1, max_size=4)
    return given_, lambda some: door_options.methods(make_config(None, some))


def config(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """A config file of these, and of any text."""
    file = folder / "run.yaml"
    written = options(folder)[0].map(lambda some: yaml.safe_dump(some, allow_unicode=True))

    def read(text: str) -> Any:
        file.write_bytes(text.replace("resume", "every").encode("utf-8", "surrogatepass"))
        return door_options.methods(make_config(file))

    return written | TEXTS, read


def data(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """Rows of a JSONL file."""
    tokenizer, file = built_in_tokenizer(), folder / "rows.jsonl"
    row = st.dictionaries(st.sampled_from(NAMES), TEXTS | MESSAGES | JSON, min_size=1)

    def read(rows: list[Any]) -> Any:
        file.write_bytes(b"\n".join(map(noise.as_json, rows)))
        return prepare_pairs(str(file), tokenizer, Limit(64), Reading(""))

    return st.lists(row | JSON, min_size=1, max_size=3), read


def model(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """``config.json`` of a model folder with other values."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    place = door_model.model_folder(folder / "model")
    whole = json.loads((place / "config.json").read_text(encoding="utf-8"))
    sizes = ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")  # valid ones that are huge take the memory
    odd = st.dictionaries(st.sampled_from([name for name in whole if name not in sizes]), JSON, min_size=1, max_size=2)

    def read(some: dict[str, Any]) -> Any:
        (place / "config.json").write_bytes(noise.as_json(whole | some))
        return door_model._loaded(place)

    return odd, read


def manifest(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """Fields of ``run.json`` with other values."""
    run = door_trace.base(folder / "run")
    whole = json.loads((run / "run.json").read_text(encoding="utf-8"))
    names = st.sampled_from([*whole, "model", "data", "mass", "scan", "pushes", "certificate", "held_out"])

    def read(some: dict[str, Any]) -> Any:
        (run / "run.json").write_bytes(noise.as_json(whole | some))
        return door_trace.look(load_trace(run), "steps", True)

    return st.dictionaries(names, JSON, min_size=1, max_size=2), read


def _rows(table: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "float64": st.none() | st.floats(), "int32": st.none() | st.integers(-(2**31), 2**31 - 1), "string": TEXTS,
        "bool": st.none() | st.booleans(), "int64": st.integers(0, 2**40),
    }  # fmt: skip
    scalar = [column for column in TABLES[table].columns if column.type in kinds and column.name != "rank"]
    required = {column.name: kinds[column.type] for column in scalar if column.required}
    optional = {column.name: kinds[column.type] for column in scalar if not column.required}
    row = st.fixed_dictionaries(required, optional=optional)
    return st.lists(row, max_size=4)


def _recorded(folder: Path, number: int, rows: dict[str, Any]) -> Path:
    with TraceWriter(folder / f"run-{number}", {"objective": {"name": "dpo"}}) as writer:
        for table, some in rows.items():
            clean = [{key: _whole(value) for key, value in row.items()} for row in some]
            writer.add(table, clean)
    return writer.path


def _whole(value: Any) -> Any:
    """Tables hold no half characters."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def tables(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """Recorded rows with any values that their types have; what ``summary`` makes of them."""
    strategy = st.fixed_dictionaries({name: _rows(name) for name in ("pairs", "steps", "examples")})
    count = iter(range(10**9))

    def read(rows: dict[str, Any]) -> Any:
        return summary_lines(load_trace(_recorded(folder, next(count), rows)))

    return strategy, read


def page_data(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """The page's texts and numbers; nothing of it may become an element."""
    strategy, count = st.fixed_dictionaries({name: _rows(name) for name in ("pairs", "examples")}), iter(range(10**9))

    def read(rows: dict[str, Any]) -> Any:
        run = _recorded(folder, next(count), rows)
        images: dict[str, Any] = defaultdict(lambda: {"address": "data:,", "width": 1.0, "height": 1.0})
        with naming_runs([run]):
            shown = page(report_data(load_trace(run)), images)
        elements = door_page.Elements()
        elements.feed(shown)
        assert not elements.found, elements.found
        return shown

    return strategy, read


SEARCHES: dict[str, tuple[Search, float]] = {
    "options": (options, 1.0), "config file": (config, 1.0), "data rows": (data, 1.0), "model folder": (model, 0.1),
    "run.json": (manifest, 0.4), "tables": (tables, 0.4), "page data": (page_data, 0.2),
}  # fmt: skip
"""Door → (what is searched, share of the cases)."""


def search(folder: Path, count: int, number: int = 0, only: str = "") -> Tally:
    """All doors; in CI always the same cases, with another ``number`` others."""
    tally = new_tally("every door, searched by Hypothesis")
    for name, (make, part) in SEARCHES.items():
        if only not in name:
            continue
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        strategy, door = make(place)
        before, cases = sum(tally.zero.values()), tally.tried
        _run(tally, name, strategy, door, max(2, round(count * part)), number)
        tally.parts[name] = {"tried": tally.tried - cases, "failed": sum(tally.zero.values()) - before}
    return tally


def _run(tally: Tally, name: str, strategy: Any, door: Callable[[Any], Any], count: int, number: int) -> None:
    smallest = new_tally(name)

    @seed(number)
    @settings(
        max_examples=count, derandomize=number == 0, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def one(value: Any) -> None:
        failed = len(smallest.failures)
        attempt(smallest, f"{name}: {str(value)[:200]}", lambda: door(value))
        assert len(smallest.failures) == failed

    try:
        one()
    except AssertionError:
        tally.fail("tracebacks" if smallest.zero["tracebacks"] else "unclear refusals", smallest.failures[-1])
    tally.tried += smallest.tried
    for kind in ("answered", "refused"):
        tally.facts[kind] = str(int(tally.facts[kind]) + int(smallest.facts[kind]))
