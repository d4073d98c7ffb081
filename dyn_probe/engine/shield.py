"""Around what runs inside somebody else's forward, backward or optimizer step: an error of ours must not end theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


class Shield:
    """Keeps the first error of the hooks that it is put around; from then on they do nothing.

    Args:
        on: False lets errors through, and hooks run as they are.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self.failure: Exception | None = None

    def around(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """``hook``, shielded; it gives None where it fails or has ceased."""
        if not self.on:
            return hook

        @wraps(hook)
        def shielded(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None:
                return None
            try:
                return hook(*args, **kwargs)
            except Exception as error:
                self.failure = error
                return None

        return shielded

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.failure is not None:
            raise self.failure
