"""Makes notebooks (.ipynb) of their sources, notebooks/*.py.

    python scripts/notebooks.py

Nothing is run. What is edited is the source, which is plain Python with a comment at the head of each cell.
"""

from __future__ import annotations

from pathlib import Path

import jupytext

FOLDER = Path(__file__).parents[1] / "notebooks"


def made(source: Path) -> str:
    """Returns the text of the notebook that is made of a source: the same each time, unlike the ids that it brings."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


def main() -> None:
    for source in sorted(FOLDER.glob("*.py")):
        source.with_suffix(".ipynb").write_text(made(source), encoding="utf-8")
        print(source.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
