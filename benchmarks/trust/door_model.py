"""The doors of models: folders in the Hugging Face layout, adapters, and checkpoints to resume from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch

from dyn_probe.data.model_folders import is_adapter, training_step
from dyn_probe.data.models import load_model
from dyn_probe.train.checkpoints import newest_checkpoint, restore, save_checkpoint
from trust import noise
from trust.doors import attempt, new_tally
from trust.tally import Tally


def model_folder(folder: Path) -> Path:
    """A tiny saved model with its tokenizer."""
    import transformers as tf

    from dyn_probe.data.built_in import built_in_tokenizer

    tokenizer = built_in_tokenizer()
    config = tf.GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=32)
    tf.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fuzz_model_folder(folder: Path, count: int, seed: int = 0) -> Tally:
    """Damaged files of a model folder, and odd values in its JSON files."""
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    tally, draw = new_tally("models: damaged folders"), Random(seed)
    whole = model_folder(folder / "whole")
    (whole / "trainer_state.json").write_text(json.dumps({"global_step": 3}), encoding="utf-8")
    for number in range(count):
        place = folder / f"model-{number}"
        shutil.copytree(whole, place)
        if draw.random() < 0.2:
            base = draw.choice([str(whole), "nothing", "../..", noise.value(draw)])
            told = {"base_model_name_or_path": base, "peft_type": draw.choice(["LORA", "X", 3])}
            (place / "config.json").unlink()
            (place / "adapter_config.json").write_bytes(noise.as_json(told))
        files = sorted(path for path in place.iterdir() if path.is_file())
        file = draw.choice(files)
        file.write_bytes(_worse(file, draw))
        attempt(tally, f"{file.name}, case {number} of seed {seed}", lambda place=place: _loaded(place))
        shutil.rmtree(place)
    return tally


def _worse(file: Path, draw: Random) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.6:
        told = json.loads(content)
        return noise.as_json(noise.changed(told, draw) if told else noise.value(draw))
    return noise.damaged(content, draw)


def _loaded(place: Path) -> Any:
    is_adapter(place)
    training_step(place)
    return load_model(str(place))


def fuzz_checkpoints(folder: Path, count: int, seed: int = 0) -> Tally:
    """Checkpoints that are damaged, and such that somebody made: other values, other shapes, other names."""
    tally, draw = new_tally("checkpoints: damaged ones, and ones made by others"), Random(seed)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = save_checkpoint(folder, 4, model.state_dict(), optimizer.state_dict(), table={"a": (1.0, 2.0)})
    content = path.read_bytes()
    whole = torch.load(path, weights_only=True)
    for number in range(count):
        if draw.random() < 0.5:
            path.write_bytes(noise.damaged(content, draw))
        else:
            odd: Any = dict(whole)
            name = draw.choice(list(odd))
            odd[name] = draw.choice([noise.value(draw), torch.zeros(3), {"weight": torch.zeros(9)}, [torch.zeros(1)]])
            if draw.random() < 0.2:
                odd = draw.choice([[], 3, "x", {}, {name: odd[name]}])
            torch.save(odd, path)
        attempt(tally, f"case {number} of seed {seed}", lambda: restore(newest_checkpoint(folder), model, optimizer))
    return tally
