"""The run's own command with a remedy's options in it: what to type, whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

START = ["dyn-probe", "record"]
FLAGS = ("--force", "--resume")
"""Options without a value that are of that one run."""
PLACES = ("--out",)
LEFT_OUT = re.compile(r"\s*\(leave out ([^)]*)\)$")


def whole_command(manifest: Mapping[str, Any], typed: str, key: str) -> str:
    """The run's own command with the remedy's options in place of its own, and a folder beside its own.

    Args:
        manifest: the run's run.json; its `command` must be one of `dyn-probe record` with its own loop.
        typed: the remedy's options, as the fix table has them.
        key: the remedy's name, the end of the new folder's.

    Returns:
        The command; empty where the run was not recorded by such a command, where some of its options stand in a file
        (``--config``), or where it cannot be read.
    """
    try:
        own = shlex.split(str(manifest.get("command") or ""))
    except ValueError:
        return ""
    if own[: len(START)] != START or "--" in own or any(one.partition("=")[0] == "--config" for one in own):
        return ""
    dropped = LEFT_OUT.search(typed)
    added = shlex.split(typed[: dropped.start()] if dropped else typed)
    replaced = {option for option in added if option.startswith("--") and option != "--set"} - {"--shaping"}
    replaced |= set(dropped.group(1).split(", ")) if dropped else set()
    named = {value.partition("=")[0] for option, value in pairwise(added) if option == "--set"}
    kept = _without(own[len(START) :], replaced | set(PLACES), named)
    out = f"{str(manifest.get('config', {}).get('out') or 'runs/run').rstrip('/')}-{key.replace('_', '-')}"
    return shlex.join([*START, "--out", out, *kept, *added])


def _without(own: list[str], options: set[str], named: set[str]) -> list[str]:
    """The run's options without `options`, without its flags, and without the hyper-parameters in `named`."""
    kept, place = [], 0
    while place < len(own):
        option, inline, value = own[place].partition("=")
        taken = 1
        if not inline and place + 1 < len(own) and not own[place + 1].startswith("--") and option.startswith("--"):
            taken, value = 2, own[place + 1]
        away = option in options or option in FLAGS or (option == "--set" and value.partition("=")[0] in named)
        kept += [] if away else own[place : place + taken]
        place += taken
    return kept
