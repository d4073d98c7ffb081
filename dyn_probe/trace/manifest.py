"""``run.json``: what its fields are, and the one place where it is written, read and checked.

The classes below are its schema: ``Manifest`` is the whole, the others are the objects in it. Whoever records may add
fields of his own beside them; what stands here is checked when it is written and when it is read.
"""

# ruff: noqa: RUF009 (an entry is a dataclass field)

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dyn_probe.errors import TraceError
from dyn_probe.trace.failures import naming
from dyn_probe.trace.layout import RUN_FILE, scratch_file
from dyn_probe.trace.schema import SCHEMA_VERSION
from dyn_probe.trace.typed import entries, entry, needed, plain, read

STATUSES = ("recording", "closed", "stopped")
DEEPEST = 50
"""Levels of lists and mappings that run.json may have within one another."""


@dataclass(frozen=True)
class Resume:
    """A resume of the recording."""

    segment: int = needed("its number, as in the names of its streams")
    step: int | None = entry("rows of this step and later recorded before it are no longer read; null: all are kept")
    at: str | None = entry("UTC time")


@dataclass(frozen=True)
class Lost:
    """Rows that could not be written."""

    rows: dict[str, int] = needed("their number, by table")
    from_step: int | None = entry("the first step that lacks some")
    reason: str | None = entry("the first write that failed")


@dataclass(frozen=True)
class FileCheck:
    """A Parquet file as it was closed."""

    rows: int = needed("its rows")
    bytes: int = needed("its size")
    sha256: str = needed("its SHA-256 digest, as `sha256sum` prints it")


@dataclass(frozen=True)
class ModelInfo:
    """The model that is trained."""

    name: str | None = entry("built-in, a folder, or a hub id")
    type: str | None = entry("architecture, as its configuration names it")
    parameters: int | None = entry("number of weights")
    trained_parameters: int | None = entry("number of weights that are trained")


@dataclass(frozen=True)
class DataInfo:
    """The preference pairs."""

    name: str | None = entry("the data, as `--data` takes it")
    pairs: int | None = entry("pairs that are trained on")
    held_out: int | None = entry("pairs that are held out")


@dataclass(frozen=True)
class ShapingInfo:
    """A shaping of the pairs' gradients."""

    name: str = needed("its name, as `dyn-probe methods` lists it")
    options: dict[str, Any] = entry("its options", factory=dict)


@dataclass(frozen=True)
class ObjectiveInfo:
    """What is minimised."""

    name: str | None = entry("its name, as `dyn-probe methods` lists it")
    hyper: dict[str, Any] = entry("its hyper-parameters", factory=dict)
    shaping: tuple[ShapingInfo, ...] = entry("shapings, in the order in which they apply", factory=tuple)


@dataclass(frozen=True)
class ProcessInfo:
    """The processes that train together."""

    count: int | None = entry("their number")
    parallel: str | None = entry("ddp or fsdp2; null for one process")


@dataclass(frozen=True)
class SkippedRow:
    """A row of the data that was left out."""

    source: str | None = entry("file and line")
    reason: str | None = entry("why")


@dataclass(frozen=True)
class CertificateInfo:
    """The comparison with plain autograd on the first recorded step."""

    max_relative_error: float | None = entry("largest relative error of norms and inner products")
    tolerance: float | None = entry("the largest that is accepted")
    pairs: int | None = entry("pairs that were compared")
    parameters: int | None = entry("parameter tensors that were compared")
    method: str | None = entry("how it was done")
    skipped: str | None = entry("why it was not done")


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs after the last step; the columns `eval_*` of `steps` have them before a step."""

    eval_logp_chosen: float | None = entry("mean a (nats/sequence)")
    eval_logp_rejected: float | None = entry("mean b (nats/sequence)")
    eval_margin: float | None = entry("mean margin (nats/sequence)")
    eval_accuracy: float | None = entry("share of pairs whose margin is above 0")


@dataclass(frozen=True)
class MassInfo:
    """The probe responses, and what became of them between the first and the last measurement."""

    source: str | None = entry("the probe set's file, or what it was built from")
    responses: int | None = entry("probe responses that are measured")
    kinds: tuple[str, ...] = entry("their kinds", factory=tuple)
    built_kinds: tuple[str, ...] = entry("kinds that were made of the chosen responses", factory=tuple)
    skipped_responses: tuple[str, ...] = entry("responses that are left out: where, which kind, why", factory=tuple)
    first_step: int | None = entry("step of the first measurement")
    last_step: int | None = entry("step of the last one")
    prompts: int | None = entry("probe prompts")
    delta_chosen: float | None = entry("change of chosen, last − first (nats/sequence)")
    delta_rejected: float | None = entry("change of rejected (nats/sequence)")
    margin: float | None = entry("delta_chosen − delta_rejected (nats/sequence)")
    delta_others: float | None = entry("mean change of the unrelated and shuffled kinds (nats/sequence)")
    delta_argmax: float | None = entry("change of the most probable tokens (nats/sequence)")
    token_delta_chosen: float | None = entry("delta_chosen in nats/token")
    token_delta_rejected: float | None = entry("delta_rejected in nats/token")
    token_delta_others: float | None = entry("delta_others in nats/token")
    token_delta_argmax: float | None = entry("delta_argmax in nats/token")
    index: float | None = entry("squeezing index (nats/token)")
    prevented: bool | None = entry("whether chosen rose: squeezing is prevented")
    gating_rate: float | None = entry("with a gate: share of recorded rows whose statistic is below the threshold")
    mean_gate: float | None = entry("with a gate: its mean")


@dataclass(frozen=True)
class Manifest:
    """``run.json``, typed. What a run does not say is None or empty."""

    schema_version: int = needed(f"version of tables and fields, now {SCHEMA_VERSION}", own=True)
    dyn_probe_version: str = needed("version of dyn-probe that opened the trace", own=True)
    status: str = needed("recording, closed, or stopped; a process that was killed leaves recording", own=True)
    created: str | None = entry("UTC time at which the trace was first opened", own=True)
    closed: str | None = entry("UTC time of closing, null before", own=True)
    reason: str | None = entry("why the recording stopped, null otherwise", own=True)
    session: str | None = entry("one string per launch, the same for all its processes", own=True)
    resumes: tuple[Resume, ...] = entry("one entry per resume", factory=tuple, own=True)
    unmerged: str | None = entry("why the streams were not merged at closing, null if they were", own=True)
    lost: Lost | None = entry("rows that could not be written, null if there are none", own=True)
    files: dict[str, FileCheck] = entry("Parquet file → what it is like", factory=dict, own=True)
    command: str | None = entry("the command that recorded it")
    config: dict[str, Any] = entry("options of `dyn-probe record`, with underscores", factory=dict)
    model: ModelInfo = entry("the model", factory=ModelInfo)
    data: DataInfo = entry("the data", factory=DataInfo)
    objective: ObjectiveInfo = entry("the objective", factory=ObjectiveInfo)
    processes: ProcessInfo = entry("the processes", factory=ProcessInfo)
    skipped_rows: tuple[SkippedRow, ...] = entry("rows of the data that were left out", factory=tuple)
    versions: dict[str, str] = entry("versions of dyn_probe, torch and python", factory=dict)
    warmup: dict[str, float] = entry("stage of the warm-up → its last loss (nats)", factory=dict)
    certificate: CertificateInfo | None = entry("the comparison with plain autograd")
    held_out: HeldOut | None = entry("the held-out pairs after the last step")
    mass: MassInfo | None = entry("the probe responses")


OWN = tuple(name for name, (_, field) in entries(Manifest).items() if field.metadata.get("own"))
"""Fields that the writer of the trace fills in itself."""


def typed(content: Mapping[str, Any]) -> Manifest:
    """The typed form of fields as ``read_manifest`` returns them; what does not fit is left at its default."""
    found = read(Manifest, {"schema_version": 0, "dyn_probe_version": "", "status": "", **content}, "", [])
    return found or Manifest(0, "", "")


def now() -> str:
    """The time as it stands in run.json: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def checked(fields: Mapping[str, object]) -> dict[str, Any]:
    """A recorder's ``fields`` as JSON values.

    Raises:
        TraceError: fields that the writer fills itself, values that JSON cannot hold, values of another type than the
            schema has: all of them.
    """
    taken = [name for name in fields if name in OWN]
    if taken:
        raise TraceError(f"run.json fields that the writer fills itself: {', '.join(taken)}; choose other names")
    problems: list[str] = []
    content: dict[str, Any] = plain(fields, "", problems)
    if problems:
        raise TraceError(
            "run.json takes text, numbers, truth values, null, lists and mappings; came " + ", ".join(problems)
        )
    problems = [f"levels within one another: at most {DEEPEST}"] if _depth(content) > DEEPEST else misfits(content)
    if problems:
        raise TraceError("run.json cannot take these fields: " + "; ".join(problems))
    return content


def misfits(content: Mapping[str, Any]) -> list[str]:
    """Complaints about a recorder's fields that are not as the schema has them."""
    problems: list[str] = []
    read(Manifest, {"schema_version": 1, "dyn_probe_version": "", "status": "", **content}, "", problems)
    return problems


def read_manifest(run: Path) -> dict[str, Any]:
    """``run.json`` of a trace that this version can read, as plain JSON in today's form (``typed`` gives it types).

    Raises:
        TraceError: there is no such folder, it is no trace, a newer dyn-probe wrote it, or fields are not what they
            should be.
    """
    wanted = "wanted the folder of a trace, as `dyn-probe record --out` writes it"
    if not run.is_dir():
        raise TraceError(f"{wanted}; {run} {'is a file' if run.exists() else 'does not exist'}")
    try:
        content = json.loads((run / RUN_FILE).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise TraceError(f"{wanted}; {run} has no {RUN_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{wanted}; {run / RUN_FILE} cannot be read as JSON: {error}") from error
    if not _is_manifest(content):
        raise TraceError(
            f"{wanted}; {run / RUN_FILE} is something else's: it lacks schema_version, dyn_probe_version or status"
        )
    if content["schema_version"] > SCHEMA_VERSION:
        raise TraceError(
            f"{run} has schema_version {content['schema_version']}, and this version reads up to {SCHEMA_VERSION}; "
            f"install the dyn-probe that wrote it ({content['dyn_probe_version']}), or a newer one"
        )
    return _accepted(content, run / RUN_FILE)


def _accepted(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content in today's form. An older version promised nothing about a recorder's fields, and those of them that
    do not fit are passed over."""
    strict = content
    if content["schema_version"] < 2:
        content = _from_version_1(content)
        strict = {name: content[name] for name in OWN if name in content}
    problems = [] if _depth(content) <= DEEPEST else [f"lists and mappings are nested deeper than {DEEPEST} levels"]
    if not problems:
        read(Manifest, strict, "", problems)
        problems += [] if content["status"] in STATUSES else [f"status: wanted one of {', '.join(STATUSES)}"]
    if problems:
        raise TraceError(f"{path} cannot be used: {'; '.join(problems[:5])}")
    return content


def _is_manifest(content: object) -> bool:
    if not isinstance(content, dict) or type(content.get("schema_version")) is not int:
        return False
    return isinstance(content.get("status"), str) and isinstance(content.get("dyn_probe_version"), str)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _depth(content: object) -> int:
    """Levels of lists and mappings within one another; no further than is of interest."""
    level, depth = [content], 0
    while level and depth <= DEEPEST:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 wrote a shaping as a text, "gate-seq: {'tau': 0.1}"."""
    objective = content.get("objective")
    if not isinstance(objective, dict) or not isinstance(objective.get("shaping"), list):
        return content
    shaping = [_shaping(one) if isinstance(one, str) else one for one in objective["shaping"]]
    return {**content, "objective": {**objective, "shaping": shaping}}


def _shaping(text: str) -> dict[str, Any]:
    name, _, written = text.partition(": ")
    try:
        options = ast.literal_eval(written) if len(written) < 10_000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        options = None
    problems: list[str] = []
    options = plain(options, "", problems) if isinstance(options, dict) else {}
    return {"name": name, "options": {} if problems else options}


def fitting(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recorder's fields of an older trace, to be gone on with under today's schema: what does not fit it stands
    under ``earlier``."""
    kept = {name: value for name, value in content.items() if name not in OWN}
    others = {name: value for name, value in kept.items() if misfits({name: value})}
    return {name: value for name, value in kept.items() if name not in others} | ({"earlier": others} if others else {})


def write_manifest(run: Path, content: Mapping[str, object]) -> None:
    """Put ``run.json`` in place in one move: a reader sees the old one or the new one.

    Raises:
        WriteFailed: the system refuses to write it.
    """
    path = run / RUN_FILE
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with naming(path):
        scratch = scratch_file(path)
        scratch.unlink(missing_ok=True)  # never through a link that lies there
        with scratch.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(scratch, path)
