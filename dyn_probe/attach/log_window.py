"""The rows since the trainer's last log: our numbers go into its logs, and its own are held to the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dyn_probe.attach.live_numbers import live_numbers
from dyn_probe.attach.recheck import HALF, Logged, difference
from dyn_probe.attach.trainer_kinds import TrainerKind
from dyn_probe.attach.user_lines import say
from dyn_probe.probe.row_store import Row
from dyn_probe.trace.manifest import read_manifest, write_manifest
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.writer import TraceWriter


class LogWindow:
    """Of one process.

    Args:
        trainer: whose logs they are.
        plain: whether its log-probabilities are sums over tokens, or means.
    """

    def __init__(self, trainer: Any, kind: TrainerKind, writer: TraceWriter, plain: bool) -> None:
        self.trainer, self.writer, self.plain = trainer, writer, plain
        args = trainer.args
        self.logged = Logged(args.beta if kind.logs_rewards(args) else None, kind.logs_means(args), kind.reference)
        self.batches: list[Sequence[Row]] = []
        self.steps: list[int] = []
        self.whole = True
        """Whether the window holds every batch since the last log."""
        self.said = ""
        self._expected: dict[int, Sequence[int]] = {}
        self._later: list[tuple[range, dict[str, float]]] = []

    def computed_in(self, dtype: torch.dtype) -> None:
        """The type of the trainer's log-probabilities, in which it may average them too."""
        if torch.finfo(dtype).bits < 32:
            self.logged = replace(self.logged, room=HALF)

    def add(self, step: int, rows: Sequence[Row], sizes: Sequence[int], seen: int, partly: bool = False) -> None:
        """A step is over.

        Args:
            rows: of its recorded batches, one batch after another.
            sizes: pairs of each recorded batch.
            seen: batches of the step, recorded or not.
            partly: whether the trainer's numbers also cover responses that have no row.
        """
        self._split(rows, sizes)
        self.steps.append(step)
        ends = self.trainer.accelerator.gradient_state.end_of_dataloader
        alone = self.trainer.args.world_size == 1
        self.whole &= (
            len(sizes) == seen and not partly and (alone or not ends)
        )  # the last batch is filled up with pairs seen before

    def _split(self, rows: Sequence[Row], sizes: Sequence[int]) -> None:
        for size in sizes:
            self.batches.append(rows[:size])
            rows = rows[size:]

    def expect(self, step: int, sizes: Sequence[int]) -> None:
        """A step has batches that are in the table ``scores`` alone: their rows come later (``collect``)."""
        self._expected[step] = sizes

    def collect(self, scored: Sequence[Row]) -> None:
        """Rows of the table ``scores`` that have arrived; waiting for them at every step would hold up a device."""
        for step, sizes in list(self._expected.items()):
            rows = [row for row in scored if row["step"] == step]
            if len(rows) == sum(sizes):
                self._split(rows, self._expected.pop(step))

    def log(self, logs: dict[str, float]) -> None:
        """The trainer logs: check its numbers, and add ours."""
        if "loss" not in logs:
            return
        given = dict(logs)
        if self.batches:
            logs.update(live_numbers([row for batch in self.batches for row in batch]))
        if self.whole and self.batches and not self._expected and self.plain and not self.said:
            self._check(given)
        self.batches, self.steps, self.whole, self._expected = [], [], True, {}

    def _check(self, logs: dict[str, float]) -> None:
        args = self.trainer.args
        if args.world_size == 1:
            self._differs(self.steps[-1], difference(self.batches, logs, self.logged))
            if self.said:
                self.writer.update_manifest(recheck=self.said)
        elif args.process_index == 0:  # the others' rows are read when they are all there
            self._later.append((range(self.steps[0], self.steps[-1] + 1), logs))

    def _differs(self, step: int, said: str) -> None:
        if said:
            self.said = said
            say(f"step {step}: {said}")

    def check_all_processes(self) -> None:
        """The trace is closed: hold the logs to the rows of all processes. Batches have one size, so that the mean over
        them is the mean over the rows."""
        if not self._later:
            return
        trace = load_trace(self.writer.path)
        for steps, logs in self._later:
            if not self.said:
                self._differs(steps[-1], difference(_by_step(trace, steps), logs, self.logged))
        if self.said:
            write_manifest(self.writer.path, {**read_manifest(self.writer.path), "recheck": self.said})


def _by_step(trace: Trace, steps: range) -> list[list[Row]]:
    """Rows of each step, without what was not measured."""
    pairs = trace.pairs
    found = [pairs[pairs["step"] == step].to_dict("records") for step in steps]
    return [[{str(k): v for k, v in row.items() if v == v} for row in rows] for rows in found]
