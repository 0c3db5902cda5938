"""A panel in a real kernel: what a saved notebook holds."""

from __future__ import annotations

import base64
from pathlib import Path

import nbclient
import nbformat
import pytest

SETUP = """
import lens
from tests.models.families import build, word_tokenizer
model = lens.load(build("llama"), word_tokenizer())
panel = lens.panels.LogitLens(model, "w1 w2 w3")
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outputs() -> list[list]:
    cells = [SETUP, "panel", "panel.set(text='w4 w5 =1+1')\npanel.summary()", "panel.set(text='')\npanel.summary()['error']"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_saved_output_is_the_widget_with_a_picture_for_places_without_a_kernel(outputs):
    [shown] = outputs[1]
    assert shown.output_type == "execute_result"
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    assert base64.b64decode(shown.data["image/png"]).startswith(b"\x89PNG\r\n\x1a\n")
    assert shown.data["text/plain"] == "LogitLens(model='LlamaForCausalLM', text='w1 w2 w3')"


def test_cells_print_nothing_beside_their_result(outputs):
    assert outputs[0] == []
    assert [[output.output_type for output in cell] for cell in outputs[1:]] == [["execute_result"]] * 3


def test_a_mistake_is_a_value_and_no_traceback(outputs):
    assert outputs[3][0].data["text/plain"].startswith("'The text is empty. Needed:")
