"""A run's options from a YAML file, with options given elsewhere on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.train.choices import unknown
from dyn_probe.train.config import OPTIONS, RunConfig


def make_config(file: str | Path | None = None, given: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration in a YAML file (where one is named), ``given`` over it, defaults for the rest.

    Args:
        file: a YAML mapping of option names, with hyphens or underscores, to values.
        given: option name → value; these win.

    Raises:
        BadInput: the file cannot be read, an option is unknown, or a value does not fit.
    """
    values = read_yaml(Path(file)) if file is not None else {}
    return RunConfig(**values | field_names(given or {}, "the options given"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Field name → value of a YAML file."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise BadInput(f"cannot read {path}: {said}; wanted YAML, one `option: value` per line") from error
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
