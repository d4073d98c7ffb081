"""Conversations as a prompt text and an answer text, since probe sets consist of text. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def prompt_text(
    prompt: Any, tokenizer: Any, tools: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> Any:
    """A conversation up to the beginning of the answer, by the chat template; anything else unchanged.

    Without a template: ``User: …`` lines and ``Assistant:``. A beginning-of-sequence token that the tokenizer adds
    itself is removed.

    Args:
        tools: schemas of functions that the template shows.
        options: further variables of the template.
    """
    if not _is_conversation(prompt):
        return prompt
    if getattr(tokenizer, "chat_template", None) is None:
        turns = [f"{message['role'].capitalize()}: {message['content']}" for message in prompt]
        return "\n".join([*turns, "Assistant:"])
    text = tokenizer.apply_chat_template(
        list(prompt), tools=list(tools) or None, tokenize=False, add_generation_prompt=True, **(options or {})
    )
    start = getattr(tokenizer, "bos_token", None)
    doubled = bool(start) and text.startswith(start) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if doubled else text


def answer_text(answer: Any, tokenizer: Any) -> Any:
    """The content of an answer of one message; anything else, such as an answer of several turns, unchanged."""
    if not _is_conversation(answer) or len(answer) != 1:
        return answer
    content = answer[0]["content"]
    return content if getattr(tokenizer, "chat_template", None) else f" {content}"


def _is_conversation(value: Any) -> bool:
    """Whether ``value`` is a sequence of messages with role and content as text."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in value
        )
    )
