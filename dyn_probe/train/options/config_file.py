"""A run's options from a YAML file, with options given elsewhere on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput, TraceError, unknown
from dyn_probe.objectives.options import parse
from dyn_probe.trace.manifest import read_manifest, typed
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.option_values import read_value

MAY_CHANGE = ("out", "save", "checkpoint_every", "keep_checkpoints", "device", "strict", "resume")
"""Fields that may differ in a resumed run."""


def make_config(file: str | Path | None = None, given: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration in a YAML file (where one is named), ``given`` over it, defaults for the rest.

    With ``resume`` the rest is what the run in ``out`` was recorded with.

    Args:
        file: a YAML mapping of option names, with hyphens or underscores, to values.
        given: option name → value; these win.

    Raises:
        BadInput: the file cannot be read, an option is unknown, or a value does not fit.
    """
    values = read_yaml(Path(file)) if file is not None else {}
    over = field_names(given or {}, "the options given")
    values = without_overruled(values, over) | over
    config = RunConfig(**values)
    return resumed(config, tuple(values)) if config.resume else config


def without_overruled(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A file's ``values`` without the hyper-parameters that ``over`` gives in another form (``--beta``, ``--set`` or
    ``--objective NAME:KEY=VALUE``)."""
    inline = parse(over["objective"])[1] if isinstance(over.get("objective"), str) else {}
    named = {*inline, *_settings(over), *(["beta"] if over.get("beta") is not None else [])}
    kept = {name: value for name, value in values.items() if not (name == "beta" and "beta" in named)}
    if "hyper" in kept and named:
        kept["hyper"] = {name: value for name, value in _settings(kept).items() if name not in named}
    return kept


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that ``set`` gives; none where it cannot be parsed (``RunConfig`` says why)."""
    read, complaint = read_value(OPTIONS["hyper"], values.get("hyper", {}))
    return {} if complaint else dict(read)


def resumed(config: RunConfig, given: Sequence[str]) -> RunConfig:
    """The configuration of the run in ``config.folder``, to continue it; options in MAY_CHANGE may differ.

    Args:
        given: fields of ``config`` that were given explicitly.

    Raises:
        BadInput: the folder holds no run of this loop, or another option was given another value.
    """
    saved = _recorded(config.folder)
    old = RunConfig(**{name: value for name, value in saved.items() if name in OPTIONS} | {"force": False})
    changed = [n for n in given if n not in MAY_CHANGE and getattr(config, n) != getattr(old, n)]
    if changed:
        said = "; ".join(f"{OPTIONS[n].name} was {getattr(old, n)!r}, now {getattr(config, n)!r}" for n in changed)
        free = ", ".join(OPTIONS[n].name for n in MAY_CHANGE)
        raise BadInput(f"a resumed run keeps its options: {said}; leave them out (only these may change: {free})")
    fresh: dict[str, Any] = {n: getattr(config, n) for n in given if n in MAY_CHANGE}
    return replace(old, **fresh | {"out": str(config.folder), "resume": True})


def _recorded(folder: Path) -> dict[str, Any]:
    """Options that the run in ``folder`` was recorded with."""
    try:
        saved = typed(read_manifest(folder)).config
    except TraceError as error:
        raise BadInput(f"--resume needs the folder of a run in --out: {error}") from error
    if not saved:
        raise BadInput(f"{folder} was not recorded by dyn-probe record: its run.json has no options to continue with")
    return saved


def read_yaml(path: Path) -> dict[str, Any]:
    """Field name → value of a YAML file."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a number of 5,000 digits
        said = " ".join(str(error).split())
        raise BadInput(f"cannot read {path}: {said}; wanted YAML with one `option: value` per line") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise BadInput(f"{path}: wanted `option: value` lines; got a {type(content).__name__}")
    return field_names(content, str(path))


def field_names(values: Mapping[Any, Any], place: str) -> dict[str, Any]:
    """The same values by field name; options may be written with hyphens or underscores.

    Raises:
        BadInput: unknown options, or one given twice; all of them are listed.
    """
    fields = {option.name: name for name, option in OPTIONS.items()}
    found: dict[str, Any] = {}
    wrong = []
    for key, value in values.items():
        name = fields.get(str(key).replace("_", "-")) or (key if key in OPTIONS else None)
        if name is None:
            wrong.append(unknown("option", str(key), fields))
        elif name in found:
            wrong.append(f"option {OPTIONS[name].name} is given twice")
        else:
            found[name] = value
    if wrong:
        raise BadInput(f"{place}: " + "; ".join(wrong))
    return found
