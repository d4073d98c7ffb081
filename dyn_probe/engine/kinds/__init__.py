"""The table of kinds of use, asked from the first to the last.

A newcomer owes four functions: ``claims(module)``, ``check(call)`` (whether the module computes what the kind says),
``keep(call)`` (put what the backward needs into ``call.saved``) and ``factors(call, saved, grads)`` (each trained
parameter's gradient per row, in one of the forms of ``engine/factors.py``); and ``alike(call)`` if small
calls may be reduced together. The smallest example is ``scale.py``.
"""

from __future__ import annotations

from dyn_probe.engine.kinds import embedding, generic, linear, scale
from dyn_probe.engine.uses import Kind

KINDS: tuple[Kind, ...] = (
    Kind("linear", linear.claims, linear.check, linear.keep, linear.factors, linear.alike, computes=False),
    Kind("embedding", embedding.claims, embedding.check, embedding.keep, embedding.factors),
    Kind("scale", scale.claims, scale.check, scale.keep, scale.factors, scale.alike, computes=False),
    Kind("generic", generic.claims, generic.check, generic.keep, generic.factors),
)
