"""Unknown names answered with the nearest one: lives in ``dyn_probe.errors``, where every room reaches it."""

from dyn_probe.errors import unknown

__all__ = ["unknown"]
