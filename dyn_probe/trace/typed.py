"""JSON ↔ dataclasses: a value is checked against the annotations, and what does not fit is named by its place.

A class says what a JSON object holds: a field per entry, ``entry(meaning)`` where it may be absent. Annotations may be
``str``, ``int``, ``float``, ``bool``, ``Any``, another such class, ``tuple[X, ...]`` (a list), ``dict[str, X]``, and
each of them ``| None``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")

LARGEST = 2**63 - 1
MOST = 5
"""Entries of a class that a complaint names."""
INFINITE = ("inf", "-inf")
"""How numbers stand in JSON that JSON does not have."""


def entry(meaning: str, default: Any = None, *, factory: Callable[[], Any] | None = None, **more: Any) -> Any:
    """A field of such a class: what it means, and its value where the entry is absent."""
    metadata = {"meaning": meaning, **more}
    return field(default_factory=factory, metadata=metadata) if factory else field(default=default, metadata=metadata)


def needed(meaning: str, **more: Any) -> Any:
    """A field that is an error where the entry is absent."""
    return field(metadata={"meaning": meaning, **more})


def entries(kind: Any) -> dict[str, tuple[Any, Field[Any]]]:
    """Name → (annotation, field) of a class."""
    return _entries(kind)


@cache
def _entries(kind: Any) -> dict[str, tuple[Any, Field[Any]]]:
    hints = get_type_hints(kind)
    return {one.name: (hints[one.name], one) for one in fields(kind)}


@dataclass(frozen=True)
class Described:
    """An entry for a reader: its place, its type in words, its meaning, and whether it is marked ``own``."""

    place: str
    kind: str
    meaning: str
    own: bool


def described(kind: Any, prefix: str = "", own: bool = False) -> Iterator[Described]:
    """Every entry of a class, those of the classes within it after it: ``objective.shaping[].name``."""
    for name, (hint, one) in entries(kind).items():
        place, mine = f"{prefix}{name}", own or bool(one.metadata.get("own"))
        inner, mark = _inner(hint)
        kind = "mapping" if is_dataclass(_bare(hint)) else said(_bare(hint)).removeprefix("a ")
        yield Described(place, kind, one.metadata["meaning"], mine)
        if is_dataclass(inner):
            yield from described(inner, f"{place}{mark}.", mine)


def _inner(hint: Any) -> tuple[Any, str]:
    """The class that an annotation holds, and how a place within it is written."""
    kind, origin = _bare(hint), get_origin(_bare(hint))
    marks = {tuple: "[]", dict: ".*"}
    return (get_args(kind)[0 if origin is tuple else 1], marks[origin]) if origin in marks else (kind, "")


def _bare(hint: Any) -> Any:
    """An annotation without its ``| None``."""
    (kind,) = (one for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if one is not type(None))
    return kind


def read(kind: type[Kind], value: object, place: str, problems: list[str]) -> Kind | None:
    """The JSON object as ``kind``; entries that the class does not know are passed over.

    Args:
        value: what came from JSON. A text stands for an object that has a ``name`` and nothing else.
        place: where it stands, for the complaints.
        problems: takes a complaint for each entry that is missing or does not fit. It then has its default, and is
            left out of a list or mapping; what stands beside it is kept.
    """
    if isinstance(value, str) and "name" in entries(kind):
        value = {"name": value}
    if not isinstance(value, Mapping):
        problems.append(f"{place or 'the content'}: wanted {said(kind)}, came {shown(value)}")
        return None
    found: dict[str, Any] = {}
    for name, (hint, one) in entries(kind).items():
        where = f"{place}.{name}".lstrip(".")
        if name in value:
            read_value = _value(hint, value[name], where, problems)
            if read_value is not MISSING:
                found[name] = read_value
        elif one.default is MISSING and one.default_factory is MISSING:
            problems.append(f"{where}: is missing")
    complete = all(name in found or not _is_needed(one) for name, (_, one) in entries(kind).items())
    return kind(**found) if complete else None


def _is_needed(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _value(hint: Any, value: object, place: str, problems: list[str]) -> Any:
    """``value`` as ``hint`` has it; MISSING, and a complaint, where it does not fit."""
    kind = _bare(hint)
    if (value is None and kind is not hint) or kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        made = read(kind, value, place, problems)
        return MISSING if made is None else made
    inner = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        listed = (_value(inner[0], one, f"{place}[{number}]", problems) for number, one in enumerate(value))
        return tuple(one for one in listed if one is not MISSING)
    if get_origin(kind) is dict and isinstance(value, Mapping):
        named = {str(key): _value(inner[1], one, f"{place}.{key}", problems) for key, one in value.items()}
        return {key: one for key, one in named.items() if one is not MISSING}
    if kind in _SCALARS and _SCALARS[kind](value):
        return float(value) if kind is float else value  # type: ignore[arg-type]
    problems.append(f"{place}: wanted {said(hint)}, came {shown(value)}")
    return MISSING


def _is_number(value: Any) -> bool:
    return value in INFINITE if isinstance(value, str) else isinstance(value, float) or _is_whole(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


_SCALARS: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int: _is_whole,
    float: _is_number,
}
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Any: "anything"}


def said(hint: Any) -> str:
    """An annotation in words."""
    kind, absent = _bare(hint), "" if _bare(hint) is hint else " or null"
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return f"a list of {_plural(inner[0])}{absent}"
    if get_origin(kind) is dict:
        return f"a mapping{'' if inner[1] is Any else f' to {_plural(inner[1])}'}{absent}"
    if kind in _NAMES:
        return _NAMES[kind] + absent
    names = list(entries(kind))
    return f"a mapping with {', '.join(names[:MOST])}{', …' if len(names) > MOST else ''}{absent}"


def _plural(kind: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "numbers", Any: "values"}.get(kind, "mappings")


def shown(value: object) -> str:
    """A value for a complaint, cut to a line."""
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return f"a {type(value).__name__} too large to show"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def plain(value: Any, place: str, problems: list[str]) -> Any:
    """A Python value as JSON has it: paths as text, NumPy and torch scalars as numbers, NaN as null.

    Args:
        problems: takes a complaint for each value that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one, f"{place}.{key}".lstrip("."), problems) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{place}[{number}]", problems) for number, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist(), place, problems)
    problems.append(f"{place} = {value!r} ({type(value).__name__})")
    return None
