"""The gate looked at closely: its threshold, slope and quantile, and what it does from a policy that has collapsed.

The built-in small model of the squeezing study, on generated statements: DPO, the gate of Mouiche 2026 (arXiv
2605.02626) with one constant changed at a time, and both again from a policy that DPO trained until the most probable
tokens had risen; DPO on a larger model too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dyn_probe.data.model_folders import is_model, save_model
from dyn_probe.data.models import load_model
from dyn_probe.mass.squeezing import run_figures
from dyn_probe.studies.arms.arm import Arm, NoStart, arm_key, command_of
from dyn_probe.studies.presets import PRESETS, Preset
from dyn_probe.studies.published import Published
from dyn_probe.studies.sentiment_runs import Options
from dyn_probe.studies.squeezing_runs import run_config, warm_model
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.loop import record

SIZE: Preset = replace(PRESETS["cpu"], pairs=160, seeds=3, reading_steps=300)
"""Size of the study: minutes on two cores."""
LARGER: Preset = replace(SIZE, width=192, layers=4, heads=6)
"""A model with 2.4 times the weights (2.37 M to 0.99 M; three times without the embeddings), without a gate: what a
small one under a gate is compared with."""
STRETCHES = 8
"""Most stretches of DPO, each as long as an arm, until the policy counts as collapsed."""
SAME_RATE, FASTER = 2, 3.0
"""A careful rate may never collapse a policy: after every two stretches without a collapse the rate is tripled."""

VALUES: dict[str, dict[str, tuple[float, ...]]] = {
    "seq": {"tau": (0.08, 0.10, 0.12, 0.15), "alpha": (10.0, 50.0, 100.0)},
    "q10": {"tau": (0.003, 0.005, 0.008), "alpha": (10.0, 50.0, 100.0), "q": (0.05, 0.10, 0.25)},
}
"""Gate → option → its values; the published constants (τ 0.10 and 0.005, α 50, q 0.10) are among them."""
USUAL: dict[str, dict[str, float]] = {
    "seq": {"tau": 0.10, "alpha": 50.0},
    "q10": {"tau": 0.005, "alpha": 50.0, "q": 0.10},
}
DPO, COLLAPSED, LARGER_DPO = "DPO", "collapsed: ", "larger: DPO"


def settings() -> dict[str, str]:
    """Arm → its shaping, as ``--shaping`` takes it: both gates as published, and one option changed at a time."""
    found = {}
    for gate, options in VALUES.items():
        found[f"gate-{gate}"] = f"gate-{gate}"
        for option, values in options.items():
            for value in values:
                if value != USUAL[gate][option]:
                    found[f"gate-{gate} {option}={value:g}"] = f"gate-{gate}:{option}={value:g}"
    return found


def larger(size: Preset) -> Preset:
    """The same with the larger model."""
    return replace(size, width=LARGER.width, layers=LARGER.layers, heads=LARGER.heads)


def gate_arms(folder: Path, size: Preset, file: Path, texts: Sequence[str], options: Options = ()) -> list[Arm]:
    """Every setting with every seed, then DPO and both gates from the collapsed policy, and DPO on a larger model."""
    arms = []
    for seed in range(size.seeds):
        model = folder / "models" / str(seed)
        fallen = folder / "models" / f"{seed}-collapsed"
        warm = partial(warm_model, model, file, texts, size, seed)
        collapse = partial(collapsed_model, fallen, model, file, texts, size, seed)
        for name, shaping in {DPO: "", **settings()}.items():
            arms.append(_arm(folder, name, shaping, model, file, size, seed, options, warm))
        for name, shaping in ((DPO, ""), ("gate-seq", "gate-seq"), ("gate-q10", "gate-q10")):
            arms.append(_arm(folder, COLLAPSED + name, shaping, fallen, file, size, seed, options, collapse))
        large = folder / "models" / f"{seed}-larger"
        widen = partial(warm_model, large, file, texts, larger(size), seed)
        wide = _arm(folder, LARGER_DPO, "", large, file, size, seed, options, widen)
        arms.append(replace(wide, minutes=5.0))  # most of it makes its model, which no other arm does
    return arms


def _arm(
    folder: Path, name: str, shaping: str, model: Path, file: Path, size: Preset, seed: int, options: Options,
    begin: partial[Path],
) -> Arm:  # fmt: skip
    key = arm_key(name, seed)
    row = Published("dpo", (shaping,) if shaping else ())
    config = run_config(folder / key, model, file, row, size, seed)
    return Arm("gate", name, seed, config, command=command_of("gate", options, key), begin=begin, minutes=0.3)


def collapsed_model(folder: Path, start: Path, file: Path, texts: Sequence[str], size: Preset, seed: int) -> Path:
    """A policy that DPO trained from ``start``, stretch by stretch, until the most probable tokens of the probe
    responses have risen and chosen has fallen; saved once. The rate begins as the study's and is tripled after every
    two stretches.

    Raises:
        NoStart: that does not happen within STRETCHES; it is not tried again.
    """
    if is_model(folder):
        return folder
    tried = folder.with_name(f"{folder.name}.txt")
    if tried.is_file():
        raise NoStart(tried.read_text(encoding="utf-8"))
    model, rose, fell = warm_model(start, file, texts, size, seed), 0.0, 0.0
    for stretch in range(STRETCHES):
        run = folder.with_name(f"{folder.name}-{stretch}")
        faster = replace(size, lr=size.lr * FASTER ** (stretch // SAME_RATE))
        config = run_config(run, model, file, Published("dpo"), faster, seed + 100 * (stretch + 1))
        record(replace(config, save=True, metric_every=0, split_momentum=False, force=True))
        found, model = run_figures(load_trace(run).mass), run / "model"
        rose, fell = rose + found.token_delta_argmax, fell + found.delta_chosen
        if rose > 0 > fell:
            policy, tokenizer = load_model(str(model))
            save_model(folder, stretch + 1, policy, tokenizer)
            return folder
    said = (
        f"after {STRETCHES} stretches of DPO the most probable tokens had moved by {rose:+.3f} nats/token and "
        f"chosen by {fell:+.2f} nats: no collapse to start from with seed {seed}"
    )
    tried.write_text(said, encoding="utf-8")
    raise NoStart(said)
