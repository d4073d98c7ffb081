"""The kinds of probe response: one row per kind, with the group in which it is averaged. No torch.

Names and meanings are those of Ren & Sutherland 2024 (arXiv 2407.10490, §4 and its published probe files).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind: the group that run-level figures average it in, and what the response is."""

    group: str
    meaning: str


KINDS: dict[str, Kind] = {
    "chosen": Kind("chosen", "the preferred response"),
    "chosen_initial": Kind("near", "the model's own answer before training"),
    "chosen_gptsemantic": Kind("near", "chosen, rephrased"),
    "chosen_gptformat": Kind("near", "same form as chosen, different meaning"),
    "rejected": Kind("rejected", "the dispreferred response"),
    "reject_gptsemantic": Kind("near", "rejected, rephrased"),
    "reject_gptformat": Kind("near", "same form as rejected, different meaning"),
    "irr_train": Kind(
        "others", "chosen response of another prompt of the same data; in the published files, of a training prompt"
    ),
    "irr_test": Kind("others", "chosen response of a held-out prompt"),
    "irr_hum": Kind("others", "an unrelated human sentence"),
    "random_permute": Kind("others", "the words of chosen, shuffled"),
    "random_nonhum": Kind("others", "the words of an unrelated response, shuffled"),
}
"""Kind → group and meaning. Δothers averages the group ``others``; ``near`` is in no run-level figure."""

GROUPS = ("chosen", "rejected", "others")
"""Groups that the squeezing index compares."""

IGNORED_FIELDS: dict[str, str] = {
    "prompt": "the prompt itself",
    "chosen_selfr": "self-generated reasons; in the published files, but not measured by the published code",
}
"""Fields of the published files that are not kinds, and why."""


def kinds_of(group: str) -> tuple[str, ...]:
    """Names of the kinds in ``group``, in table order."""
    return tuple(name for name, kind in KINDS.items() if kind.group == group)
