"""Values of options, from the command line, YAML or Python, converted to the type that the option needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.records import shown
from dyn_probe.errors import did_you_mean

MOST = 2**31 - 1
"""The largest whole number that an option may have: beyond it, counters of PyTorch and NumPy overflow."""


@dataclass(frozen=True)
class RunOption:
    """One option.

    Args:
        help: what it does.
        name: as written after ``--`` and in YAML.
        kind: its Python type: ``int``, ``float``, ``bool``, ``str``, ``int | str`` (a number, or one of ``choices``),
            ``tuple[str, ...]`` or ``dict[str, Any]``, with `` | None`` where the default depends on other options.
        least, below: range of a number, ``least <= value < below``.
        choices: allowed texts; empty allows all.
        default_text: the default in words, where it depends on other options.
    """

    help: str
    name: str = ""
    kind: str = "str"
    least: float | None = None
    below: float = math.inf
    choices: tuple[str, ...] = ()
    default_text: str = ""


def read_value(option: RunOption, value: Any) -> tuple[Any, str]:
    """``value`` in the option's type, and what is wrong with it (empty where nothing is)."""
    kind = option.kind.removesuffix(" | None")
    if value is None and kind != option.kind:
        return None, ""
    return _READERS[kind.partition("[")[0]](option, value)


def _read_number(option: RunOption, value: Any) -> tuple[Any, str]:
    whole = option.kind.startswith("int")
    wanted = _range("a whole number" if whole else "a number", option)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number of hundreds of digits
        number = math.nan
    fits = math.isfinite(number) and (option.least is None or number >= option.least) and number < option.below
    if not fits or (whole and number != int(number)):
        return value, f"must be {wanted}; got {shown(value)}"
    if whole and number > MOST:
        return value, f"must be {wanted}, at most {MOST}; got {shown(value)}"
    return (value if isinstance(value, int) else int(number)) if whole else number, ""


def _read_number_or_word(option: RunOption, value: Any) -> tuple[Any, str]:
    if isinstance(value, str) and value in option.choices:
        return value, ""
    number, complaint = _read_number(option, value)
    if not complaint:
        return number, ""
    wanted = " or ".join([_range("a whole number", option), *option.choices])
    hint = did_you_mean(value, option.choices) if isinstance(value, str) else ""
    return value, f"must be {wanted}; got {shown(value)}{hint}"


def _range(noun: str, option: RunOption) -> str:
    least = [] if option.least is None else [f"of at least {option.least:g}"]
    below = [] if option.below == math.inf else [f"below {option.below:g}"]
    return " ".join([noun, " and ".join([*least, *below])]).strip()


def _read_bool(option: RunOption, value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, bool) else f"must be true or false; got {shown(value)}"


def _read_text(option: RunOption, value: Any) -> tuple[Any, str]:
    text = str(value) if hasattr(value, "__fspath__") else value
    if not isinstance(text, str):
        return value, f"must be text; got {shown(value)}"
    if option.choices and text not in option.choices:
        hint = did_you_mean(text, option.choices)
        return value, f"must be {' or '.join(option.choices)}; got {shown(value)}{hint}"
    return text, ""


def _read_texts(option: RunOption, value: Any) -> tuple[Any, str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        return value, f"must be a list of texts; got {shown(value)}"
    return tuple(texts), ""


def _read_mapping(option: RunOption, value: Any) -> tuple[Any, str]:
    """A mapping, or a list of ``NAME=VALUE``."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}, ""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence):
        return value, f"must be NAME=VALUE; got {shown(value)}"
    found = {}
    for text in texts:
        key, equals, item = str(text).partition("=")
        if not (key.strip() and equals and item.strip()):
            return value, f"must be NAME=VALUE; got {shown(text)}"
        found[key.strip()] = item.strip()
    return found, ""


_READERS = {
    "int": _read_number,
    "int | str": _read_number_or_word,
    "float": _read_number,
    "bool": _read_bool,
    "str": _read_text,
    "tuple": _read_texts,
    "dict": _read_mapping,
}
