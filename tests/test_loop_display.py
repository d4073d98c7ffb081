"""What a person sees while a run is recorded."""

from __future__ import annotations

import pytest

from dyn_probe.train.display import Display, live_numbers

ROW = {
    "logp_chosen": -8.0, "len_chosen": 4, "logp_rejected": -20.0, "len_rejected": 5, "ref_logp_chosen": -6.0,
    "ref_logp_rejected": -10.0, "loss": 0.25, "grad_cosine": 0.5, "case_plain": 2,
}  # fmt: skip


def test_live_numbers_are_means_and_changes_since_the_start() -> None:
    start: dict[str, float] = {}
    before = ROW | {"logp_chosen": -6.0, "logp_rejected": -10.0, "case_plain": 1}
    assert "Δchosen +0.000 Δrejected +0.000" in live_numbers([before, before], start)
    said = live_numbers([ROW, before], start)
    assert said == "loss 0.250 margin +4.00 acc 50% Δchosen -0.250 Δrejected -1.000 cos +0.50 both down 50%"


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


def test_the_title_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with Display().bar("dpo_shift   ", 3) as advance:
        advance(3, "loss " * 30)
    said = capsys.readouterr().err
    assert "dpo_shift" in said and "3/3" in said and len(said.splitlines()) == 1
