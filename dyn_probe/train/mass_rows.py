"""The ``mass`` table: a fixed set of probe responses, measured every N steps and at the start and end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.errors import BadInput
from dyn_probe.mass import KINDS, build_probe_set, encode_probes, measure, read_probe_set, with_initial
from dyn_probe.mass.building import with_unrelated
from dyn_probe.mass.kept_positions import Watch, choose_places
from dyn_probe.mass.probe_tokens import TokenProbes
from dyn_probe.mass.probes import ABSENT, ProbeSet, SkippedResponse
from dyn_probe.mass.squeezing import gating, run_figures
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.display import Display
from dyn_probe.train.mass_places import FIRST_FILE, distribution_rows, save_first
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.unasked import PROBING

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace
    from dyn_probe.train.parallel import Processes
    from dyn_probe.train.run import Run

PROBE_FILE = "probe_set.jsonl"
"""File of the probe set in the run's folder."""

NEEDING = {"mass_every": PROBING, "tokens_every": ("token_pairs",)}
"""Option that starts a measurement → options that only matter with it."""


def choose_probes(
    config: RunConfig,
    processes: Processes,
    pairs: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    tokenizer: Any,
    max_length: int,
    asked: bool = True,
) -> ProbeSet | None:
    """The run's probe set, before anything is written; None where ``mass_every`` is 0, and where nobody asked for one
    and none can be measured.

    It is the file of ``probe_set``, or built from the held-out pairs, or from the training pairs where none are held
    out. A resumed run reads the one that was saved with it.

    Args:
        asked: whether measuring was asked for, and is not the default.

    Raises:
        BadInput: no probe response can be measured (the message says what was skipped, by line and kind), or an option
            is given that has no effect here.
    """
    check_measuring(config)
    if not config.mass_every:
        return None
    if processes.sharded:
        raise BadInput(
            "--mass-every needs unsharded weights, which --parallel fsdp2 does not have; write --parallel ddp"
        )
    saved = saved_set(config.folder) if config.resume else None
    try:
        found = saved or _new_set(config, held_out or pairs, tokenizer)
        encode_probes(found, tokenizer, max_length=max_length)
    except BadInput:
        if asked:
            raise
        return None
    return found


def _new_set(config: RunConfig, pairs: Sequence[EncodedPair], tokenizer: Any) -> ProbeSet:
    """The probe set of ``probe_set``, or one of these pairs."""
    if config.probe_set:
        return with_unrelated(read_file(Path(config.probe_set).expanduser(), config.probe_size), seed=config.seed)
    texts = [pair.text for pair in pairs]
    return build_probe_set(texts, prompts=config.probe_size, seed=config.seed, tokenizer=tokenizer)


def check_measuring(config: RunConfig) -> None:
    """Refuse options of a measurement that is switched off.

    Raises:
        BadInput: all of them, with the option that they need.
    """
    usual, idle = RunConfig(), []
    for switch, names in NEEDING.items():
        if not getattr(config, switch):
            idle += [(name, switch) for name in names if getattr(config, name) != getattr(usual, name)]
    if idle:
        said = (f"--{OPTIONS[name].name} needs --{OPTIONS[switch].name} N" for name, switch in idle)
        raise BadInput("; ".join(said))


def read_file(path: Path, prompts: int | None) -> ProbeSet:
    """The probe set in a file; kinds that occur on none of its lines are not listed as skipped (``name_kinds``)."""
    found = read_probe_set(path, prompts=prompts)
    return replace(found, skipped=tuple(s for s in found.skipped if not s.reason.startswith(ABSENT)))


def saved_set(folder: Path) -> ProbeSet:
    """The probe set that was saved with the run.

    Raises:
        BadInput: there is none: the run ended before its first step, or the file was removed.
    """
    if not (folder / PROBE_FILE).is_file():
        raise BadInput(
            f"--resume needs {PROBE_FILE} in {folder}, which is written before the first step; a run that ended "
            "earlier cannot be resumed: record it again with --force"
        )
    return read_file(folder / PROBE_FILE, None)


def start_probes(run: Run, fresh: bool) -> None:
    """Complete the probe set, save it with the run, and list what cannot be measured.

    Args:
        fresh: whether preference training begins here; a resumed run keeps its set as it is.
    """
    setup = run.setup
    if setup.processes.first:
        _start_probes(run, fresh)
        run.start_policy.positions += sum(len(one.ids) - one.start for one in run.probes.responses) if run.probes else 0
    run.start_policy.positions = setup.processes.agreed(run.start_policy.positions)


def _start_probes(run: Run, fresh: bool) -> None:
    setup, config = run.setup, run.config
    if fresh:
        for name in (PROBE_FILE, FIRST_FILE):
            (config.folder / name).unlink(missing_ok=True)
    if setup.probes is None:
        return
    probes = with_first_answers(run, setup.probes) if fresh and config.probe_initial else setup.probes
    run.probes = encode_probes(probes, setup.tokenizer, max_length=setup.max_length)
    if fresh:
        with run.writer.surviving(config.folder / PROBE_FILE):
            probes.save(config.folder / PROBE_FILE)
        if config.probe_set:
            name_kinds(run.display, probes)
        if setup.probes_asked:
            warn_skipped(run.display, run.probes)
        run.writer.update_manifest(mass=about(run.probes, config.probe_set, probes.built))


def with_first_answers(run: Run, probes: ProbeSet) -> ProbeSet:
    """The set with ``chosen_initial``: what the model answers before preference training."""
    with run.display.bar("answers     ", len(probes.prompts)) as advance, run.setup.autocast():
        size = 2 * run.config.batch_size
        return with_initial(probes, run.setup.model, run.setup.tokenizer, batch_size=size, progress=counted(advance))


def record_mass(run: Run, step: int) -> None:
    """Measure the probe responses before the update of ``step`` where the schedule says so, and after the last step.
    Gradients, random state and train mode stay as they are."""
    config, setup = run.config, run.setup
    if run.probes is None or not config.mass_every or (step % config.mass_every and step != config.steps):
        return
    watch = Watch(choose_places(run.probes)) if step in (0, config.steps) else None
    with run.display.bar("probing     ", len(run.probes), leave=False) as advance, setup.autocast():
        rows = measure(
            setup.model, run.probes, step=step, batch_size=2 * config.batch_size, progress=counted(advance),
            watch=watch, start=run.start_policy,
        )  # fmt: skip
    run.writer.add("mass", rows)
    if watch:
        if step == 0:
            with run.writer.surviving(config.folder / FIRST_FILE):
                save_first(config.folder / FIRST_FILE, watch.seen)
        run.writer.add("distributions", distribution_rows(config.folder, step, watch, setup.tokenizer))


def counted(advance: Callable[..., None]) -> Callable[[int, int], None]:
    """A bar's ``advance`` as a callback that receives how many are done."""
    done = 0

    def told(now: int, _: int) -> None:
        nonlocal done
        advance(now - done)
        done = now

    return told


def finish_mass(run: Run) -> None:
    """Write the run-level figures into ``run.json``; none where rows could not be written."""
    if run.setup.probes is None:
        return
    run.probe.flush()
    run.writer.flush()
    run.setup.processes.gathered(run.first)  # every process's rows are there to be read
    if not (run.setup.processes.first and run.writer.complete):
        return
    trace = load_trace(run.config.folder)
    figures = {name: plain(value) for name, value in run_figures(trace.mass).row().items()}
    begun = trace.manifest.get("mass") or {}
    run.writer.update_manifest(mass=begun | figures | gate_figures(run, trace))


def gate_figures(run: Run, trace: Trace) -> dict[str, float | None]:
    """Gating rate (share of recorded rows with s < τ) and mean gate, where a gate is used."""
    gate = next((one for one in run.setup.method.shapings if "gate" in one.shaping.columns), None)
    if gate is None:
        return {}
    found = gating(trace.pairs, float(gate.options["tau"]))
    return {"gating_rate": found.rate, "mean_gate": found.mean_gate}


def about(probes: TokenProbes, source: str, built: Sequence[str] = ()) -> dict[str, Any]:
    """What is measured, and what is not."""
    return {
        "source": source or "the run's own pairs",
        "responses": len(probes),
        "kinds": list(dict.fromkeys(one.kind for one in probes.responses)),
        "built_kinds": list(built),
        "skipped_responses": [said(one) for one in probes.skipped],
    }


def name_kinds(display: Display, probes: ProbeSet) -> None:
    """One line: kinds that a probe file lacks, and those that were made from its chosen responses."""
    absent = [kind for kind in KINDS if kind not in probes.kinds]
    made = f"; {', '.join(probes.built)} are made from its chosen responses" if probes.built else ""
    if absent or made:
        display.say(f"kinds missing from the probe set: {', '.join(absent) or 'none'}{made}")


def warn_skipped(display: Display, probes: TokenProbes, most: int = 10) -> None:
    """List the probe responses that are left out."""
    if not probes.skipped:
        return
    display.say(f"{len(probes.skipped)} entries of the probe set are left out ({len(probes)} responses are measured):")
    lines = grouped(probes.skipped)
    for line in lines[:most]:
        display.say(f"  {line}")
    if len(lines) > most or len(lines) < len(probes.skipped):
        more = f"and {len(lines) - most} more lines; " if len(lines) > most else ""
        display.say(f"  {more}all of them are listed in run.json")


def grouped(skipped: Sequence[SkippedResponse], few: int = 3) -> list[str]:
    """One line each; where a reason applies to more than a few of one kind, one line for all of these."""
    groups: dict[tuple[str, str], list[SkippedResponse]] = {}
    for one in skipped:
        groups.setdefault((one.kind, one.reason), []).append(one)
    lines = []
    for (kind, reason), ones in groups.items():
        if len(ones) <= few:
            lines += [said(one) for one in ones]
        else:
            what = f"[{kind}] " if kind != "*" else ""
            lines.append(f"{what}{reason} ({len(ones)} prompts, the first is {ones[0].source})")
    return lines


def said(skipped: SkippedResponse) -> str:
    """One skipped response in a line: where, which kind, why."""
    kind = "" if skipped.kind == "*" else f" [{skipped.kind}]"
    return f"{skipped.source}{kind}: {skipped.reason}"


def plain(value: float | int | bool | None) -> float | int | bool | None:
    """The value as JSON can hold it: what is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
