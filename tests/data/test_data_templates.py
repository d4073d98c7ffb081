"""Under every chat template that TRL ships: the same tokens and the same boundary as TRL's, or both refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.data.encoding import encode_pairs
from dyn_probe.data.reading import pairs_of
from dyn_probe.data.records import SourceRow
from dyn_probe.data.shapes import recognise

trl = pytest.importorskip("trl", reason="compares with TRL's own code")
TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}

USER = {"role": "user", "content": "When is high tide?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "High tide of a harbour",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    }
]


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL = said("", tool_calls=[{"type": "function", "function": {"name": "tide", "arguments": {"at": "Gull Bay"}}}])
ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"prompt": [USER], "chosen": [said("At noon.")], "rejected": [said("Never.")]},
    "system": {
        "prompt": [{"role": "system", "content": "Be brief."}, USER],
        "chosen": [said("At noon.")],
        "rejected": [said("Never, never.")],
    },
    "turns": {
        "prompt": [USER, said("Where?"), {"role": "user", "content": "Here."}],
        "chosen": [said("At noon.")],
        "rejected": [said(" Never. ")],
    },
    "implicit": {"chosen": [USER, said("At noon.")], "rejected": [USER, said("Never.")]},
    "thought": {
        "prompt": [USER],
        "chosen": [said("<think>\nhm\n</think>\n\nAt noon.")],
        "rejected": [said("<think>\n\n</think>\n\nNever.")],
    },
    "tools": {"prompt": [USER], "chosen": [said("At noon.")], "rejected": [said("Never.")], "tools": TOOLS},
    "calls": {"prompt": [USER], "chosen": [CALL], "rejected": [said("Never.")], "tools": TOOLS},
    "variables": {
        "prompt": [USER],
        "chosen": [said("At noon.")],
        "rejected": [said("Never.")],
        "chat_template_kwargs": {"enable_thinking": False, "thinking": True},
    },
}


def theirs(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int], list[int]] | None:
    """Prompt, chosen and rejected as ``DPOTrainer`` has them; None where it fails."""
    from trl.data_utils import _tokenize, common_prefix_length, extract_prompt

    row = row if "prompt" in row else {**row, **extract_prompt(row)}
    options = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    try:
        prompt = _tokenize(tokenizer, row["prompt"], add_generation_prompt=True, **options)["input_ids"]
        chosen, rejected = (
            _tokenize(tokenizer, row["prompt"] + row[side], **options)["input_ids"] for side in ("chosen", "rejected")
        )
    except Exception:
        return None
    start = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    return prompt[:start], chosen[start:], rejected[start:]


def ours(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int], list[int]] | None:
    rows = [SourceRow("here:1", row)]
    pairs, _ = pairs_of(rows, recognise(rows))
    encoded, _ = encode_pairs(pairs, tokenizer)
    if not encoded:
        return None
    chosen, rejected = encoded[0].chosen, encoded[0].rejected
    return list(chosen.ids[: chosen.start]), list(chosen.ids[chosen.start :]), list(rejected.ids[rejected.start :])


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_row_has_the_tokens_of_trl(template: str) -> None:
    tokenizer = built_in_tokenizer()
    tokenizer.chat_template = TEMPLATES[template].read_text(encoding="utf-8")
    for name, row in ROWS.items():
        expected = theirs(row, tokenizer)
        trained = expected is not None and all(expected[1:]) and expected[0] and expected[1] != expected[2]
        assert ours(row, tokenizer) == (expected if trained else None), name


def test_most_rows_are_trained_on() -> None:
    """The law above would hold of refusals alone."""
    names = ("qwen3", "qwen2_5", "llama3_1", "gemma3", "phi3", "deepseekv3")
    found = 0
    for name in names:
        tokenizer = built_in_tokenizer()
        tokenizer.chat_template = TEMPLATES[name].read_text(encoding="utf-8")
        found += sum(ours(row, tokenizer) is not None for row in ROWS.values())
    assert found > 0.8 * len(names) * len(ROWS)
