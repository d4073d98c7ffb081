"""Every option of ``dyn-probe record``: one field each, with the help that the command line and the docs print."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dyn_probe.data.model_folders import is_adapter
from dyn_probe.errors import BadInput
from dyn_probe.train.options.option_values import RunOption, read_value
from dyn_probe.train.options.shares import read_budget
from dyn_probe.train.options.unasked import MOST_PROBED, probed_unasked


def _option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option: its default, its help, and how its values are read (``Option``)."""
    metadata = {"option": RunOption(help=help, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


BY_MODEL: dict[str, tuple[float, float, float]] = {
    "lr": (1e-4, 1e-5, 1e-6),
    "pretrain_steps": (600, 0, 0),
    "sft_steps": (20, 0, 0),
    "sft_lr": (2e-4, 1e-5, 1e-5),
}
"""Field → its default for the built-in model, for LoRA adapters on another model, for all weights of another model."""


def _by_model(name: str) -> str:
    """Such a default in words."""
    own, lora, other = (f"{v:.0e}".replace("e-0", "e-") if 0 < v < 1 else f"{v:g}" for v in BY_MODEL[name])
    return f"{own} for the built-in model, {f'{lora} with LoRA, ' if lora != other else ''}else {other}"


@dataclass(frozen=True)
class RunConfig:
    """The options of a recorded run. ``None`` stands for a default that depends on the model or the objective.

    Raises:
        BadInput: values of a wrong type or out of range; all of them are listed.
    """

    out: str = _option("", "Folder of the trace, created by the run.", default_text="runs/OBJECTIVE-DATA")
    model: str = _option("built-in", "built-in, a local folder (of a model, or of adapters to train on), or a hub id.")
    data: str = _option(
        "sentiment:long-suffix",
        "sentiment:STYLE (single-token, short-suffix, long-suffix, prefix-suffix; on your own statements: "
        "sentiment:STYLE@FILE), a file of pairs (JSON lines, a JSON array, CSV, Parquet), a folder[:SPLIT], or a hub "
        "id OWNER/NAME[:SPLIT].",
    )
    objective: str = _option(
        "dpo", "Objective of the training, NAME or NAME:KEY=VALUE,…; `dyn-probe methods` lists them."
    )
    shaping: tuple[str, ...] = _option((), "Gradient shaping, NAME or NAME:KEY=VALUE,…; repeatable.")
    hyper: dict[str, Any] = _option({}, "Hyper-parameter of the objective, NAME=VALUE; repeatable.", name="set")  # noqa: RUF009
    beta: float | None = _option(None, "β of the objective; short for --set beta=…", default_text="the objective's")

    steps: int = _option(60, "Optimizer steps of preference training.", least=1)
    batch_size: int = _option(8, "Pairs per forward and backward pass, over all processes.", least=1)
    gradient_accumulation: int = _option(1, "Batches accumulated per optimizer step.", least=1)
    lr: float | None = _option(None, "Learning rate.", least=0.0, default_text=_by_model("lr"))
    optimizer: str = _option("adamw", "Optimizer.", choices=("adamw", "rmsprop", "sgd"))
    weight_decay: float = _option(0.0, "Weight decay of the optimizer.", least=0.0)
    schedule: str = _option("constant", "Learning rate after the warm-up.", choices=("constant", "linear", "cosine"))
    warmup_steps: int = _option(10, "Steps of linear learning-rate warm-up.", least=0)
    max_grad_norm: float = _option(1.0, "Clip the gradient to this norm; 0 disables clipping.", least=0.0)

    pretrain_steps: int | None = _option(
        None,
        "Steps of language modelling on generated text, before the supervised warm-up (built-in model only).",
        least=0,
        default_text=_by_model("pretrain_steps"),
    )
    sft_steps: int | None = _option(
        None,
        "Steps of supervised warm-up, before the reference is frozen.",
        least=0,
        default_text=_by_model("sft_steps"),
    )
    sft_objective: str = _option(
        "sft",
        "What the warm-up trains on: the chosen responses (sft), or both sides, against squeezing (extended_sft).",
        choices=("sft", "extended_sft"),
    )
    sft_lr: float | None = _option(None, "Learning rate of the warm-up.", least=0.0, default_text=_by_model("sft_lr"))

    max_pairs: int | None = _option(None, "Read at most this many rows of the data.", least=1, default_text="all")
    columns: str = _option(
        "",
        "Which column is which part of a pair, PART=COLUMN,… (prompt, user, system, chosen, rejected, tools, …); "
        "ignore=COLUMN skips one.",
        default_text="as the file's shape says; `dyn-probe data` shows it",
    )
    strict_data: bool = _option(False, "Stop if any row of the data cannot be used, instead of skipping it.")
    max_length: int = _option(1024, "Most tokens of prompt and response together; longer rows are truncated.", least=2)
    truncation: str = _option(
        "keep_start",
        "Which end of a longer row is kept.",
        choices=("keep_start", "keep_end"),
    )
    eval_fraction: float = _option(0.1, "Share of the pairs that is held out for evaluation.", least=0.0, below=1.0)
    eval_every: int = _option(20, "Evaluate the held-out pairs every N steps, and at the start and end.", least=1)

    every: int | str | None = _option(
        None,
        "Record every N-th step; auto: as often as --budget allows, in one process; log-probabilities, losses and "
        "scores of every pair are still recorded at every step.",
        least=1,
        choices=("auto",),
        default_text="auto on a GPU (in one process, not for the built-in model or shapings that need the norms of "
        "every step, and without --one-pass, --split-momentum, --update, --realised, --metric-every, --metric), else 1",
    )
    budget: str = _option("5%", "Largest share of the training time that --every auto may spend on recording.")
    gram_every: int = _option(
        10,
        "Record the batch's full Gram matrix and the change that it predicts every N steps; 0 never. With several "
        "processes or --gradient-accumulation the activations of these steps are kept until the update.",
        least=0,
    )
    metric_every: int | None = _option(
        None,
        "Take the optimizer's step apart every N steps: what moved each log-probability, part by part; 0 never. The "
        "activations of these steps and a copy of the trained weights are kept until the update.",
        least=0,
        default_text="1 for the built-in model with --metric applied, else that of --gram-every",
    )
    metric: str = _option(
        "applied",
        "previous: pushes also of the steps between, in the metric of the step before: own parts, past and decay.",
        choices=("applied", "previous"),
    )
    split_momentum: bool | None = _option(
        None,
        "Track the momentum of chosen and of rejected gradients separately, so that their pushes over all steps can "
        "be compared; takes two more buffers of the trained weights' size, updated at every step.",
        default_text="on for the built-in model and with LoRA",
    )
    realised: bool | None = _option(
        None,
        "Record the realised change at every recorded step, or never: evaluate the recorded pairs again after the "
        "update.",
        default_text="at every step for the built-in model, else where --gram-every records",
    )
    final_pairs: int = _option(
        512, "Evaluate up to this many of the training pairs once more at the end; 0: none.", least=0
    )
    update: bool = _option(
        False,
        "Also record the first-order change along the optimizer's own update; this keeps a copy of the trained "
        "weights and the activations of the step.",
    )
    one_pass: bool = _option(
        False,
        "Take the weight gradients from the recorder's own pass over the batch, which saves autograd one matrix "
        "product per weight. Training is then the same up to rounding; without it, bitwise. Single process only.",
    )
    precompute_reference: bool = _option(
        True, "Compute the reference log-probabilities once, before training, instead of keeping a reference model."
    )
    tokens_every: int = _option(
        0, "Record token-by-token inner products every N steps, and at the last step; 0 never.", least=0
    )
    token_pairs: int = _option(
        4, "Number of pairs that --tokens-every tracks, drawn by the seed and the same throughout the run.", least=1
    )
    mass_every: int | None = _option(
        None,
        "Measure the probe responses every N steps, and at the start and end; 0 never.",
        least=0,
        default_text=f"at the start and end, of up to {MOST_PROBED} prompts",
    )
    probe_set: str = _option(
        "",
        "File of probe responses: JSON lines with a prompt and one field per kind of response.",
        default_text="built from the held-out pairs, or from the training pairs where none are held out",
    )
    probe_size: int = _option(64, "Use at most this many prompts of the probe set.", least=1)
    probe_initial: bool = _option(False, "Also probe the model's own answers from before preference training.")

    seed: int = _option(0, "Seed of the weights, the warm-up and the order of the pairs.", least=0)
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, …")
    dtype: str = _option(
        "float32",
        "Type of the weights; autocast: float32 weights, bfloat16 arithmetic.",
        choices=("float32", "float64", "bfloat16", "autocast"),
    )
    parallel: str = _option(
        "ddp",
        "With several processes (torchrun, accelerate launch): replicate the model and average gradients (ddp), or "
        "shard it (fsdp2).",
        choices=("ddp", "fsdp2"),
    )
    lora_rank: int = _option(0, "Train LoRA adapters of this rank; 0 trains all weights.", least=0)
    gradient_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, more time.")
    trust_remote_code: bool = _option(False, "Run code that ships with the model.")

    save: bool = _option(
        False,
        "Leave the trained model in the folder model of the trace, as --model and transformers load it: weights, "
        "configuration and tokenizer; with LoRA the adapters.",
    )
    checkpoint_every: int = _option(0, "Save a checkpoint to resume from every N steps; 0 saves none.", least=0)
    keep_checkpoints: int | str = _option(
        0,
        "Also leave the model at every checkpoint in the folder checkpoints/checkpoint-STEP of the trace, as --model "
        "and transformers load it: the newest N of them, or all.",
        least=0,
        choices=("all",),
    )
    resume: bool = _option(False, "Continue the run in --out from its last checkpoint.")
    strict: bool = _option(
        False, "Stop where the trace cannot be written (full disk, file-size limit), instead of training on without it."
    )
    force: bool = _option(False, "Replace an existing trace in --out.")  # fmt: skip

    def __post_init__(self) -> None:
        wrong = []
        if type(self.budget) in (int, float):  # a number in YAML
            object.__setattr__(self, "budget", str(self.budget))
        for name, option in OPTIONS.items():
            value, complaint = read_value(option, getattr(self, name))
            object.__setattr__(self, name, value)
            wrong += [f"{option.name} {complaint}"] if complaint else []
        try:
            read_budget(self.budget)
        except BadInput as error:
            wrong.append(f"budget: {error}")
        if self.every == "auto" and self.split_momentum:
            wrong.append("split-momentum follows every step, so that every=auto has nothing to thin: write only one")
        if self.force and self.resume:
            wrong.append("force replaces the trace and resume continues it: write only one of them")
        if wrong:
            raise BadInput("; ".join(wrong))

    @property
    def folder(self) -> Path:
        """Folder of the trace."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.objective.partition(':')[0]}-{Path(self.data).name}")
        return Path(self.out) if self.out else Path("runs") / name.strip("-.")

    @property
    def keeps(self) -> int | None:
        """How many checkpoints are left as models; None: all of them."""
        return None if isinstance(self.keep_checkpoints, str) else self.keep_checkpoints

    @property
    def pairs_per_step(self) -> int:
        """Pairs in one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def with_model_defaults(self, thin: bool = False) -> RunConfig:
        """The same with every default that depends on the model filled in.

        Args:
            thin: whether the training runs where records are thinned if nothing else is asked for.
        """
        adapters = self.lora_rank or is_adapter(Path(self.model).expanduser())
        place = 0 if self.model == "built-in" else 1 if adapters else 2
        found: dict[str, Any] = {name: values[place] for name, values in BY_MODEL.items()}
        every_step = (self.split_momentum, self.one_pass, self.update, self.realised, self.metric_every)
        thin = thin and place > 0 and not any(every_step) and self.metric == "applied"
        found["every"] = "auto" if thin else 1
        every = found["every"] if self.every is None else self.every
        found["metric_every"] = self.gram_every if place or self.metric == "previous" else 1
        found["split_momentum"] = place < 2 and every != "auto"
        found["mass_every"] = self.steps if (prompts := probed_unasked(self)) else 0
        missing = {name: value for name, value in found.items() if getattr(self, name) is None}
        return replace(self, **missing | ({"probe_size": prompts} if prompts else {}))

    @property
    def realised_every(self) -> int:
        """At which of the recorded steps the pairs are evaluated again after the update: every so many; 0 at none."""
        if self.realised is None:
            return 1 if self.model == "built-in" else self.gram_every
        return int(self.realised)

    @property
    def hyper_values(self) -> dict[str, Any]:
        """Hyper-parameters given for the objective, ``beta`` among them."""
        return self.hyper if self.beta is None else {**self.hyper, "beta": self.beta}

    def as_dict(self) -> dict[str, Any]:
        """Option name → value, as JSON can hold it."""
        return {OPTIONS[name].name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


OPTIONS: dict[str, RunOption] = {
    f.name: replace(
        f.metadata["option"],
        name=f.metadata["option"].name or f.name.replace("_", "-"),
        kind=str(f.type),
    )
    for f in fields(RunConfig)
}
"""Field → its option, in the order of the help."""
