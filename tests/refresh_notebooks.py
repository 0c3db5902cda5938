"""Execute the notebooks again and store their outputs: `python tests/refresh_notebooks.py [NAME …]`.

What a browser or a machine adds is left out: widget state, widget views (they show an error when a
notebook is opened without its kernel; the picture stored beside them does not), timings, and paths. The device
that verdicts were measured on stays, as metadata of their table, which is not compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
VIEW = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> None:
    """Execute one notebook in its own folder and write it back, cleaned."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(clean(notebook), path)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep sources, outputs, execution counts and tags; drop what differs between machines or sessions."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(VIEW, None)
            if "metadata" in output:
                output.metadata = nbformat.from_dict({name: kept for name, kept in output.metadata.items() if name == "lens"})
    return notebook


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = sys.argv[1:] or sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        refresh(NOTEBOOKS / Path(name).name)
        print(f"refreshed {name}")
