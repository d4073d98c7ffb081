"""Probe responses as token ids. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.mass.probes import ProbeSet, SkippedResponse, listed


@dataclass(frozen=True)
class TokenResponse:
    """One probe response as tokens: ``ids`` of prompt and response; the response begins at index ``start``."""

    prompt_id: str
    kind: str
    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class TokenProbes:
    """A probe set as tokens, and everything that was skipped.

    Raises:
        BadInput: no response remains; the message says what was skipped.
    """

    responses: tuple[TokenResponse, ...]
    skipped: tuple[SkippedResponse, ...] = ()

    def __post_init__(self) -> None:
        if not self.responses:
            raise BadInput(f"no probe response can be measured. {listed(self.skipped)}")

    def __len__(self) -> int:
        return len(self.responses)


def encode_probes(
    probes: ProbeSet, tokenizer: Any, *, max_length: int | None = None, append_eos: bool = True
) -> TokenProbes:
    """Token ids of every response; those longer than ``max_length`` are skipped and listed, never truncated.

    The response begins where the tokens of prompt and of prompt+response first differ, and ends with the
    end-of-sequence token, as in the preference trainers.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens of prompt and response together.
        append_eos: end every response with the tokenizer's end-of-sequence token, if it has one, except those that
            were cut off (``ProbePrompt.unfinished``).
    """
    responses, skipped = [], list(probes.skipped)
    end = getattr(tokenizer, "eos_token_id", None) if append_eos else None
    for prompt in probes.prompts:
        alone = token_ids(tokenizer, prompt.prompt)
        for kind, text in prompt.responses.items():
            ids = token_ids(tokenizer, prompt.prompt + text)
            ids += [] if end is None or kind in prompt.unfinished else [end]
            start = _common_prefix(alone, ids)
            reason = _unusable(len(ids), start, max_length)
            if reason:
                skipped.append(SkippedResponse(prompt.source or prompt.prompt_id, kind, reason))
            else:
                responses.append(TokenResponse(prompt.prompt_id, kind, tuple(ids), start))
    return TokenProbes(tuple(responses), tuple(skipped))


def _unusable(length: int, start: int, max_length: int | None) -> str | None:
    """Why a response of ``length - start`` tokens cannot be measured; None if it can."""
    if start >= length:
        return "empty response: it adds no token to the prompt"
    if start == 0:
        return "there is no token before the response"
    if max_length is not None and length > max_length:
        return f"prompt and response have {length} tokens, more than {max_length}"
    return None


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of ``text``, without an end-of-sequence token that the tokenizer itself adds."""
    ids = [int(i) for i in tokenizer(text)["input_ids"]]
    end = getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Number of equal tokens at the beginning of both."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
