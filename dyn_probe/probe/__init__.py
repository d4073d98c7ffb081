"""The recorder: schedule, engine and rows for the trace, for any training loop."""

from dyn_probe.probe.recorder import Probe

__all__ = ["Probe"]
