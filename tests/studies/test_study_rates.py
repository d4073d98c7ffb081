"""The rule by which a study's learning rate is chosen, and that the studies train at what it chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dyn_probe.data.generated.sentiment import read_statements
from dyn_probe.data.generated.statements import generate_statements
from dyn_probe.mass.probe_file import read_probe_set
from dyn_probe.studies.arms import rate_choice
from dyn_probe.studies.arms.arm_manifest import ArmManifest, read_collection
from dyn_probe.studies.arms.rate_choice import RATES, SEEDS, chosen_rate, rate_lines, rate_name
from dyn_probe.studies.claims import Estimate
from dyn_probe.studies.presets import PRESETS, USUAL
from dyn_probe.studies.sentiment_runs import Study
from dyn_probe.studies.squeezing_runs import read_data
from dyn_probe.train.objective import Method

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "learning-rates"


def arms(*accuracies: float, error: float = 0.02) -> list[ArmManifest]:
    """One arm per rate with a made-up accuracy."""
    return [
        ArmManifest("s", rate_name(rate), SEEDS[0], "m", "d", "", {}, {}, "", 1.0, "",
                    {"accuracy": Estimate(value, error, value, value), "chosen": Estimate(-1.0, 0.5, -1.0, -1.0)})
        for rate, value in zip(RATES, accuracies, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [((0.5, 0.7, 0.71, 0.6), 3e-4), ((0.5, 0.68, 0.71, 0.72), 1e-3), ((0.9, 0.9, 0.9, 0.9), 1e-4)],
)
def test_the_smallest_rate_within_one_standard_error_of_the_best(accuracies: tuple[float, ...], rate: float) -> None:
    assert chosen_rate(arms(*accuracies), "s") == rate
    assert [line[1] for line in rate_lines(arms(*accuracies)) if line[-1]] == [f"{rate:g}"]
    assert rate_lines(arms(*accuracies))[0][2:4] == (f"{accuracies[0]:.2f} ± 0.02", "−1.00 ± 0.50")


def test_the_studies_train_at_the_rates_that_were_chosen() -> None:
    found = read_collection(sorted(KEPT.glob("*.jsonl")))
    assert Study().lr == chosen_rate(found, "sentiment") and PRESETS[USUAL].lr == chosen_rate(found, "squeezing")
    assert all(one.seed in SEEDS for one in found) and not set(SEEDS) & set(range(Study().seeds))


def test_the_pairs_of_the_choice_are_in_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(PRESETS[USUAL], pairs=8)
    monkeypatch.setattr(rate_choice, "PRESETS", {USUAL: small})
    for found in (
        rate_choice.sentiment_choice(tmp_path / "s", Study(pairs=32)),
        rate_choice.squeezing_choice(tmp_path / "q"),
    ):
        assert [arm.config.lr for arm in found] == list(RATES) and {arm.seed for arm in found} == set(SEEDS)
        for arm in found:
            assert Method.of(arm.config).name == "dpo" and arm.config.eval_fraction > 0
    texts = {one.text for _, one in read_statements(str(tmp_path / "s" / "statements.jsonl"))[0]}
    assert len(texts) == 32 and not texts & {one.text for one in generate_statements(32)}
    prompts = {one.prompt for one in read_probe_set(tmp_path / "q" / "probe_set.jsonl").prompts}
    assert len(prompts) == 10 and not prompts & {one.prompt for one in read_data(None, small)[0].prompts}
