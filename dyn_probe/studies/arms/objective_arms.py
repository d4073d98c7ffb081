"""The study of objectives: the ten methods of Yuan et al. 2024 (Figs. 1, 2, 5, 6), and the balanced ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dyn_probe.studies.arms.arm import GENERATED, Arm, arm_key, command_of
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.sentiment_runs import Options, Study, on_pretrained, reading_model, run_config

DATA = "sentiment:long-suffix"
"""What is trained on where no data is named: chosen falls there under DPO."""


@dataclass(frozen=True)
class MethodRow:
    """A method of the study: its objective and shapings here; ``token``: its two sides are read per token."""

    objective: str
    shaping: tuple[str, ...] = ()
    token: bool = False
    ours: bool = False
    """Not one of the paper's ten."""
    sft: str = "sft"
    """The warm-up before it."""


METHODS: dict[str, MethodRow] = {
    "DPO": MethodRow("dpo"),
    "R-DPO": MethodRow("rdpo"),
    "SimPO": MethodRow("simpo", token=True),
    "IPO": MethodRow("ipo", token=True),
    "RRHF": MethodRow("rrhf"),
    "SLiC-HF": MethodRow("slic_hf"),
    "CPO": MethodRow("cpo"),
    "DPOP": MethodRow("dpop"),
    "KTO": MethodRow("kto"),
    "SPPO": MethodRow("sppo"),
    "DPO★": MethodRow("dpo", ("pairwise-normalised",), ours=True),
    "AdaDPO": MethodRow("dpo", ("adadpo",), ours=True),
    "DPO, extended SFT": MethodRow("dpo", ours=True, sft="extended_sft"),
}
"""Name → method: the ten of the paper, then its own remedy (pairwise normalised), AdaDPO, and DPO
after a warm-up on both sides (Ren & Sutherland 2024)."""


def objective_arms(
    folder: Path,
    study: Study,
    data: str = "",
    pretrained: Pretrained | None = None,
    options: Options = (),
    methods: Sequence[str] = tuple(METHODS),
) -> list[Arm]:
    """Every method with every seed, from the same start and on the same pairs."""
    return [
        method_arm(folder, study, data or DATA, method, seed, pretrained, options)
        for seed in range(study.seeds)
        for method in methods
    ]


def method_arm(
    folder: Path, study: Study, data: str, method: str, seed: int, pretrained: Pretrained | None, options: Options
) -> Arm:
    """One method with one seed: the settings of the sentiment study."""
    row, key, model = METHODS[method], arm_key(method, seed), folder / "models" / str(seed)
    config = run_config(folder / key, model, data, study, seed)
    config = replace(config, objective=row.objective, shaping=row.shaping, sft_objective=row.sft, tokens_every=0)
    config = config if row.objective == "dpo" else replace(config, beta=None)
    arm = Arm(
        "objectives", method, seed, config, data=data_name(data), command=command_of("objectives", options, key),
        begin=partial(reading_model, model, study, seed),
    )  # fmt: skip
    return arm if pretrained is None else on_pretrained(arm, pretrained, data)


def data_name(data: str) -> str:
    """``generated``, or the name of the file or of the data on the hub."""
    kind, _, file = data.partition("@")
    return GENERATED if kind.startswith("sentiment:") and not file else Path(file or data).name
