"""Run by Python at its start in a command that is recorded: the user's own ``sitecustomize``, then a watch on imports.

Nothing is imported here that the command would not import itself, and no error leaves this file.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

WATCHED = "transformers.trainer"


def run_own() -> None:
    """The ``sitecustomize`` that would have been run without this one."""
    here = Path(__file__).resolve().parent
    others = [place for place in sys.path if Path(place or ".").resolve() != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


class Watch:
    """Calls ``attach`` once the watched module has been imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's ordinary spec, with a loader that tells."""
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                attach(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def attach(module: ModuleType) -> None:
    """Put the recorder among the callbacks of every trainer."""
    try:
        from dyn_probe.attach.injected import FindTrainer

        module.DEFAULT_CALLBACKS.append(FindTrainer)  # type: ignore[attr-defined]
    except Exception as error:
        print(f"dyn-probe: nothing is recorded in this process: {error}", file=sys.stderr)


with suppress(Exception):
    sys.meta_path.insert(0, Watch())  # type: ignore[arg-type]
run_own()
