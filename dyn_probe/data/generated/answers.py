"""Answers in many wordings: what the built-in model is pretrained on before it sees the task.

A model that has only seen one wording is certain of every word of it, and certainty leaves no gradient. Having seen
the same judgement expressed in many ways, it knows the label but not the wording, as a pretrained model does.
"""

from __future__ import annotations

import random

from dyn_probe.data.generated.statements import generate_statements
from dyn_probe.data.generated.styles import sentiment_prompt

FORMS = (
    "{Label}",
    "{Label}",
    "{Label}.",
    "{Label} {noun}{end}",
    "{Label} {noun} {basis} {whose} {thing}{end}",
    "{Label} {noun} {basis} {whose} {thing}{end}",
    "It has a {label} {noun} {basis} {whose} {thing}{end}",
    "It is {label}{end}",
    "It has a {label} {noun}{end}",
    "I find it {label}{end}",
)
WORDS: dict[str, tuple[str, ...]] = {
    "noun": ("sentiment", "opinion", "tone", "feeling", "mood"),
    "basis": ("based on", "judging by", "going by", "according to"),
    "whose": ("my", "the", "this"),
    "thing": ("judgement", "reading", "words", "statement", "wording"),
    "end": (".", ".", "!", ", I think."),
}


def varied_answer(label: str, draw: random.Random) -> str:
    """One of many sentences that state ``label``."""
    words = {name: draw.choice(choices) for name, choices in WORDS.items()}
    return draw.choice(FORMS).format(label=label, Label=label.capitalize(), **words)


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` prompts with a correct answer each, in a wording drawn from ``seed``."""
    draw = random.Random(f"{seed}:answers")
    statements = generate_statements(count)
    return [(sentiment_prompt(s.text), varied_answer(s.sentiment, draw)) for s in statements]
