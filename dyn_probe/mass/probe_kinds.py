"""The kinds of probe response: one row per kind, with the group in which it is averaged. No torch.

Names and meanings are those of Ren & Sutherland 2024 (arXiv 2407.10490, §4 and its published probe files).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProbeKind:
    """One kind: the group that run-level figures average it in, and what the response is."""

    group: str
    meaning: str


KINDS: dict[str, ProbeKind] = {
    "chosen": ProbeKind("chosen", "the preferred response"),
    "chosen_initial": ProbeKind("near", "the model's own answer before training"),
    "chosen_gptsemantic": ProbeKind("near", "chosen, rephrased"),
    "chosen_gptformat": ProbeKind("near", "same form as chosen, different meaning"),
    "rejected": ProbeKind("rejected", "the dispreferred response"),
    "reject_gptsemantic": ProbeKind("near", "rejected, rephrased"),
    "reject_gptformat": ProbeKind("near", "same form as rejected, different meaning"),
    "irr_train": ProbeKind(
        "others", "chosen response of another prompt of the same data; in the published files, of a training prompt"
    ),
    "irr_test": ProbeKind("others", "chosen response of a held-out prompt"),
    "irr_hum": ProbeKind("others", "an unrelated human sentence"),
    "random_permute": ProbeKind("others", "the words of chosen, shuffled"),
    "random_nonhum": ProbeKind("others", "the words of an unrelated response, shuffled"),
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
