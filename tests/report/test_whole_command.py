"""A remedy as one whole command: the run's own, with the remedy's options in place of its own and another folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from moved_runs import moved_run
from report_checks import Page, page_of

from dyn_probe.report.first_screen.fix_texts import fixes
from dyn_probe.report.first_screen.whole_command import whole_command
from dyn_probe.report.summary import summary_lines

RUN = "dyn-probe record --out runs/a --max-pairs 200 --update --force"


@pytest.mark.parametrize(
    ("command", "typed", "key", "says"),
    [
        (RUN, "--objective dpo_shift", "dpo_shift",
         "dyn-probe record --out runs/a-dpo-shift --max-pairs 200 --update --objective dpo_shift"),
        (RUN + " --lr=1e-4 --resume", "--lr 5e-05", "rate",
         "dyn-probe record --out runs/a-rate --max-pairs 200 --update --lr 5e-05"),
        (RUN + " --objective ipo --set tau=1 --set nll=0.1", "--set nll=0.2", "likelihood",
         "dyn-probe record --out runs/a-likelihood --max-pairs 200 --update --objective ipo --set tau=1 --set nll=0.2"),
        (RUN + " --objective dpo:beta=0.2", "--objective dpo:beta=1", "beta",
         "dyn-probe record --out runs/a-beta --max-pairs 200 --update --objective dpo:beta=1"),
        (RUN + " --objective dpo --beta 0.2 --set nll=1 --shaping gate-seq",
         "--objective dpop (leave out --beta, --set, --shaping)", "dpop",
         "dyn-probe record --out runs/a-dpop --max-pairs 200 --update --objective dpop"),
        (RUN + " --shaping adadpo", "--shaping gate-seq", "gate",
         "dyn-probe record --out runs/a-gate --max-pairs 200 --update --shaping adadpo --shaping gate-seq"),
        ("dyn-probe record --data 'my pairs.jsonl'", "--steps 30", "early",
         "dyn-probe record --out runs/a-early --data 'my pairs.jsonl' --steps 30"),
        ("dyn-probe record -- python train.py", "--steps 30", "early", ""),
        ("train.py --out x", "--steps 30", "early", ""),
        ("dyn-probe record --data 'my pairs.jsonl", "--steps 30", "early", ""),
        ("", "--steps 30", "early", ""),
        (RUN + " --config my.yaml", "--objective ipo (leave out --beta)", "ipo", ""),  # beta may stand there
        (RUN + " --config=my.yaml", "--steps 30", "early", ""),
    ],
)  # fmt: skip
def test_the_runs_own_options_stay_and_the_remedys_take_their_place(
    command: str, typed: str, key: str, says: str
) -> None:
    assert whole_command({"command": command, "config": {"out": "runs/a"}}, typed, key) == says


def test_the_first_is_read_and_the_others_are_folded(tmp_path: Path) -> None:
    trace = moved_run(tmp_path / "run", -0.38, -1.9)
    trace.manifest["command"] = RUN
    rows, page, said = fixes(trace)["rows"], Page(page_of(trace)).text, "\n".join(summary_lines(trace))
    assert len(rows) > 1 and all(shlex.split(row["whole"])[:2] == ["dyn-probe", "record"] for row in rows)
    assert rows[0]["whole"] in said and rows[1]["whole"] not in said
    folded = page.index("The other commands")
    assert page.index(rows[0]["whole"]) < folded < page.index(rows[1]["whole"])


def test_a_run_of_another_loop_has_its_options_alone(tmp_path: Path) -> None:
    trace = moved_run(tmp_path / "run", -0.38, -1.9)
    trace.manifest["command"] = "python train.py"
    assert {row["whole"] for row in fixes(trace)["rows"]} == {""}
    assert "to type:" not in "\n".join(summary_lines(trace)) and "The other commands" not in page_of(trace)
