"""What stands behind the first screen, folded by question: which verdicts and which figures answer it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One fold of the page: its anchor, its title, topics of VERDICTS, rows of FIGURES."""

    name: str
    title: str
    topics: tuple[str, ...]
    figures: tuple[str, ...]


STORY = "story"
"""The figure of the first screen, which no fold repeats."""

QUESTIONS: tuple[Question, ...] = (
    Question(
        "why",
        "Why?",
        ("movement", "pushes", "cases", "change", "shaping"),
        (
            "log_probs",
            "margin",
            "pushes",
            "cases",
            "entanglement",
            "effective_magnitudes",
            "pulls",
            "shaping",
        ),
    ),
    Question("which-pairs", "Which pairs?", ("pairs",), ("movement", "likeness")),
    Question(
        "which-tokens",
        "Which tokens and layers?",
        ("layers",),
        ("response_parts", "layers", "token_heat", "token_evolution", "token_parts"),
    ),
    Question(
        "mass",
        "Where did the mass go?",
        ("mass",),
        (
            "mass",
            "mass_split",
            "mass_entropy",
            "margin_for_kl",
            "gate_kinds",
            "mass_distributions",
            "squeezing_toy",
        ),
    ),
    Question("gradient-norm", "Is the gradient norm sound?", ("gradient",), ("grad_norms", "clipping")),
    Question("trust", "Can I trust it?", ("prediction", "trust"), ("predicted",)),
)
"""The folds in the order of the page; every topic and every figure but STORY stands in one of them (held by a test)."""
