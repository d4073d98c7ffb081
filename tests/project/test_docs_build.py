"""The site builds strictly and offline, every link inside the repository resolves, and the examples run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import forked
import pytest

from dyn_probe.train.options.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
REMOTE_ASSET = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?https?:|<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect)[\"']?[^>]*https?:"
)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def broken_links(page: Path, text: str) -> list[str]:
    """Relative link targets of ``page`` that do not exist."""
    targets = (urlsplit(target) for target in LINK.findall(text))
    local = [target.path for target in targets if not target.scheme and target.path]
    return [path for path in local if not (page.parent / path).exists()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_site_has_every_page(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {page.name: REMOTE_ASSET.findall(page.read_text(encoding="utf-8")) for page in site.glob("*.html")}
    assert loaded and not any(loaded.values()), loaded


@pytest.mark.parametrize(
    "html",
    ['<script src="https://a.example/x.js">', '<link rel="stylesheet" href="https://a.example/f.css">'],
)
def test_a_remote_asset_is_found(html: str) -> None:
    assert REMOTE_ASSET.search(html)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda p: p.name,
)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "README.md", "see [it](docs/nowhere.md)") == ["docs/nowhere.md"]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def unshown(book: dict[str, Any]) -> list[str]:
    """What is amiss with an executed notebook: cells out of order, errors, noise, no picture."""
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    shown = [output for cell in code for output in cell["outputs"]]
    found = {
        "not run from top to bottom": [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)),
        "an error": any(output["output_type"] == "error" for output in shown),
        "standard error": any(output.get("name") == "stderr" for output in shown),
        "no picture": not any("image/png" in output.get("data", {}) for output in shown),
    }
    return [name for name, wrong in found.items() if wrong]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_shipped_executed_with_their_pictures(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    assert unshown(book) == [] and path.stat().st_size < 700_000
    for cell in book["cells"]:
        cell |= {"outputs": [], "execution_count": None}
    assert unshown(book) == ["not run from top to bottom", "no picture"]


def inner_rooms(book: dict[str, Any]) -> list[str]:
    """Imports of a notebook that docs/api.md does not list."""
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))
    found = []
    for node in ast.walk(ast.parse(code)):
        home = [node.module or ""] if isinstance(node, ast.ImportFrom) else [""]
        names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
        found += [".".join(filter(None, [*home, one.name])) for one in names]
    listed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return [name for name in found if name.startswith("dyn_probe") and f"### {name}\n" not in listed]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_take_public_names_only(path: Path) -> None:
    assert inner_rooms(json.loads(path.read_text(encoding="utf-8"))) == []


def test_an_inner_room_in_a_notebook_is_found() -> None:
    source = [
        "from dyn_probe import load_trace\n",
        "from dyn_probe.train.grid import outcomes\n",
        "import dyn_probe.train",
    ]
    book = {"cells": [{"cell_type": "code", "source": source}]}
    assert inner_rooms(book) == ["dyn_probe.train.grid.outcomes", "dyn_probe.train"]


def unknown_names(source: str) -> list[str]:
    """What code takes from the library and is not there, and settings of runs that there are none of."""
    known, found = {field.name for field in fields(RunConfig)}, []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dyn_probe"):
            home = importlib.import_module(node.module or "")
            found += [f"{node.module}.{one.name}" for one in node.names if not hasattr(home, one.name)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RunConfig":
            found += [str(keyword.arg) for keyword in node.keywords if keyword.arg not in {None, *known}]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_from_the_library_is_there(path: Path) -> None:
    """Without running it: `make test` runs the quick ones, `make slow` the others."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in [*cell["source"], "\n"] if not line.startswith("%")]
    assert "dyn_probe" in "".join(lines) and unknown_names("".join(lines)) == []


def test_a_name_that_is_gone_is_found() -> None:
    gone = "from dyn_probe import load_trace, load_gone\nRunConfig(out='x', stops=3)"
    assert unknown_names(gone) == ["dyn_probe.load_gone", "stops"]


PREAMBLE = {
    "docs/loop.md": "",
    "docs/token-heatmaps.md": "",
    "docs/mass-dynamics.md": """
from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.loop import record
model, tokenizer = built_in_model(), built_in_tokenizer()
small = dict(max_pairs=12, batch_size=2, steps=2, pretrain_steps=0, sft_steps=0, mass_every=1)
record(RunConfig(out="runs/mine", **small), False)
""",
    "README.md": """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from dyn_probe import PairBatch
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rows = torch.randint(1, 64, (8, 10))
response = torch.zeros_like(rows)
response[:, 6:] = 1
loader = [PairBatch(rows, torch.ones_like(rows), response)] * 3
def reference(batch):
    return torch.full((8,), -16.0)
def my_loss(logps, reference):
    chosen, rejected = (logps - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
""",
}
"""Page → what its examples take for granted."""


@pytest.mark.parametrize("page", PREAMBLE)
def test_python_examples_run(page: str, tmp_path: Path) -> None:
    """All Python blocks of a page, one after the other in one interpreter, in an empty folder."""
    blocks = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    script = "\n".join([PREAMBLE[page], *blocks])
    done = forked.run("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
