"""The study of the gate judged: what its constants change, and whether it helps once a policy has collapsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report.style import CASE_COLOURS, NEUTRAL, RUN_COLOURS, name_panel, new_figure, rule
from dyn_probe.studies.arms.arm_manifest import ArmManifest
from dyn_probe.studies.arms.claim_rows import Claim
from dyn_probe.studies.arms.gate_arms import COLLAPSED, DPO, LARGER_DPO, USUAL, VALUES
from dyn_probe.studies.arms.objective_page import by_name
from dyn_probe.studies.claims import pooled

NARROW = {"seq": (0.08, 0.15), "q10": (0.003, 0.008)}
"""Gate → range of τ within which the paper finds the result to be the same."""

COLUMNS: dict[str, str] = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "delta_others": "Δ others",
    "delta_argmax": "Δ argmax",
    "gated": "gating rate",
}


def arm_named(gate: str, option: str, value: float) -> str:
    """The arm in which one option of a gate has a value."""
    return f"gate-{gate}" if value == USUAL[gate][option] else f"gate-{gate} {option}={value:g}"


def _helps(name: str, against: str, what: str) -> tuple[Claim, Claim]:
    return (
        Claim(f"{what}: chosen", "Δ chosen − DPO's > 0", name, "delta_chosen", against=against),
        Claim(f"{what}: others", "Δ others − DPO's > 0", name, "delta_others", against=against),
    )


CLAIMS = (
    Claim("chosen falls under DPO", "Δ chosen < 0", DPO, "delta_chosen", above=False),
    *(row for gate in VALUES for row in _helps(f"gate-{gate}", DPO, f"gate-{gate} helps")),
    *(
        row
        for gate, (low, high) in NARROW.items()
        for value in (low, high)
        for row in _helps(arm_named(gate, "tau", value), DPO, f"gate-{gate} helps with τ = {value:g}")
    ),
    *(
        row
        for gate in VALUES
        for value in (10.0, 100.0)
        for row in _helps(arm_named(gate, "alpha", value), DPO, f"gate-{gate} helps with α = {value:g}")
    ),
    *(
        Claim(
            f"a higher τ of gate-{gate} closes it more often", "gating rate at the highest τ − at the lowest > 0",
            arm_named(gate, "tau", VALUES[gate]["tau"][-1]), "gated",
            against=arm_named(gate, "tau", VALUES[gate]["tau"][0]),
        )
        for gate in VALUES
    ),
    *(
        row
        for gate in VALUES
        for row in _helps(f"{COLLAPSED}gate-{gate}", COLLAPSED + DPO, f"gate-{gate} helps a collapsed policy")
    ),
    *(
        Claim(
            f"a small model under gate-{gate} keeps chosen above a larger one's DPO", "Δ chosen − larger DPO's > 0",
            f"gate-{gate}", "delta_chosen", against=LARGER_DPO,
        )
        for gate in VALUES
    ),
    *(
        Claim(
            f"gate-{gate} brings chosen back after a collapse", "Δ chosen > 0", f"{COLLAPSED}gate-{gate}",
            "delta_chosen",
        )
        for gate in VALUES
    ),
)  # fmt: skip
"""The sensitivity that Mouiche 2026 reports, a gate beside a larger model, and whether a gate can undo a collapse."""


def sweeps(arms: Sequence[ArmManifest]) -> Figure:
    """Δ chosen and Δ others (nats per sequence) and the gating rate against one constant of the gate at a time, the
    others as published; dashed: DPO without a gate. Dots: mean over seeds; bars: two standard errors."""
    named = by_name(arms)
    panels = [(gate, option) for gate, options in VALUES.items() for option in options]
    figure, axes = new_figure(len(panels), height=3.4, width=13)
    for ax, (gate, option) in zip(axes, panels, strict=True):
        letter = {"tau": "τ", "alpha": "α"}.get(option, option)
        name_panel(ax, f"gate-{gate}: {letter}", "nats/sequence", letter)
        for colour, figure_name, label in zip(
            (RUN_COLOURS[0], RUN_COLOURS[1]), ("delta_chosen", "delta_others"), ("Δ chosen", "Δ others"), strict=True
        ):
            found = [(v, named[n]) for v in VALUES[gate][option] if (n := arm_named(gate, option, v)) in named]
            means = [pooled([one.figures[figure_name] for one in seeds]) for _, seeds in found]
            ax.errorbar(
                [value for value, _ in found], [one.value for one in means],
                yerr=[2 * np.nan_to_num(one.error) for one in means], fmt="o-", color=colour, markersize=4, label=label,
            )  # fmt: skip
            if DPO in named:
                plain = pooled([one.figures[figure_name] for one in named[DPO]]).value
                ax.axhline(plain, color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        ax.set_xticks(VALUES[gate][option], [f"{value:g}" for value in VALUES[gate][option]])
        rates = [pooled([one.figures["gated"] for one in seeds]) for _, seeds in found]
        beside = ax.twinx()
        beside.plot([value for value, _ in found], [one.value for one in rates], "s:", color=NEUTRAL, markersize=3)
        beside.set_ylim(0, 1.02)
        beside.set_ylabel("gating rate" if ax is axes[-1] else "", fontsize=8)
    axes[0].legend(frameon=False, fontsize=7.5)
    return figure


def after_collapse(arms: Sequence[ArmManifest]) -> Figure:
    """From a policy that DPO had collapsed: further change of chosen, others and the most probable tokens (nats per
    sequence) under more DPO and under both gates. Bars: mean over seeds; lines: two standard errors."""
    named = by_name(arms)
    names = [name for name in named if name.startswith(COLLAPSED)]
    columns = ("delta_chosen", "delta_others", "delta_argmax")
    figure, axes = new_figure(len(columns), height=2.8)
    for ax, column in zip(axes, columns, strict=True):
        name_panel(ax, COLUMNS[column], "nats/sequence", "")
        means = [pooled([one.figures[column] for one in named[name]]) for name in names]
        labels = [name.removeprefix(COLLAPSED) for name in names]
        errors = [2 * np.nan_to_num(one.error) for one in means]
        ax.bar(labels, [one.value for one in means], yerr=errors, color=CASE_COLOURS[1], width=0.6)
        rule(ax, 0)
    return figure


FIGURES: dict[str, tuple[Callable[[Sequence[ArmManifest]], Figure], str]] = {
    "sweeps": (sweeps, "The gate's constants"),
    "after_collapse": (after_collapse, "From a collapsed policy"),
}
