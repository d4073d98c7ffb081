"""The ``mass`` table: a fixed set of probe responses, read every so many steps and at both ends of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyn_probe.errors import BadInput
from dyn_probe.mass import KINDS, build_probe_set, encode_probes, measure, read_probe_set, with_initial
from dyn_probe.mass.probes import ProbeSet, SkippedResponse
from dyn_probe.mass.squeezing import gating, run_figures
from dyn_probe.mass.tokens import TokenProbes
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.config import RunConfig
from dyn_probe.train.display import Display
from dyn_probe.train.encode import EncodedPair

if TYPE_CHECKING:
    from dyn_probe.train.parallel import Processes
    from dyn_probe.train.run import Run

PROBE_FILE = "probe_set.jsonl"
"""File of the probe set in the run's folder."""


def choose_probes(
    config: RunConfig,
    processes: Processes,
    pairs: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    tokenizer: Any,
    max_length: int,
) -> ProbeSet | None:
    """The run's probe set, before anything is written; None where ``mass_every`` is 0.

    It is the file of ``probe_set``, or built from the held-out pairs, or from the training pairs where none are held
    out. A resumed run reads the one that was saved with it.

    Raises:
        BadInput: no probe response can be measured; the message says what was skipped, by line and kind.
    """
    if not config.mass_every:
        return None
    if processes.sharded:
        raise BadInput("--mass-every reads whole weights, and --parallel fsdp2 splits them; write --parallel ddp")
    if config.resume:
        found = read_file(config.folder / PROBE_FILE, None)
    elif config.probe_set:
        found = read_file(Path(config.probe_set).expanduser(), config.probe_size)
    else:
        texts = [pair.text for pair in (held_out or pairs)]
        found = build_probe_set(texts, prompts=config.probe_size, seed=config.seed, tokenizer=tokenizer)
    encode_probes(found, tokenizer, max_length=max_length)
    return found


def read_file(path: Path, prompts: int | None) -> ProbeSet:
    """The probe set in a file. Kinds that it has on no line are no fault of it: ``kinds`` tells which it has."""
    found = read_probe_set(path, prompts=prompts)
    absent = [(path.name, kind) for kind in KINDS if kind not in found.kinds]
    return replace(found, skipped=tuple(s for s in found.skipped if (s.source, s.kind) not in absent))


def start_probes(run: Run, fresh: bool) -> None:
    """Complete the probe set, save it with the run, and list what cannot be measured.

    Args:
        fresh: whether preference training begins here; a resumed run keeps its set as it is.
    """
    setup, config = run.setup, run.config
    if not setup.processes.first:
        return
    if fresh:
        (config.folder / PROBE_FILE).unlink(missing_ok=True)
    if setup.probes is None:
        return
    probes = with_first_answers(run, setup.probes) if fresh and config.probe_initial else setup.probes
    run.probes = encode_probes(probes, setup.tokenizer, max_length=setup.max_length)
    if fresh:
        probes.save(config.folder / PROBE_FILE)
        warn_skipped(run.display, run.probes)
        run.writer.update_manifest(mass=about(run.probes, config.probe_set))


def with_first_answers(run: Run, probes: ProbeSet) -> ProbeSet:
    """The set with ``chosen_initial``: what the model answers before preference training."""
    with run.display.bar("answers     ", len(probes.prompts)) as advance, run.setup.autocast():
        done = 0

        def shown(now: int, _: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        size = 2 * run.config.batch_size
        return with_initial(probes, run.setup.model, run.setup.tokenizer, batch_size=size, progress=shown)


def record_mass(run: Run, step: int) -> None:
    """Measure the probe responses before the update of ``step`` where the schedule says so, and after the last step.
    Gradients, random state and train mode stay as they are."""
    config, setup = run.config, run.setup
    if run.probes is None or (step % config.mass_every and step != config.steps):
        return
    with setup.autocast():
        rows = measure(setup.model, run.probes, step=step, batch_size=2 * config.batch_size)
    run.writer.add("mass", rows)


def finish_mass(run: Run) -> None:
    """Write the run-level figures into ``run.json``."""
    if run.setup.probes is None:
        return
    run.probe.flush()
    run.writer.flush()
    run.setup.processes.gathered(run.first)  # every process's rows are there to be read
    if not run.setup.processes.first:
        return
    trace = load_trace(run.config.folder)
    figures = {name: plain(value) for name, value in run_figures(trace.mass).row().items()}
    run.writer.update_manifest(mass=trace.manifest["mass"] | figures | gate_figures(run, trace.pairs))


def gate_figures(run: Run, pairs: Any) -> dict[str, float | None]:
    """Gating rate (share of recorded rows with s < τ) and mean gate, where a gate is used."""
    gate = next((one for one in run.setup.method.shapings if "gate" in one.shaping.columns), None)
    if gate is None:
        return {}
    found = gating(pairs, float(gate.options["tau"]))
    return {"gating_rate": found.rate, "mean_gate": found.mean_gate}


def about(probes: TokenProbes, source: str) -> dict[str, Any]:
    """What is measured, and what is not."""
    return {
        "source": source or "the run's own pairs",
        "responses": len(probes),
        "kinds": list(dict.fromkeys(one.kind for one in probes.responses)),
        "skipped_responses": [said(one) for one in probes.skipped],
    }


def warn_skipped(display: Display, probes: TokenProbes, most: int = 10) -> None:
    """List the probe responses that are left out."""
    if not probes.skipped:
        return
    display.say(f"{len(probes.skipped)} entries of the probe set are left out ({len(probes)} responses are measured):")
    for one in probes.skipped[:most]:
        display.say(f"  {said(one)}")
    if len(probes.skipped) > most:
        display.say(f"  and {len(probes.skipped) - most} more; all of them are listed in run.json")


def said(skipped: SkippedResponse) -> str:
    """One skipped response in a line: where, which kind, why."""
    kind = "" if skipped.kind == "*" else f" [{skipped.kind}]"
    return f"{skipped.source}{kind}: {skipped.reason}"


def plain(value: float | int | bool | None) -> float | int | bool | None:
    """The value as JSON can hold it: no number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
