"""A notebook that compares nothing passes nbval; these tests forbid it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from tests.refresh_notebooks import VIEW, clean

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
IGNORED = {"nbval-ignore-output", "nbval-skip", "nbval-check-output", "raises-exception", "nbval-raises-exception"}
LARGEST = 500_000  # bytes


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def compared(cell) -> bool:
    """Whether nbval has something stored for this cell that it really compares."""
    if IGNORED & set(cell.metadata.get("tags", [])):
        return False
    kinds = {kind for output in cell.outputs for kind in output.get("data", {"stream": 0})}
    return bool(kinds & {"text/plain", "stream"})


def problems(notebook) -> list[str]:
    """What would let a notebook pass without telling the truth."""
    cells = code_cells(notebook)
    found = [f"cell {i} was never executed" for i, cell in enumerate(cells) if cell.execution_count is None]
    found += [f"cell {i} holds an error" for i, cell in enumerate(cells) for o in cell.outputs if o.output_type == "error"]
    found += [f"cell {i} wrote to stderr" for i, cell in enumerate(cells) for o in cell.outputs if o.get("name") == "stderr"]
    ignored = [i for i, cell in enumerate(cells) if IGNORED & set(cell.metadata.get("tags", []))]
    if len(ignored) != 1:
        found.append(f"{len(ignored)} cells are exempt from comparison; the setup cell alone may be")
    silent = [i for i, cell in enumerate(cells) if i not in ignored and not compared(cell)]
    found += [f"cell {i} has no output to compare" for i in silent]
    if "widgets" in notebook.metadata or VIEW in json.dumps(notebook):
        found.append("widget state or views are stored")
    if re.search(r"/(root|home|Users|work|tmp)/", json.dumps(notebook)):
        found.append("an absolute path is stored")
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_cell_is_executed_and_compared(path: Path):
    assert problems(nbformat.read(path, as_version=4)) == []
    assert path.stat().st_size <= LARGEST


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_as_refreshing_stores_it(path: Path):
    notebook = nbformat.read(path, as_version=4)
    assert nbformat.writes(clean(nbformat.read(path, as_version=4))) == nbformat.writes(notebook)


def test_there_are_notebooks():
    assert {"00-start-here", "logit-lens"} <= {path.stem for path in PATHS}


@pytest.mark.parametrize("guide", ["README.md", "notebooks/00-start-here.ipynb"])
def test_every_notebook_is_named_where_a_reader_begins(guide: str):
    text = (FOLDER.parent / guide).read_text(encoding="utf-8")
    others = [path for path in PATHS if path.stem != Path(guide).stem]
    assert [path.stem for path in others if f"{path.stem}.ipynb)" not in text] == []


@pytest.fixture
def sound():
    return nbformat.read(FOLDER / "00-start-here.ipynb", as_version=4)


def test_guard_sees_an_unexecuted_cell(sound):
    code_cells(sound)[-1].execution_count = None
    assert any("never executed" in problem for problem in problems(sound))


def test_guard_sees_stripped_outputs(sound):
    code_cells(sound)[-1].outputs = []
    assert any("no output to compare" in problem for problem in problems(sound))


def test_guard_sees_widget_state_and_paths(sound):
    sound.metadata["widgets"] = {}
    sound.cells[0].source += " /home/somebody/x"
    assert {"widget state or views are stored", "an absolute path is stored"} <= set(problems(sound))


def test_guard_sees_a_second_exempt_cell(sound):
    code_cells(sound)[-1].metadata["tags"] = ["nbval-skip"]
    assert any("exempt" in problem for problem in problems(sound))
