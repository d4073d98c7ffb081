"""What a person sees while a run is recorded."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rich.text import Text
from tiny_runs import run

from dyn_probe.data.built_in import built_in_model
from dyn_probe.train.display import Display, cost_after, cost_before, live_numbers
from dyn_probe.train.log_lines import StageLines, stage_lines, written

ROW = {
    "logp_chosen": -8.0, "len_chosen": 4, "logp_rejected": -20.0, "len_rejected": 5, "ref_logp_chosen": -6.0,
    "ref_logp_rejected": -10.0, "loss": 0.25, "grad_cosine": 0.5, "case_plain": 2,
}  # fmt: skip


def test_live_numbers_are_means_and_changes_since_the_start() -> None:
    start: dict[str, float] = {}
    before = ROW | {"logp_chosen": -6.0, "logp_rejected": -10.0, "case_plain": 1}
    assert "Δchosen +0.000 Δrejected +0.000" in live_numbers([before, before], start)
    said = live_numbers([ROW, before], start)
    assert said == (
        "loss 0.250 margin +4.00 acc 50% Δchosen -0.250 Δrejected -1.000 cos +0.50 both down, each pair alone: 50%"
    )
    applied = [row | {"case_update": 2} for row in (ROW, before)]
    assert live_numbers(applied, start).endswith(" both pushed down 100%")
    assert live_numbers([applied[0] | {"case_realised": 2}, applied[1]], start).endswith(" both pushed down 100%")
    assert live_numbers([row | {"case_realised": 3} for row in applied], start).endswith(" both fell 0%")


def test_a_step_that_is_not_recorded_has_no_numbers() -> None:
    assert live_numbers([], {}) == ""


def test_lines_about_the_data_stand_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    Display().show(
        [("plain", "data[red]: 3 pairs"), ("warning", f"warning: {long}"), ("loud", "WARNING"), ("note", "n")]
    )
    assert capsys.readouterr().err.splitlines() == ["data[red]: 3 pairs", f"warning: {long}", "WARNING", "n"]


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(shown=False)
    display.show([("loud", "WARNING")])
    with display.bar("title", 3) as advance:
        advance(3, "note")
    assert capsys.readouterr() == ("", "")


def test_the_title_is_never_cut_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display().bar("dpo_shift   ", 3) as advance:
        advance(3, "loss " * 30)
    said = Text.from_ansi(capsys.readouterr().err).plain.splitlines()
    assert any("dpo_shift" in line and "3/3" in line for line in said) and max(map(len, said)) <= 60


class Fake:
    """A clock and the end of a stage in one: every wait passes its whole time, and ``waits`` of them pass."""

    def __init__(self, waits: int = 0) -> None:
        self.now, self.waits, self.ended = 100.0, waits, False

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        if self.waits == 0:
            return True
        self.waits -= 1
        self.now += timeout or 0.0
        return False

    def set(self) -> None:
        self.ended = True


def test_a_log_file_gets_a_line_every_half_minute_and_the_time_left() -> None:
    clock, said = Fake(), []  # type: ignore[var-annotated]
    lines = StageLines("dpo         ", 100, said.append, clock, 30.0)
    gaps = []
    for step in range(100):
        for _ in range(4):  # every step takes 8 s; the thread looks when it was told to, here every 2 s
            clock.now += 2.0
            before, left = len(said), lines.beat()
            assert 0 < left <= 30
            gaps += [clock.now] * (len(said) - before)
        lines.advance(1, f"loss {step}")
    assert gaps == [130.0 + 30 * k for k in range(len(gaps))] and len(gaps) == 800 // 30
    assert said[0] == "dpo 3/100, 0:30, about 12:50 left, loss 2"
    assert said[-1].startswith("dpo 97/100, 13:00, about 0:")
    lines.end()
    assert said[-1] == "dpo 100/100 in 13:20, loss 99"


def test_the_time_left_counts_from_where_a_resumed_run_began() -> None:
    clock, said = Fake(), []  # type: ignore[var-annotated]
    lines = StageLines("dpo", 100, said.append, clock, 30.0)
    lines.advance(80)
    clock.now += 30.0
    lines.beat()
    lines.advance(1)
    clock.now += 30.0
    lines.beat()
    assert said == ["dpo 80/100, 0:30", "dpo 81/100, 1:00, about 9:00 left"]


def test_a_stage_that_stands_still_still_gets_its_lines() -> None:
    said: list[str] = []
    fake = Fake(waits=4)
    with stage_lines("probing", 5, said.append, clock=fake, period=30.0, stop=fake):
        pass  # the thread has its four waits before it is joined
    assert fake.ended
    assert said == [*(f"probing 0/5, {time}" for time in ("0:30", "1:00", "1:30", "2:00")), "probing 0/5 in 2:00"]


def test_a_short_stage_within_another_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Display().bar("probing     ", 3, leave=False) as advance:
        advance(3)
    assert capsys.readouterr().err == ""
    with Display().bar("dpo         ", 3) as advance:
        advance(3, "loss [0.5]")
    assert capsys.readouterr().err == "dpo 3/3 in 0:00, loss [0.5]\n"


def test_the_line_at_the_end_also_comes_when_a_stage_fails() -> None:
    said: list[str] = []
    with pytest.raises(ZeroDivisionError), stage_lines("dpo", 5, said.append) as advance:
        advance(2)
        raise ZeroDivisionError
    assert said == ["dpo 2/5 in 0:00"]
    assert not any(thread.name == "dyn-probe progress" for thread in threading.enumerate())


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05")])
def test_times_are_written_shortly(seconds: float, text: str) -> None:
    assert written(seconds) == text


def test_what_taking_a_step_apart_costs_is_said_before_and_after() -> None:
    assert "every 10th step is taken apart" in cost_before(514.0, 10) and "514 MiB" in cost_before(514.0, 10)
    assert "every step is" in cost_before(514.0, 1)
    assert cost_before(514.0, 0) == cost_before(2.6, 1) == ""
    row = {"step": 0, "pushes_seconds": 6.0, "step_seconds": 16.0, "pushes_mib": 900.0}
    assert "took 6.0 of 16.0 s and held 900 MiB" in cost_after(row, 1)
    assert "about 60% longer for it; --metric-every 10 would make that 6%" in cost_after(row, 1)
    assert cost_after(row, 10).endswith("about 6% longer for it")
    assert cost_after({"step": 0, "step_seconds": 16.0}, 10) == cost_after({**row, "pushes_mib": 3.0}, 1) == ""


def test_the_cost_of_a_step_taken_apart_is_recorded(tmp_path: Path) -> None:
    steps = run(tmp_path / "run", steps=4, metric_every=2, realised=False).steps.set_index("step")
    apart = steps.loc[[0, 2]]
    assert (apart["pushes_seconds"] > 0).all() and (apart["pushes_seconds"] < apart["step_seconds"]).all()
    weights = sum(p.nbytes for p in built_in_model(0).parameters()) / 2**20
    assert (apart["pushes_mib"] > weights).all() and (apart["pushes_mib"] < 20 * weights).all()
    assert steps.loc[[1, 3], ["pushes_seconds", "pushes_mib"]].isna().all(axis=None)
