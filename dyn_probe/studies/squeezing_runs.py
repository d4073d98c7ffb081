"""The squeezing study (Ren & Sutherland 2024; Mouiche 2026) with a small model, trained and recorded.

Per seed one small model is pretrained on the text of the probe file and has its supervised stage on the chosen
responses. Every method then starts from that same model and trains on the same pairs in the same order, with the same
settings. The responses of the probe set are measured before and after.

The published protocol is five epochs; a small model memorises a few hundred pairs in that time, and chosen rises under
every method. The cpu preset sees every pair once, at a learning rate chosen by the rule of ``arms.rate_choice``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dyn_probe.data.built_in import fast_tokenizer, learnt_tokenizer, small_model
from dyn_probe.data.generated.answers import varied_answer
from dyn_probe.data.generated.statements import SENTIMENTS, generate_statements
from dyn_probe.data.generated.styles import sentiment_prompt
from dyn_probe.data.model_folders import is_model, save_model
from dyn_probe.data.models import pick_device
from dyn_probe.errors import BadInput
from dyn_probe.mass.building import build_probe_set, with_unrelated
from dyn_probe.mass.probe_file import read_probe_set
from dyn_probe.mass.probe_kinds import GROUPS, kinds_of
from dyn_probe.mass.probes import ProbePrompt, ProbeSet, SkippedResponse
from dyn_probe.studies.arms.arm import GENERATED, Arm, arm_key, command_of
from dyn_probe.studies.arms.arm_running import run_arms
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.presets import Preset
from dyn_probe.studies.published import TRAINED, Published
from dyn_probe.studies.sentiment_runs import Options, on_pretrained
from dyn_probe.train.display import Display
from dyn_probe.train.mass_rows import said
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.rate_schedule import set_rate
from dyn_probe.train.setup import prepare
from dyn_probe.train.warmup import supervised_stage

KINDS = tuple(kind for group in GROUPS for kind in kinds_of(group))
"""Kinds of response that the table is about."""


PAIR = {"chosen", "rejected"}
UNPAIRED = "left out: the study needs chosen and rejected, and one of them is missing"


def squeezing_arms(
    folder: Path,
    preset: Preset,
    file: Path,
    texts: Sequence[str],
    data: str = GENERATED,
    pretrained: Pretrained | None = None,
    options: Options = (),
) -> list[Arm]:
    """Every method with every seed.

    Args:
        folder: holds one run per method and seed, ``METHOD-SEED``.
        file, texts: the probe set, saved, and what a small model is pretrained on (``study_data``).
        data: what the tables call the data.
        pretrained: the model to start from; None makes a small one per seed.
        options: what the command was given, for the commands of single arms.
    """
    arms = []
    for seed in range(preset.seeds):
        model = folder / "models" / str(seed)
        begin = partial(warm_model, model, file, texts, preset, seed)
        for method, row in TRAINED.items():
            key = arm_key(method, seed)
            config = run_config(folder / key, model, file, row, preset, seed)
            command = command_of("squeezing", options, key)
            arm = Arm("squeezing", method, seed, config, data=data, command=command, begin=begin)
            arms.append(arm if pretrained is None else _on_pretrained(arm, pretrained, file))
    return arms


def _on_pretrained(arm: Arm, pretrained: Pretrained, file: Path) -> Arm:
    """The same from a pretrained model: its supervised stage is its own, and no token maps are drawn."""
    arm = on_pretrained(arm, pretrained, str(file))
    return replace(arm, config=replace(arm.config, tokens_every=0, probe_set=str(file)))


def study_data(
    folder: Path, preset: Preset, probe_file: Path | None, force: bool = False
) -> tuple[Path, list[str], list[str]]:
    """The probe set that is trained on and measured, saved in the study's folder; the texts of the pretraining; and a
    line for each entry that is left out.

    Raises:
        BadInput: the probe file cannot be used.
    """
    probes, texts = read_data(probe_file, preset)
    file = folder / "probe_set.jsonl"
    if force or not file.exists():
        probes.save(file, force=force)
    return file, texts, left_out(probes)


def train_methods(
    out: Path, preset: Preset, probe_file: Path | None = None, display: Display | None = None
) -> dict[str, list[Path]]:
    """Train and record every method with every seed; returns method → its runs, by seed.

    Args:
        out: holds the probe set and the runs; those that are done are kept.
        probe_file: JSON lines with prompt, chosen, rejected and more kinds; without it a set is generated.

    Raises:
        BadInput: the probe file cannot be used. Unusable entries are shown by line and kind.
    """
    shown = display or Display(False)
    file, texts, missed = study_data(out, preset, probe_file)
    warn_left_out(shown, missed)
    arms = squeezing_arms(out, preset, file, texts)
    run_arms(arms, out, shown.say)
    return {method: [arm.folder for arm in arms if arm.name == method] for method in TRAINED}


def run_config(out: Path, model: Path, file: Path, method: Published, preset: Preset, seed: int) -> RunConfig:
    """One method's run. Responses are measured at both ends and three times between."""
    steps = preset.epochs * (preset.pairs // preset.batch_size)
    return RunConfig(
        out=str(out), model=str(model), data=str(file), max_pairs=preset.pairs, objective=method.objective,
        hyper=dict(method.hyper), shaping=method.shaping, beta=preset.beta, steps=steps, batch_size=preset.batch_size,
        lr=preset.lr,
        pretrain_steps=0, sft_steps=0, eval_fraction=0.0, every=max(1, steps // 5), gram_every=0, realised=False,
        metric_every=max(1, steps // 5), split_momentum=True, mass_every=-(-steps // 4), probe_set=str(file),
        probe_size=preset.probes, seed=seed,
    )  # fmt: skip


def warm_model(folder: Path, file: Path, texts: Sequence[str], preset: Preset, seed: int) -> Path:
    """The small model after pretraining and its supervised stage, saved where ``record`` can load it, once."""
    if is_model(folder):
        return folder
    display = Display()
    tokenizer = fast_tokenizer(learnt_tokenizer(texts, preset.vocabulary))
    model = small_model(tokenizer, seed, width=preset.width, layers=preset.layers, heads=preset.heads)
    model.to(pick_device("auto"))  # type: ignore[arg-type]
    with display.bar(f"seed {seed}: pretraining", preset.reading_steps) as advance:
        read(model, tokenizer, texts, preset, seed, lambda loss: advance(1, f"loss {loss:.2f}"))
    first = folder.with_name(f"{folder.name}-read")
    save_model(first, preset.reading_steps, model, tokenizer)
    config = RunConfig(out=str(folder / "none"), model=str(first), data=str(file), max_pairs=preset.pairs, seed=seed)
    setup = prepare(replace(config, batch_size=preset.batch_size, eval_fraction=0.0))
    steps = preset.sft_epochs * max(1, len(setup.pairs) // 16)
    with display.bar(f"seed {seed}: SFT", steps) as advance:
        supervised_stage(setup, setup.pairs, "sft", steps, preset.sft_lr, lambda loss: advance(1, f"loss {loss:.2f}"))
    save_model(folder, steps, setup.model, tokenizer)
    return folder


def read(
    model: Any, tokenizer: Any, texts: Sequence[str], preset: Preset, seed: int, progress: Callable[[float], None]
) -> None:
    """Language modelling on blocks of the texts, with AdamW and a falling learning rate."""
    length, place = 128, next(model.parameters()).device
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = torch.tensor(ids[: len(ids) // length * length], device=place).view(-1, length)
    draw = random.Random(f"{seed}:reading")
    optimizer = torch.optim.AdamW(model.parameters(), lr=preset.reading_lr)
    for step in range(preset.reading_steps):
        set_rate(optimizer, preset.reading_lr * (1 - step / preset.reading_steps))
        batch = blocks[[draw.randrange(len(blocks)) for _ in range(12)]]
        logits = model(input_ids=batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(float(loss.detach()))


def read_data(file: Path | None, preset: Preset) -> tuple[ProbeSet, list[str]]:
    """The probe set that is trained on and measured, cut to the preset's size, and the texts of the pretraining."""
    whole = generated_set(4 * preset.pairs) if file is None else read_probe_set(file)
    paired = [p for p in whole.prompts if set(p.responses) >= PAIR]
    if len(paired) < preset.batch_size:
        raise BadInput(
            f"the study needs at least {preset.batch_size} prompts with chosen and rejected; {file} has {len(paired)}"
        )
    lonely = tuple(SkippedResponse(p.source, "*", UNPAIRED) for p in whole.prompts if p not in paired)
    usable = with_unrelated(replace(whole, prompts=tuple(paired), skipped=(*whole.skipped, *lonely)))
    paired = list(usable.prompts)
    read = [p.prompt + p.responses["chosen"] for p in paired]
    read += [text.strip() for p in paired for kind, text in p.responses.items() if kind.startswith("irr_")]
    return replace(usable, prompts=tuple(_cut(p, preset) for p in paired[: preset.pairs])), read


def left_out(probes: ProbeSet) -> list[str]:
    """Entries of a probe file that are not in the study, a line each: place, kind, reason. Kinds that the study does
    not measure are not listed."""
    return [said(one) for one in probes.skipped if one.kind in (*KINDS, "*")]


def warn_left_out(display: Display, lines: Sequence[str], most: int = 10) -> None:
    """Show the first few of them."""
    if not lines:
        return
    display.say(f"{len(lines)} entries of the probe file are left out:")
    for line in lines[:most]:
        display.say(f"  {line}")
    if len(lines) > most:
        display.say(f"  and {len(lines) - most} more; all of them are listed in the report")


def generated_set(count: int) -> ProbeSet:
    """Statements with a sentiment: chosen states it, rejected its opposite, in independently drawn wordings."""
    draw = random.Random("squeezing")
    records = []
    for number, statement in enumerate(generate_statements(count)):
        other = SENTIMENTS[1 - SENTIMENTS.index(statement.sentiment)]
        chosen, rejected = (varied_answer(label, draw) for label in (statement.sentiment, other))
        prompt = sentiment_prompt(statement.text)
        records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": f"generated #{number}"})
    return build_probe_set(records, prompts=None)


def _cut(prompt: ProbePrompt, preset: Preset) -> ProbePrompt:
    """The end of the prompt and the beginning of every response the table is about."""
    text = prompt.prompt
    if len(text) > preset.prompt_length:
        text = text[-preset.prompt_length :].partition(" ")[2] or text[-preset.prompt_length :]
    answers = {kind: _start(prompt.responses[kind], preset.answer_length) for kind in KINDS if kind in prompt.responses}
    return replace(prompt, prompt=text, responses=answers)


def _start(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most].rpartition(" ")[0] or text[:most]
