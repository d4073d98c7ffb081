"""As the optimizer begins, nothing waits for the device: pushes in the last step's metric, κ with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import make_batch, make_model
from torch.utils._python_dispatch import TorchDispatchMode

from dyn_probe import Probe, load_trace, sequence_logps
from dyn_probe.metric import StepReader


class Unread(TorchDispatchMode):
    """Fails where the host asks a tensor for its number."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert call is not torch.ops.aten._local_scalar_dense.default, "the host read a number off a tensor"
        return call(*args, **(kwargs or {}))


def unfetched(*_: Any, **__: Any) -> None:
    raise AssertionError("the host fetched a tensor")


def without_waiting(begins: Callable[..., None]) -> Callable[..., None]:
    """The optimizer's beginning, where reading and fetching are errors."""

    def guarded(*args: Any) -> None:
        with pytest.MonkeyPatch.context() as patch, Unread():
            for name in ("cpu", "numpy", "tolist"):
                patch.setattr(torch.Tensor, name, unfetched)
            begins(*args)

    return guarded


def without_synchronizing(begins: Callable[..., None]) -> Callable[..., None]:
    """The same on a GPU: torch itself reports a wait."""

    def guarded(*args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            begins(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


def recorded(folder: Any, device: str, **options: Any) -> Any:
    """The pushes of three steps with clipping."""
    model = make_model("llama").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, **options)
    with Probe(model, folder, optimizer=optimizer, metric="previous") as probe:
        for step in range(3):
            batch = make_batch(seed=step).to(device)
            optimizer.zero_grad()
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                half = batch.pairs
                (-torch.nn.functional.logsigmoid(0.1 * (logps[:half] - logps[half:]))).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return load_trace(folder).pushes


def test_the_host_reads_nothing_as_the_optimizer_begins(tmp_path, monkeypatch):
    wanted = recorded(tmp_path / "wanted", "cpu")
    monkeypatch.setattr(StepReader, "_before", without_waiting(StepReader._before))
    found = recorded(tmp_path / "found", "cpu")
    assert found["own_chosen"].notna().all() and len(found) == 18 and found.equals(wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_the_device_is_not_waited_for_as_the_optimizer_begins(options, tmp_path, monkeypatch):
    wanted = recorded(tmp_path / "wanted", "cuda", **options)
    monkeypatch.setattr(StepReader, "_before", without_synchronizing(StepReader._before))
    found = recorded(tmp_path / "found", "cuda", **options)
    assert found["own_chosen"].notna().all() and len(found) == 18 and len(wanted) == 18
