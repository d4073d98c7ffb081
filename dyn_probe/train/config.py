"""Every option of ``dyn-probe record``: one field each, with the help that the command line and the docs print."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.train.values import Option, read_value


def _option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option: its default, its help, and how its values are read (``Option``)."""
    metadata = {"option": Option(help=help, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """What a recorded run does. ``None`` stands for a default that depends on the model or the objective.

    Raises:
        BadInput: values of a wrong type or out of range; all of them are listed.
    """

    out: str = _option("", "Folder of the trace, made by the run.", default_text="runs/OBJECTIVE-DATA")
    model: str = _option("built-in", "built-in, a local folder, or a hub id.")
    data: str = _option(
        "sentiment:long-suffix",
        "sentiment:STYLE (single-token, short-suffix, long-suffix, prefix-suffix; on your own statements: "
        "sentiment:STYLE@FILE), a file of pairs (JSON lines, a JSON array, CSV, Parquet), a folder[:SPLIT], or a hub "
        "id OWNER/NAME[:SPLIT].",
    )
    objective: str = _option("dpo", "What is minimised; `dyn-probe methods` lists them. Also NAME:KEY=VALUE,…")
    shaping: tuple[str, ...] = _option((), "Shaping of the pairs' gradients, NAME or NAME:KEY=VALUE,…; repeatable.")
    hyper: dict[str, Any] = _option({}, "A hyper-parameter of the objective, NAME=VALUE; repeatable.", name="set")  # noqa: RUF009
    beta: float | None = _option(None, "β of the objective; short for --set beta=…", default_text="the objective's")

    steps: int = _option(60, "Optimizer steps of preference training.", least=1)
    batch_size: int = _option(8, "Pairs in one forward and backward.", least=1)
    gradient_accumulation: int = _option(1, "Batches that one optimizer step adds up.", least=1)
    lr: float | None = _option(
        None, "Learning rate.", least=0.0, default_text="2e-4 for the built-in model, 1e-5 with LoRA, else 1e-6"
    )
    optimizer: str = _option("adamw", "Optimizer.", choices=("adamw", "rmsprop", "sgd"))
    weight_decay: float = _option(0.0, "Weight decay of the optimizer.", least=0.0)
    schedule: str = _option("constant", "Learning rate after the warm-up.", choices=("constant", "linear", "cosine"))
    warmup_steps: int = _option(10, "Steps over which the learning rate rises from 0.", least=0)
    max_grad_norm: float = _option(1.0, "Clip the gradient to this norm; 0 does not clip.", least=0.0)

    pretrain_steps: int | None = _option(
        None,
        "Steps in which the built-in model first reads generated text.",
        least=0,
        default_text="600 for the built-in model, else 0",
    )
    sft_steps: int | None = _option(
        None,
        "Steps of supervised warm-up on the chosen responses, before the reference is frozen.",
        least=0,
        default_text="20 for the built-in model, else 0",
    )
    sft_objective: str = _option(
        "sft",
        "What the warm-up trains on: the chosen responses, or both sides (against squeezing).",
        choices=("sft", "extended_sft"),
    )
    sft_lr: float | None = _option(
        None, "Learning rate of the warm-up.", least=0.0, default_text="2e-4 for the built-in model, else 1e-5"
    )

    max_pairs: int | None = _option(None, "Read at most this many rows of the data.", least=1, default_text="all")
    columns: str = _option(
        "",
        "Which column is which part of a pair, PART=COLUMN,… (prompt, user, system, chosen, rejected, tools, …); "
        "ignore=COLUMN leaves one aside.",
        default_text="as the file's shape says; `dyn-probe data` shows it",
    )
    strict_data: bool = _option(False, "Refuse data of which a row cannot be used, instead of leaving it out.")
    max_length: int = _option(1024, "Most tokens of prompt and response together.", least=2)
    truncation: str = _option(
        "keep_start",
        "Which end of a longer row stays: its first tokens or its last.",
        choices=("keep_start", "keep_end"),
    )
    eval_fraction: float = _option(0.1, "Share of the pairs held out and only evaluated.", least=0.0, below=1.0)
    eval_every: int = _option(20, "Evaluate the held-out pairs every so many steps, and at both ends.", least=1)

    every: int = _option(1, "Record every so many steps.", least=1)
    gram_every: int = _option(
        10,
        "Record the batch's full Gram and the change it predicts every so many steps; 0 never does. With several "
        "processes or --gradient-accumulation the activations of these steps are kept until the update.",
        least=0,
    )
    realised: bool = _option(True, "Evaluate recorded pairs again after the step: the realised change.")
    update: bool = _option(
        False,
        "Also record the first-order change under the optimizer's own update; it keeps a copy of the trained "
        "weights and the activations of the step.",
    )
    precompute_reference: bool = _option(
        True, "Take reference log-probabilities once, before training, instead of keeping a reference model."
    )
    tokens_every: int = _option(
        0, "Record token-by-token gradient products every so many steps, and at the last; 0 never does.", least=0
    )
    token_pairs: int = _option(4, "Pairs that --tokens-every follows, drawn by the seed; the same all along.", least=1)
    mass_every: int = _option(
        0, "Measure the probe responses every so many steps, and at both ends of the run; 0 never does.", least=0
    )
    probe_set: str = _option(
        "",
        "File of probe responses: JSON lines with a prompt and a field per kind of response.",
        default_text="built from the held-out pairs, or from the training pairs where none are held out",
    )
    probe_size: int = _option(64, "Use at most this many prompts of the probe set.", least=1)
    probe_initial: bool = _option(False, "Probe also what the model itself answers before preference training.")

    seed: int = _option(0, "Draws weights, warm-up and the order of the pairs.", least=0)
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, …")
    dtype: str = _option(
        "float32",
        "Type of the weights; autocast computes in bfloat16 over float32 weights.",
        choices=("float32", "float64", "bfloat16", "autocast"),
    )
    parallel: str = _option(
        "ddp",
        "With several processes (torchrun, accelerate launch): whole copies that average their gradients, or split "
        "parameters.",
        choices=("ddp", "fsdp2"),
    )
    lora_rank: int = _option(0, "Train LoRA adapters of this rank; 0 trains all weights.", least=0)
    gradient_checkpointing: bool = _option(False, "Less memory, more time: compute activations again in the backward.")
    trust_remote_code: bool = _option(False, "Run code that comes with the model.")

    checkpoint_every: int = _option(0, "Save a checkpoint every so many steps; 0 saves none.", least=0)
    resume: bool = _option(False, "Go on with the run in --out from its last checkpoint.")
    strict: bool = _option(
        False, "Stop where the trace cannot be written (full disk, file-size limit), instead of training on without it."
    )
    force: bool = _option(False, "Replace an older trace in --out.")  # fmt: skip

    def __post_init__(self) -> None:
        wrong = []
        for name, option in OPTIONS.items():
            value, complaint = read_value(option, getattr(self, name))
            object.__setattr__(self, name, value)
            wrong += [f"{option.name} {complaint}"] if complaint else []
        if self.force and self.resume:
            wrong.append("force replaces the trace and resume goes on with it: write only one of them")
        if wrong:
            raise BadInput("; ".join(wrong))

    @property
    def folder(self) -> Path:
        """Folder of the trace."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.objective.partition(':')[0]}-{Path(self.data).name}")
        return Path(self.out) if self.out else Path("runs") / name.strip("-.")

    @property
    def pairs_per_step(self) -> int:
        """Pairs in one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def with_model_defaults(self) -> RunConfig:
        """The same with every default that depends on the model filled in."""
        own = self.model == "built-in"
        lr = 2e-4 if own else 1e-5 if self.lora_rank else 1e-6
        found: dict[str, Any] = {
            "lr": lr,
            "pretrain_steps": 600 if own else 0,
            "sft_steps": 20 if own else 0,
            "sft_lr": 2e-4 if own else 1e-5,
        }
        return replace(self, **{name: value for name, value in found.items() if getattr(self, name) is None})

    @property
    def hyper_values(self) -> dict[str, Any]:
        """Hyper-parameters given for the objective, ``beta`` among them."""
        return self.hyper if self.beta is None else {**self.hyper, "beta": self.beta}

    def as_dict(self) -> dict[str, Any]:
        """Option name → value, as JSON can hold it."""
        return {OPTIONS[name].name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


OPTIONS: dict[str, Option] = {
    f.name: replace(
        f.metadata["option"],
        name=f.metadata["option"].name or f.name.replace("_", "-"),
        kind=str(f.type),
    )
    for f in fields(RunConfig)
}
"""Field → its option, in the order of the help."""
