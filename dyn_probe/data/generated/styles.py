"""The four styles of answer of the sentiment task (Yuan et al. 2024 §4), whose two sides differ in one word."""

from __future__ import annotations

STYLES: dict[str, str] = {
    "single-token": "{Label}",
    "short-suffix": "{Label} sentiment.",
    "long-suffix": "{Label} sentiment based on my judgement.",
    "prefix-suffix": "It has a {label} sentiment based on my judgement.",
}
"""Style → response; ``{label}`` is the sentiment, ``{Label}`` the same with a capital."""


def sentiment_prompt(statement: str) -> str:
    """The prompt about a statement. It ends in a space, so that a label is the same token in every style."""
    return f"{statement}\nSentiment: "


def sentiment_response(style: str, label: str) -> str:
    """The response of a style that states ``label``."""
    return STYLES[style].format(label=label, Label=label.capitalize())
