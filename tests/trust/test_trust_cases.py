"""Bad input that once ended in a traceback, or was taken for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dyn_probe import load_trace
from dyn_probe.data.models import pick_device
from dyn_probe.data.reading import read_pairs
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.trace.parquet import Merged, write_parquet
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.checkpoints import newest_checkpoint, restore, save_checkpoint
from dyn_probe.train.options.config import RunConfig


def test_a_device_without_numbers_is_refused() -> None:
    with pytest.raises(BadInput, match=r"cannot use device 'meta': .*write auto, cpu or cuda"):
        pick_device("meta")


@pytest.mark.parametrize("value", [2**31, 10**23, 1e30, "9" * 30])
def test_a_whole_number_has_an_upper_bound(value: Any) -> None:
    with pytest.raises(BadInput, match="steps must be a whole number of at least 1, at most 2147483647; got"):
        RunConfig(steps=value)
    assert RunConfig(steps=2**31 - 1).steps == 2**31 - 1


@pytest.mark.parametrize("value", [10**5000, "9" * 5000, float("inf"), [[]]], ids=["digits", "text", "inf", "list"])
def test_a_number_of_thousands_of_digits_is_quoted_short(value: Any) -> None:
    with pytest.raises(BadInput, match="steps must be a whole number") as caught:
        RunConfig(steps=value)
    assert len(str(caught.value)) < 200


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "run", {}).close()
    table = pa.Table.from_arrays([pa.array([0]), pa.array([0])], names=["step", "step"])
    write_parquet(tmp_path / "run/pairs.parquet", table, Merged())
    with pytest.raises(TraceError, match=r"pairs\.parquet has several columns of one name"):
        _ = load_trace(tmp_path / "run").pairs


def test_a_row_with_a_date_beyond_python_costs_that_row(tmp_path: Path) -> None:
    rows = {"prompt": ["Good?"] * 3, "chosen": [" Yes."] * 3, "rejected": [" No."] * 3}
    days = pa.array([0, 2**31 - 1, 1], pa.date32())
    pq.write_table(pa.table({**rows, "day": days}), tmp_path / "rows.parquet")
    found = read_pairs(str(tmp_path / "rows.parquet"))
    assert [pair.source.rpartition(":")[2] for pair in found.pairs] == ["1", "3"]
    assert [(row.reason, row.source.rpartition(":")[2]) for row in found.skipped] == [("values out of range", "2")]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 40)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, 2, model.state_dict(), optimizer.state_dict())
    return tmp_path, model, optimizer


def test_a_flipped_bit_in_a_checkpoint_is_refused(saved: tuple[Path, Any, Any]) -> None:
    folder, model, _ = saved
    path = folder / "checkpoints/step-2.pt"
    content = bytearray(path.read_bytes())
    place = content.index(model.weight.detach().numpy().tobytes()) + 100
    content[place] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["weight"], model.weight)  # torch alone reads it
    with pytest.raises(BadInput, match=r"the checkpoint step-2\.pt of .* is damaged: the checksum of its part"):
        newest_checkpoint(folder)


@pytest.mark.parametrize(("name", "value"), [("step", "2"), ("model", [1]), ("random", 3), ("optimizer", None)])
def test_a_checkpoint_of_other_types_is_refused(name: str, value: Any, saved: tuple[Path, Any, Any]) -> None:
    path = saved[0] / "checkpoints/step-2.pt"
    torch.save(torch.load(path, weights_only=True) | {name: value}, path)
    with pytest.raises(BadInput, match=f"is not one of dyn-probe: its {name} are missing or of another type"):
        newest_checkpoint(saved[0])


def test_a_checkpoint_of_another_model_is_refused(saved: tuple[Path, Any, Any]) -> None:
    folder, model, optimizer = saved
    state = newest_checkpoint(folder)
    assert restore(state, model, optimizer) == 2
    with pytest.raises(BadInput, match=r"does not fit the run that is to be resumed: .*size mismatch"):
        restore(state, torch.nn.Linear(3, 40), None)


class Payload:
    """What runs where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("payload-ran").touch, ())


def test_a_checkpoint_is_never_unpickled(
    saved: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 2, "model": {}, "evil": Payload()}, saved[0] / "checkpoints/step-2.pt")
    with pytest.raises(BadInput, match="cannot read the checkpoint"):
        newest_checkpoint(saved[0])
    assert not Path("payload-ran").exists()
