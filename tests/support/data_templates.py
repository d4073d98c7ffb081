"""Tokenizers of the data tests: the built-in one under chat templates of its own or of TRL's folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from dyn_probe.data.built_in import built_in_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OF_TRL = {"Q": "qwen3", "G": "gemma", "R": "deepseek_r1_distill"}
"""Letter of the cases → template of TRL's folder."""


def tokenizer(letter: str) -> Any:
    """B: built-in, without a template; C: with CHATML; others: with TRL's template (skipped where there is no TRL)."""
    made = built_in_tokenizer()
    if letter != "B":
        made.chat_template = CHATML if letter == "C" else template_of_trl(OF_TRL[letter])
    return made


@lru_cache
def template_of_trl(name: str) -> str:
    """A chat template of the installed TRL."""
    trl = pytest.importorskip("trl", reason="the chat template comes from TRL's folder")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
