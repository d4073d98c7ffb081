"""Which of several runs is healthier: a clear winner, every draw, runs that lack what others have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from moved_runs import held_out_run, moved_run, moved_tables
from report_checks import value
from report_frames import DEFAULT, Options
from report_runs import manifest, new_trace, write_tables

from dyn_probe.errors import BadInput
from dyn_probe.report.build import build_report
from dyn_probe.report.side_by_side.health import WORTH, gap, harm, healthiest, judged, price
from dyn_probe.report.side_by_side.opened import opened
from dyn_probe.report.side_by_side.quantities import moves, quantities
from dyn_probe.report.side_by_side.shared_pairs import shared_pairs
from dyn_probe.report.side_by_side.terminal import comparison_lines
from dyn_probe.report.verdicts import Verdict
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.report.verdicts.healthier import healthier
from dyn_probe.trace.reader import Trace, load_trace

Make = Callable[..., Trace]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run in which every pair moved by so much (nats/token)."""
    return lambda name, chosen, rejected, **options: moved_run(tmp_path / name, chosen, rejected, Options(**options))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    folder = tmp_path_factory.mktemp("runs")
    return {"dpo": moved_run(folder / "dpo", -0.38, -1.9), "sft": moved_run(folder / "sft", 0.05, -1.2)}


def only_one(traces: dict[str, Trace]) -> Verdict:
    (found,) = healthier(traces)
    return found


def noisy(path: Path, chosen: float, size: float, seed: int, options: Options = DEFAULT) -> Trace:
    """A run in which the change of chosen differs from pair to pair (nats/token)."""
    tables = moved_tables(chosen, -1.9, options)
    final = tables["final"]
    final["logp_chosen"] += np.random.default_rng(seed).normal(0, size, len(final)) * final.len_chosen
    return load_trace(write_tables(path, tables, manifest(options)))


def test_a_clear_winner_is_named_with_its_numbers(two: dict[str, Trace]) -> None:
    found = only_one(two)
    assert found.sentence.startswith("sft is healthier than dpo. sft harms the pairs less than dpo, by 0.38 ± ")
    assert "chosen −0.38, +0.050 nats/token; rejected −1.9, −1.2 nats/token" in found.sentence
    assert "growth of the margin +1.5, +1.2 nats/token" in found.sentence and "by what happened" in found.sentence
    assert "0 nats of harm per nat of margin against 0.25" in found.sentence
    wanted = {"run_1_change_chosen": -0.38, "run_2_change_chosen": 0.05, "run_1_harm": 0.38, "run_2_harm": 0.0}
    assert {key: value(found, key) for key in wanted} == pytest.approx(wanted, abs=1e-9)
    assert comparison(two)[0] == found


def test_the_order_of_the_runs_does_not_decide(two: dict[str, Trace]) -> None:
    turned = dict(reversed(two.items()))
    assert only_one(turned).sentence.startswith("sft is healthier than dpo. sft harms the pairs less than dpo")


def test_harm_and_its_price_by_a_plain_loop(tmp_path: Path) -> None:
    runs = {"a": noisy(tmp_path / "a", -0.3, 0.2, 1), "b": noisy(tmp_path / "b", 0.1, 0.2, 2)}
    harms: dict[str, list[float]] = {}
    for name, trace in runs.items():
        start = {row["pair_id"]: row for row in trace.pairs.to_dict("records")}
        ends = sorted(trace.final.to_dict("records"), key=lambda row: row["pair_id"])
        moved = [
            tuple(
                (e[f"logp_{s}"] - start[e["pair_id"]][f"ref_logp_{s}"]) / e[f"len_{s}"] for s in ("chosen", "rejected")
            )
            for e in ends
        ]
        harms[name] = [(-w if w < 0 else 0) + (l if l > 0 else 0) for w, l in moved]  # noqa: E741
        found = moves(runs)
        assert found is not None
        np.testing.assert_allclose(harm(found, name), harms[name], atol=1e-9)
        grown = sum(w - l for w, l in moved) / len(moved)  # noqa: E741
        assert price(found, name) == pytest.approx(sum(harms[name]) / len(moved) / grown)
    apart = [b - a for a, b in zip(harms["a"], harms["b"], strict=True)]
    middle = sum(apart) / len(apart)
    error = (sum((one - middle) ** 2 for one in apart) / (len(apart) - 1) / len(apart)) ** 0.5
    (one,) = judged(runs)
    assert (one.difference, one.error) == pytest.approx((middle, error))
    assert gap(np.array(harms["a"]), np.array(harms["b"]), paired=False)[1] > error / 2


@pytest.mark.parametrize(("part", "winner"), [(0.9, ""), (1.1, "better")])
def test_a_difference_that_is_not_worth_it_is_a_draw(part: float, winner: str, make: Make) -> None:
    runs = {"worse": make("worse", -0.38, -1.9), "better": make("better", -0.38 + part * WORTH, -1.9)}
    assert healthiest(judged(runs), list(runs)) == winner
    draw = only_one(runs).sentence.startswith("Which run is healthier cannot be determined. The harm to the pairs")
    assert draw == (winner == "")


def test_a_difference_within_its_error_is_a_draw(tmp_path: Path) -> None:
    loud = {"a": noisy(tmp_path / "a", -0.38, 0.5, 1), "b": noisy(tmp_path / "b", -0.35, 0.5, 2)}
    still = {"c": noisy(tmp_path / "c", -0.38, 0.01, 1), "d": noisy(tmp_path / "d", -0.33, 0.01, 2)}
    assert [one.why for one in judged(loud)] == ["alike"] and "cannot be determined" in only_one(loud).sentence
    assert [one.winner for one in judged(still)] == ["d"]


def test_less_harm_by_less_training_is_a_draw(two: dict[str, Trace], make: Make) -> None:
    """A quarter of the movement: less harm, no better exchange of harm for margin; and no movement at all."""
    short = only_one({"dpo": two["dpo"], "short": make("short", -0.1, -0.3)})
    assert short.sentence.startswith("Which run is healthier cannot be determined. short harms the pairs less than dpo")
    assert "only because it trained less: 0.50 nats of harm per nat of margin against 0.25" in short.sentence
    idle = only_one({"dpo": two["dpo"], "idle": make("idle", 0.0, 0.0)})
    assert "cannot be determined. idle" in idle.sentence and "its margin did not grow" in idle.sentence


def test_rejected_that_rises_is_harm(make: Make) -> None:
    runs = {"risen": make("risen", 1.0, 0.5), "apart": make("apart", 0.3, -0.2)}
    assert healthiest(judged(runs), list(runs)) == "apart"


def test_held_out_pairs_can_speak_against_the_winner(tmp_path: Path, two: dict[str, Trace]) -> None:
    fell = held_out_run(tmp_path / "fell", (-0.38, -1.9), (-0.2, -3))
    memory = held_out_run(tmp_path / "memory", (0.25, -1.9), (-1.5, -3))
    sound = held_out_run(tmp_path / "sound", (0.25, -1.9), (-0.2, -3))
    draw = only_one({"fell": fell, "memory": memory})
    assert "cannot be determined" in draw.sentence and "on held-out pairs its chosen ends lower" in draw.sentence
    won = only_one({"fell": fell, "sound": sound})
    assert won.sentence.startswith("sound is healthier than fell") and "held-out chosen −0.20, −0.20" in won.sentence
    lacks = only_one({"dpo": two["dpo"], "sound": sound})
    assert "Held-out pairs do not count here: dpo evaluated none of them twice." in lacks.sentence
    assert "held-out chosen" not in lacks.sentence


def test_a_run_without_its_end_is_compared_over_what_both_have(two: dict[str, Trace], tmp_path: Path) -> None:
    bare = new_trace(tmp_path / "bare", Options(realised=False, update=False))
    found = only_one({"dpo": two["dpo"], "bare": bare})
    assert "to the end of the run" not in found.formula and "from steps" in found.formula
    assert "by a plain gradient step on the pair alone" in found.sentence
    once = new_trace(tmp_path / "once", Options(steps=1, reference=False))
    unknown = only_one({"dpo": two["dpo"], "once": once})
    assert unknown.level == "warning" and "(once measured no pair twice and has no reference)" in unknown.sentence
    assert comparison_lines({"dpo": two["dpo"], "once": once})


def test_of_three_runs_the_one_that_beats_all_is_named(two: dict[str, Trace], make: Make) -> None:
    three = {**two, "middle": make("middle", -0.1, -1.5)}
    found = only_one(three)
    assert found.sentence.startswith("sft is the healthiest, before dpo, middle.") and value(found, "run_3_harm") > 0
    tied = only_one({**two, "twin": two["sft"]})
    assert tied.sentence.startswith("Which run is healthier cannot be determined. The harm to the pairs")


def test_runs_without_a_pair_in_common_are_compared_too(two: dict[str, Trace], make: Make) -> None:
    found = only_one({"dpo": two["dpo"], "other": make("other", 0.05, -1.2, seed=5)})
    assert found.sentence.startswith("other is healthier than dpo.") and "pairs that all have" not in found.formula


def test_pairs_that_differ_most_come_first_with_their_texts(tmp_path: Path) -> None:
    runs = {"a": noisy(tmp_path / "a", -0.3, 0.2, 1), "b": noisy(tmp_path / "b", 0.1, 0.2, 2)}
    table = shared_pairs(runs, top=None)
    assert len(table) == runs["a"].final.pair_id.nunique() and table.spread.is_monotonic_decreasing
    np.testing.assert_allclose(table.spread, (table["a: chosen"] - table["b: chosen"]).abs())
    texts = runs["a"].examples.drop_duplicates("pair_id").set_index("pair_id")
    assert list(table.prompt) == list(texts.prompt.reindex(table.pair_id))
    assert table.pair_id[0] in "\n".join(comparison_lines(runs)) and len(shared_pairs(runs, top=3)) == 3


def test_the_terminal_prints_the_verdict_and_the_same_numbers(two: dict[str, Trace]) -> None:
    lines = comparison_lines(two)
    assert lines[0] == f"[bold]{only_one(two).sentence}[/]"
    rows = {row.key: row for row in quantities(two)}
    assert [round(v, 9) for v in rows["change_chosen"].values.values()] == [-0.38, 0.05]
    line = next(line for line in lines if line.startswith("change of chosen"))
    assert line.split()[3:] == ["−0.38", "+0.050", "nats/token"]


@pytest.mark.usefixtures("unrendered")
def test_the_page_opens_with_the_verdict(two: dict[str, Trace], tmp_path: Path) -> None:
    page = build_report([trace.path for trace in two.values()], tmp_path / "page")
    html = page.read_text(encoding="utf-8")
    start = html.partition('id="verdicts"')[0]
    assert "sft is healthier than dpo." in start and 'id="side-by-side"' in start and 'id="pairs"' in html
    assert html.count("sft is healthier than dpo.") == 1
    assert (page.parent / "tables" / "pairs_that_differ.csv").is_file()


def test_the_same_folder_twice_is_refused(two: dict[str, Trace]) -> None:
    path = two["dpo"].path
    with pytest.raises(BadInput, match="the same folder 2 times"):
        opened([path, path / ".." / path.name])
