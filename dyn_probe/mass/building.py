"""A probe set built from preference records, with unrelated and shuffled kinds. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from dyn_probe.errors import half_character
from dyn_probe.mass.conversations import answer_text, prompt_text
from dyn_probe.mass.probe_kinds import kinds_of
from dyn_probe.mass.probes import ABSENT, ProbePrompt, ProbeSet, SkippedResponse

DERIVED = ("irr_train", "random_permute", "random_nonhum")
"""Kinds that are made from other responses."""


class PreferenceRecord(Protocol):
    """What a preference record must have: three texts, or three conversations."""

    @property
    def prompt(self) -> Any:
        """The prompt."""

    @property
    def chosen(self) -> Any:
        """The preferred response."""

    @property
    def rejected(self) -> Any:
        """The dispreferred response."""


def build_probe_set(
    records: Iterable[PreferenceRecord | Mapping[str, Any]],
    *,
    prompts: int | None = 64,
    seed: int = 0,
    tokenizer: Any = None,
) -> ProbeSet:
    """A probe set of ``prompts`` records drawn by ``seed``, with the kinds that preference records can give.

    Kinds: chosen, rejected, irr_train (another prompt's chosen), random_permute (the words of chosen,
    shuffled), random_nonhum (the words of yet another prompt's chosen, shuffled). The same records and seed
    give the same set.

    Args:
        records: objects or mappings with ``prompt``, ``chosen``, ``rejected``; a repeated prompt counts once. In a
            conversation the prompt is written by the chat template, the answer is its one message's content.
        prompts: how many to draw; None takes all.
        tokenizer: whose chat template writes conversations; without one, as ``User: …`` and ``Assistant:`` lines.

    Raises:
        BadInput: no record can be used.
    """
    skipped: list[SkippedResponse] = []
    usable = _usable(records, tokenizer, skipped)
    if prompts is not None and len(usable) > prompts:
        keep = set(random.Random(f"{seed}:prompts").sample(range(len(usable)), prompts))
        usable = [prompt for i, prompt in enumerate(usable) if i in keep]
    return with_unrelated(ProbeSet(tuple(usable), tuple(skipped)), seed=seed)


def with_unrelated(probe_set: ProbeSet, *, seed: int = 0) -> ProbeSet:
    """The same set with irr_train, random_permute and random_nonhum made from its chosen responses, if it has no
    unrelated or shuffled kind, as a file of preference pairs has none. Any other set is returned unchanged."""
    if set(probe_set.kinds) & set(kinds_of("others")) or "chosen" not in probe_set.kinds:
        return probe_set
    skipped = [one for one in probe_set.skipped if not (one.kind in DERIVED and one.reason.startswith(ABSENT))]
    having = [prompt for prompt in probe_set.prompts if "chosen" in prompt.responses]
    texts = [prompt.responses["chosen"] for prompt in having]
    more = {p.prompt_id: _derived(i, p, texts, seed, skipped) for i, p in enumerate(having)}
    prompts = tuple(replace(p, responses={**p.responses, **more.get(p.prompt_id, {})}) for p in probe_set.prompts)
    made = tuple(kind for kind in DERIVED if any(kind in texts for texts in more.values()))
    return ProbeSet(prompts, tuple(skipped), made)


def shuffle_words(text: str, seed: str) -> str | None:
    """``text`` with its words in a different order, keeping its leading space; None if there is no other order."""
    words = text.split()
    if len(set(words)) < 2:
        return None
    shuffled, draw = list(words), random.Random(seed)
    while shuffled == words:
        draw.shuffle(shuffled)
    return text[: len(text) - len(text.lstrip())] + " ".join(shuffled)


def _usable(
    records: Iterable[PreferenceRecord | Mapping[str, Any]], tokenizer: Any, skipped: list[SkippedResponse]
) -> list[ProbePrompt]:
    """Records with three non-empty texts, one per prompt, in order."""
    found: dict[str, ProbePrompt] = {}
    for number, record in enumerate(records, start=1):
        source = str(_field(record, "source") or f"record {number}")
        fields = {name: answer_text(_field(record, name), tokenizer) for name in ("chosen", "rejected")}
        extra = _field(record, "tools") or (), _field(record, "template_options")
        fields["prompt"] = prompt_text(_field(record, "prompt"), tokenizer, *extra)
        wrong = [name for name, text in fields.items() if not isinstance(text, str) or not text.strip()]
        broken = {name: half_character(text) for name, text in fields.items() if name not in wrong}
        if any(broken.values()):
            skipped += [SkippedResponse(source, name, said) for name, said in broken.items() if said]
        elif wrong:
            skipped += [
                SkippedResponse(source, name, "wanted non-empty text, or a conversation whose answer is one message")
                for name in wrong
            ]
        elif fields["prompt"] in found:
            skipped.append(SkippedResponse(source, "*", f"same prompt as {found[fields['prompt']].source}"))
        else:
            responses = {"chosen": fields["chosen"], "rejected": fields["rejected"]}
            found[fields["prompt"]] = ProbePrompt(fields["prompt"], responses, source)
    return list(found.values())


def _derived(
    index: int, prompt: ProbePrompt, texts: list[str], seed: int, skipped: list[SkippedResponse]
) -> dict[str, str]:
    """The unrelated and shuffled kinds of one prompt."""
    name = f"{seed}:{prompt.prompt_id}"
    others = _unrelated(index, set(prompt.responses.values()), texts, random.Random(f"{name}:unrelated"))
    answers = {
        "irr_train": others[0] if others else None,
        "random_permute": shuffle_words(prompt.responses["chosen"], f"{name}:random_permute"),
        "random_nonhum": shuffle_words(others[-1], f"{name}:random_nonhum") if others else None,
    }
    for kind, text in answers.items():
        if text is None:
            none_left = not others and kind != "random_permute"
            reason = "no other prompt has a different answer" if none_left else "fewer than two different words"
            skipped.append(SkippedResponse(prompt.source, kind, f"cannot be built: {reason}"))
    return {kind: text for kind, text in answers.items() if text is not None}


def _unrelated(index: int, own: set[str], texts: list[str], draw: random.Random) -> list[str]:
    """Up to two chosen responses of other prompts, different from this prompt's own and from each other."""
    start = draw.randrange(len(texts))
    found: list[str] = []
    for i in range(len(texts)):
        at = (start + i) % len(texts)
        if at != index and texts[at] not in own and texts[at] not in found:
            found.append(texts[at])
        if len(found) == 2:
            break
    return found


def _field(record: PreferenceRecord | Mapping[str, Any], name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)
