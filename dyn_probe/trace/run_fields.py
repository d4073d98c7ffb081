"""What the fields of ``run.json`` are: ``Manifest`` is the whole, the other classes are the objects in it.

Whoever records may add fields of his own beside them; ``manifest`` reads, checks and writes the file.
"""

# ruff: noqa: RUF009 (an entry is a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dyn_probe.trace.schema import SCHEMA_VERSION
from dyn_probe.trace.typed import entries, entry, needed


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
class DataFact:
    """Something about the tokens of the pairs that one would not expect."""

    sentence: str | None = entry("what it is")
    count: int | None = entry("pairs that it is true of")
    of: int | None = entry("all pairs")
    level: str | None = entry("warning or note")


@dataclass(frozen=True)
class DataInfo:
    """The preference pairs, and how they were read."""

    name: str | None = entry("the data, as `--data` takes it")
    pairs: int | None = entry("pairs that are trained on")
    held_out: int | None = entry("pairs that are held out")
    rows: int | None = entry("rows of the source")
    shape: str | None = entry("the shape that its rows have")
    columns: dict[str, str] = entry("part of a pair → the column that it was read from", factory=dict)
    columns_not_read: tuple[str, ...] = entry("columns that hold something else", factory=tuple)
    left_out: dict[str, int] = entry("reason → rows that were left out for it", factory=dict)
    left_out_by_design: int | None = entry("left-out rows that were expected to be, such as ties")
    max_length: int | None = entry("most tokens of prompt and response together")
    digest: str | None = entry("digest of the token ids of a few rows: the same data have the same")
    lengths: dict[str, tuple[int, ...]] = entry("part → its median, 95 % and largest number of tokens", factory=dict)
    facts: dict[str, DataFact] = entry("name → something about the tokens that one would not expect", factory=dict)


@dataclass(frozen=True)
class ShapingInfo:
    """A shaping of the pairs' gradients."""

    name: str = needed("its name, as `dyn-probe methods` lists it")
    options: dict[str, Any] = entry("its options", factory=dict)


@dataclass(frozen=True)
class ScoreInfo:
    """What the objective compares of the two responses."""

    formula: str | None = entry("its formula")
    unit: str | None = entry("its unit")
    meaning: str | None = entry("in words")


@dataclass(frozen=True)
class ObjectiveInfo:
    """What is minimised."""

    name: str | None = entry("its name, as `dyn-probe methods` lists it")
    hyper: dict[str, Any] = entry("its hyper-parameters", factory=dict)
    shaping: tuple[ShapingInfo, ...] = entry("shapings, in the order in which they apply", factory=tuple)
    score: ScoreInfo | None = entry("what it compares: the columns `score_*` of `pairs`, margin and accuracy")


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
    detail: str | None = entry("what exactly came")


@dataclass(frozen=True)
class PushesInfo:
    """What stands in the way of taking the optimizer's steps apart."""

    reason: str | None = entry("why parts of `pushes` are empty")
    trusted: bool | None = entry("false where the parts do not add up to the step within the tolerance")
    step: int | None = entry("the step at which that was seen")
    law7_error: float | None = entry("by how much; as the column of `steps`")


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
class PrecisionInfo:
    """The comparison of numbers that were computed in half precision with float64; `steps` has its results."""

    type: str | None = entry("type that gradients are computed in: bfloat16, float16")
    method: str | None = entry("what is compared with what")
    skipped: str | None = entry("why it was not done, at the last try")


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs after the last step; the columns `eval_*` of `steps` have them before a step."""

    eval_logp_chosen: float | None = entry("mean a (nats/sequence)")
    eval_logp_rejected: float | None = entry("mean b (nats/sequence)")
    eval_margin: float | None = entry("mean of score_chosen − score_rejected (nats)")
    eval_accuracy: float | None = entry("share of pairs whose margin is above 0")
    eval_log_ratio_margin: float | None = entry("mean log-ratio of chosen minus that of rejected (nats/sequence)")
    eval_log_ratio_accuracy: float | None = entry("share of pairs whose log-ratio margin is above 0")
    eval_kl_ref: float | None = entry("mean KL of the next token to the policy at the start (nats/token)")
    eval_kl_ref_sampled: float | None = entry("estimate of it from tokens that were drawn at the start (nats/token)")


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
class ScannedCheckpoint:
    """A saved model at which `dyn-probe scan` measured the pairs."""

    step: int = needed("its step in the tables")
    model: str | None = entry("the model: a folder, or a hub id")
    step_from: str | None = entry("what says its step: trainer_state.json, name, or position (its place, from 0)")
    weights: str | None = entry("digest of its weights")
    done: bool | None = entry("whether all pairs have been measured")


@dataclass(frozen=True)
class ScanInfo:
    """What `dyn-probe scan` measured: nothing was trained."""

    checkpoints: tuple[ScannedCheckpoint, ...] = entry("the checkpoints, in order of step", factory=tuple)
    reference: str | None = entry("the reference policy; null where the objective has none")
    settings: dict[str, Any] = entry("what a scan and its continuation share", factory=dict)


@dataclass(frozen=True)
class ThinnedInfo:
    """What `--every auto` came to."""

    budget: float | None = entry("the largest share of the plain time that records were to take")
    steps: int | None = entry("steps of this session")
    recorded: int | None = entry("those that were recorded")
    full: int | None = entry("those that were recorded in full: with Gram, pushes and realised change")
    share: float | None = entry("the share that records took, the first step with its self-check left out")


@dataclass(frozen=True)
class RatesInfo:
    """How fast the device was taken to be."""

    products: float | None = entry("multiply-adds a second")
    entries: float | None = entry("numbers a second, of two arrays that are multiplied entry by entry and summed up")


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
    config: dict[str, Any] = entry("options of `dyn-probe record` or `scan`, with underscores", factory=dict)
    model: ModelInfo = entry("the model", factory=ModelInfo)
    data: DataInfo = entry("the data", factory=DataInfo)
    objective: ObjectiveInfo = entry("the objective", factory=ObjectiveInfo)
    processes: ProcessInfo = entry("the processes", factory=ProcessInfo)
    skipped_rows: tuple[SkippedRow, ...] = entry("rows of the data that were left out", factory=tuple)
    versions: dict[str, str] = entry("versions of dyn_probe, torch and python", factory=dict)
    warmup: dict[str, float] = entry("stage of the warm-up → its last loss (nats)", factory=dict)
    certificate: CertificateInfo | None = entry("the comparison with plain autograd")
    precision: PrecisionInfo | None = entry("with half precision: the comparison with float64")
    held_out: HeldOut | None = entry("the held-out pairs after the last step")
    mass: MassInfo | None = entry("the probe responses")
    scan: ScanInfo | None = entry("with `dyn-probe scan`: the checkpoints")
    realised_change: str | None = entry("what `realised_delta_*` compares")
    batch_delta: str | None = entry("why `batch_delta_*` is empty")
    pushes: PushesInfo | None = entry("what stands in the way of `pushes`")
    thinned: ThinnedInfo | None = entry("what `--every auto` came to")
    rates: dict[str, RatesInfo] = entry("kind of device and type → the rates by which routes were chosen", factory=dict)


OWN = tuple(name for name, (_, field) in entries(Manifest).items() if field.metadata.get("own"))
"""Fields that the writer of the trace fills in itself."""
