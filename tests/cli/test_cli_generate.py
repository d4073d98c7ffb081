"""``dyn-probe generate``: answers of a model in AlpacaEval's form, against decoding one token at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dyn_probe_cli.app import app
from tiny_runs import tiny
from typer.testing import CliRunner

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.errors import BadInput
from dyn_probe.train.loop import record
from dyn_probe.train.outputs.generating import generate_outputs
from dyn_probe.train.outputs.prompts import read_prompts

PROMPTS = ("The film was", "I would see it again because the story", "What a", "The film was")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts in two forms, and a run with and one without its trained model."""
    place = tmp_path_factory.mktemp("generate")
    built_in_model(3, width=32, layers=1, heads=2).save_pretrained(place / "model")
    built_in_tokenizer().save_pretrained(place / "model")
    (place / "prompts.json").write_text(json.dumps([{"instruction": text, "dataset": "x"} for text in PROMPTS]))
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    for name in ("saved", "bare"):
        record(tiny(place / name, steps=1, save=name == "saved"), progress=False)
    return place


def one_by_one(model: Any, tokenizer: Any, text: str, most: int) -> tuple[str, bool]:
    """Greedy decoding without a cache, a batch or padding."""
    ids = list(tokenizer(text)["input_ids"])
    begun = len(ids)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(ids[begun:], skip_special_tokens=True).strip(), False
    return tokenizer.decode(ids[begun:], skip_special_tokens=True).strip(), True


@pytest.mark.parametrize("file", ["prompts.json", "prompts.jsonl"])
def test_greedy_answers_are_those_of_decoding_one_by_one(file: str, folder: Path) -> None:
    rows = generate_outputs(str(folder / "model"), str(folder / file), max_new_tokens=7, batch_size=2, device="cpu")
    model, tokenizer = built_in_model(3, width=32, layers=1, heads=2).eval(), built_in_tokenizer()
    assert [row["instruction"] for row in rows] == list(dict.fromkeys(PROMPTS))
    for row in rows:
        assert (row["output"], row["cut_off"]) == one_by_one(model, tokenizer, row["instruction"], 7)
        assert row["generator"] == "model"


def test_samples_are_those_of_their_seed(folder: Path) -> None:
    def sampled(seed: int) -> list[str]:
        place, data = str(folder / "model"), str(folder / "prompts.json")
        return [row["output"] for row in generate_outputs(place, data, seed=seed, max_new_tokens=7, device="cpu")]

    before = torch.random.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_command_answers_with_the_model_of_a_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "outputs.json"
    arguments = ["generate", str(folder / "saved"), "--data", str(folder / "prompts.json"), "--out", str(out)]
    arguments += ["--max-new-tokens", "5", "--max-prompts", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "2 outputs, mean length" in done.output and "distinct-1" in done.output
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 2 and {row["generator"] for row in rows} == {"saved"}
    assert {"instruction", "output", "generator"} <= rows[0].keys()
    with pytest.raises(BadInput, match="--force"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("bare", {}, "did not keep its trained model; record it with --save"),
        ("model", {"max_new_tokens": 100_000}, "smaller --max-new-tokens"),
        ("model", {"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_answered_is_said(model: str, options: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=said):
        generate_outputs(str(folder / model), str(folder / "prompts.json"), device="cpu", **options)


def test_prompts_of_preference_data_and_conversations(folder: Path, tmp_path: Path) -> None:
    tokenizer = built_in_tokenizer()
    assert len(read_prompts("sentiment:short-suffix", tokenizer, 3)) == 3
    file = tmp_path / "chat.jsonl"
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]
    file.write_text(json.dumps({"prompt": turns}) + "\n")
    (one,) = read_prompts(str(file), tokenizer)
    assert one.instruction == "Why?" and one.text == "User: Hello\nAssistant: Hi\nUser: Why?\nAssistant:"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert read_prompts(str(folder / "prompts.json"), tokenizer)[0].text == f"<user>{PROMPTS[0]}<assistant>"
    assert read_prompts(str(folder / "prompts.jsonl"), tokenizer)[0].text == PROMPTS[0]
    file.write_text(json.dumps({"text": "no prompt"}) + "\n")
    with pytest.raises(BadInput):
        read_prompts(str(file), tokenizer)
