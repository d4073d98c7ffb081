"""Run notebooks and keep what they show: `python notebooks/execute.py [NAME …]` (all of them without a name).

Outputs are stored as a reader sees them: warnings and progress bars on standard error are left out, and so are times and machine facts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def execute(path: Path) -> None:
    """Run one notebook in an environment of its own and write it back with its outputs."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                     "language_info": {"name": "python"}}  # fmt: skip
    nbformat.write(book, path)


def main() -> None:
    """Run the named notebooks."""
    named = sys.argv[1:] or sorted(path.name for path in HERE.glob("*.ipynb"))
    for name in named:
        execute(HERE / Path(name).name)
        print(name)


if __name__ == "__main__":
    main()
