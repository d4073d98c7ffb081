"""Names that stand for nothing: one message, without the network or torch, with the nearest name that there is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loaded import run_and_list

from dyn_probe.data import names
from dyn_probe.data.names import check_data, check_model, data_place, hub_away
from dyn_probe.errors import BadInput


def refusal(check: object, name: str) -> str:
    with pytest.raises(BadInput) as caught:
        check(name)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a data file and a model in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "models" / "tiny-gpt").mkdir(parents=True)
    (tmp_path / "models" / "tiny-gpt" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trian.jsonl", "no such file: trian.jsonl (did you mean train.jsonl?)"),
        ("./trian.jsonl", "(did you mean train.jsonl?)"),
        ("models/tiny-gbt.jsonl", "(did you mean models/tiny-gpt?)"),
        ("sentiment:log-suffix", "did you mean sentiment:long-suffix?"),
        ("sentiment:long-suffix@trian.jsonl", "did you mean train.jsonl?"),
        ("long-suffix", "did you mean sentiment:long-suffix?"),
        ("somebody/some-data", "nor a data set in the hub's local cache"),
        ("", "no such file or folder"),
        ("train.txt", "unknown data 'train.txt'"),
    ],
)
def test_a_slip_in_the_name_of_data(folder: Path, name: str, said: str) -> None:
    assert said in refusal(check_data, name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("builtin", "(did you mean built-in?)"),
        ("Built_In", "(did you mean built-in?)"),
        ("./models/tiny-gtp", "no such model folder: './models/tiny-gtp' (did you mean models/tiny-gpt?)"),
        ("models/tinygpt", "(did you mean models/tiny-gpt?)"),
        ("", "no such model folder: ''"),
        ("models", "holds no model"),
        ("train.jsonl", "is a file"),
        ("gpt2-smal", "nor a model in the hub's local cache, and the hub is switched off (HF_HUB_OFFLINE)"),
    ],
)
def test_a_slip_in_the_name_of_a_model(folder: Path, name: str, said: str) -> None:
    assert said in refusal(check_model, name)


def test_names_that_are_there_pass(folder: Path) -> None:
    for name in ("built-in", "models/tiny-gpt", "./models/tiny-gpt"):
        assert check_model(name) is False
    for name in ("train.jsonl", "sentiment:long-suffix", "sentiment:long-suffix@train.jsonl", "models:test", "models"):
        check_data(name)
    assert data_place("models:test[:3]") == names.Source("folder", "models", "test[:3]")


def test_a_hub_id_in_the_cache_passes_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for kind in ("models", "datasets"):
        (tmp_path / "hub" / f"{kind}--owner--name" / "snapshots" / "abc").mkdir(parents=True)
    assert check_model("owner/name") is True
    assert data_place("owner/name:test") == names.Source("hub", "owner/name", "test")
    refusal(check_model, "owner/another")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port of this machine in the place of the hub, which takes connections and says nothing."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        yield port


def test_a_hub_that_answers_is_asked(hub: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_away() == "" and check_model("owner/name") is False
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in hub_away()


def test_a_hub_that_refuses_or_hangs_is_away(hub: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert hub_away() == "127.0.0.1 cannot be reached"
    forever = threading.Event()

    def hang(*_: object, **__: object) -> None:
        forever.wait()
        raise OSError

    monkeypatch.setattr(names.socket, "create_connection", hang)
    monkeypatch.setattr(names, "PATIENCE", 0.01)
    assert hub_away() == "127.0.0.1 cannot be reached"
    forever.set()


@pytest.mark.parametrize("option", ["--data", "--model"])
def test_the_commands_answer_before_they_load_torch(option: str, tmp_path: Path) -> None:
    code, said, loaded = run_and_list(["record", option, "no/such-thing"], tmp_path)
    assert code == 2 and not {"torch", "transformers", "datasets"} & set(loaded)
    assert said.count("\n") == 1 and f"{option} 'no/such-thing'" in said
