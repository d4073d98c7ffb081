"""The study of objectives judged: Figures 1, 2, 5 and 6 of Yuan et al. 2024, method by method. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report.style import RUN_COLOURS, SIDE_COLOURS, name_panel, rule, tidy
from dyn_probe.studies.arms.arm_manifest import ArmManifest
from dyn_probe.studies.arms.claim_rows import Claim
from dyn_probe.studies.arms.objective_arms import METHODS
from dyn_probe.studies.claims import Estimate, pooled

RAISE = ("SPPO", "CPO", "DPOP", "RRHF", "SLiC-HF")
"""Methods under which chosen rises in the paper's Figure 2."""

CLAIMS = (
    *(Claim(f"{name} raises chosen (Fig. 2)", "Δ chosen > 0", name, "chosen") for name in RAISE),
    *(
        Claim(f"{name} lowers {side} (Fig. 2)", f"Δ {side} < 0", name, side, above=False)
        for name in ("DPO", "R-DPO")
        for side in ("chosen", "rejected")
    ),
    *(
        Claim(f"{name} lowers {side} per token (Fig. 2)", f"Δ {side}/n < 0", name, f"{side}_token", above=False)
        for name in ("SimPO", "IPO")
        for side in ("chosen", "rejected")
    ),
    Claim("the two gradients are aligned under DPO (Fig. 5)", "cosine > 0 at the start", "DPO", "cosine_start"),
    Claim("chosen and rejected move together under DPO (Fig. 1)", "synchrony > 0", "DPO", "synchrony"),
    Claim("DPO★ raises chosen", "Δ chosen > 0", "DPO★", "chosen"),
    Claim("DPO★ lowers rejected", "Δ rejected < 0", "DPO★", "rejected", above=False),
    Claim("DPO★ keeps chosen above DPO's", "Δ chosen − DPO's > 0", "DPO★", "chosen", against="DPO"),
    Claim(
        "AdaDPO balances d/p per token", "|log of d_w/p_w : d_l/p_l| smaller than DPO's", "AdaDPO", "imbalance",
        above=False, against="DPO",
    ),
    Claim("AdaDPO widens the margin beyond DPO's", "margin − DPO's > 0", "AdaDPO", "margin", against="DPO"),
    Claim(
        "extended SFT squeezes less than SFT", "squeezing index − after SFT < 0", "DPO, extended SFT", "index",
        above=False, against="DPO",
    ),
    Claim(
        "extended SFT keeps chosen above SFT's", "Δ chosen − after SFT > 0", "DPO, extended SFT", "chosen",
        against="DPO",
    ),
    Claim("CHES ranks the pairs that displace", "rank correlation > 0", "DPO", "ches_rank"),
)  # fmt: skip
"""What the paper's figures say of its ten methods, what §5.1 says of DPO★, AdaDPO's own claim, and
those of extended SFT and CHES."""

COLUMNS: dict[str, str] = {
    "chosen": "Δ chosen, training pairs",
    "held_chosen": "held-out",
    "rejected": "Δ rejected, training pairs",
    "held_rejected": "held-out",
    "cosine_start": "cosine, start",
    "cosine_end": "end",
    "synchrony": "synchrony",
    "accuracy": "accuracy, held-out",
}
"""Figure → its title on the page."""


def mean_curve(arms: Sequence[ArmManifest], name: str) -> tuple[list[float], np.ndarray]:
    """(steps, mean over seeds of a curve)."""
    return arms[0].curves["step"], np.mean([one.curves[name] for one in arms], axis=0)


def by_name(arms: Sequence[ArmManifest]) -> dict[str, list[ArmManifest]]:
    """Arm → its manifests, by seed, in the order in which they were planned."""
    found: dict[str, list[ArmManifest]] = {}
    for one in arms:
        found.setdefault(one.arm, []).append(one)
    return found


def sides(arms: Sequence[ArmManifest]) -> Figure:
    """Mean log-probability of chosen and rejected over the pairs of each recorded step, a panel per method: since the
    reference, or as it is for methods without one; per token for SimPO and IPO, which compare means."""
    named = by_name(arms)

    def draw(ax: object, name: str) -> None:
        token = "_token" if name in METHODS and METHODS[name].token else ""
        for side in ("chosen", "rejected"):
            ax.plot(*mean_curve(named[name], side + token), color=SIDE_COLOURS[side], label=side)  # type: ignore[attr-defined]

    return _grid(list(named), draw, lambda name: "nats/token" if name in METHODS and METHODS[name].token else "nats")


def cosines(arms: Sequence[ArmManifest]) -> Figure:
    """Mean cosine of the gradients of chosen and rejected over the pairs of each recorded step, a panel per method."""
    named = by_name(arms)

    def draw(ax: object, name: str) -> None:
        ax.plot(*mean_curve(named[name], "cosine"), color=RUN_COLOURS[0])  # type: ignore[attr-defined]
        rule(ax, 0)  # type: ignore[arg-type]

    return _grid(list(named), draw, lambda _: "cosine")


def _grid(names: Sequence[str], draw: Callable[[object, str], None], unit: Callable[[str], str]) -> Figure:
    """A panel per name, four in a row."""
    wide = min(4, len(names))
    rows = ceil(len(names) / wide)
    figure = Figure(figsize=(10.5, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, wide, squeeze=False).ravel()
    for ax, name in zip(axes, names, strict=False):
        tidy(ax)
        name_panel(ax, name, unit(name), "step")
        draw(ax, name)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=7.5)
    return figure


FIGURES: dict[str, tuple[Callable[[Sequence[ArmManifest]], Figure], str]] = {
    "sides": (sides, "Both log-probabilities, method by method (Figs. 1 and 2)"),
    "cosines": (cosines, "Cosine of the two gradients (Figs. 5 and 6)"),
}


def rows_of(arms: Sequence[ArmManifest], columns: Sequence[str]) -> list[dict[str, str]]:
    """A row per arm: its name, seeds, and each figure with its standard error, as the page shows them."""
    rows = []
    for name, seeds in by_name(arms).items():
        cells = {column: shown([one.figures[column] for one in seeds if column in one.figures]) for column in columns}
        rows.append({"arm": name, "seeds": str(len(seeds)), **cells})
    return rows


def shown(values: Sequence[Estimate]) -> str:
    """A mean over seeds with its standard error; a dash where there is none."""
    if not values:
        return "–"
    mean = pooled(values)
    error = "" if np.isnan(mean.error) else f" ± {mean.error:.2f}"
    return f"{mean.value:+.2f}{error}".replace("-", "−")
