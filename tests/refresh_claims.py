"""Gather the verdicts of all stored notebooks: `python tests/refresh_claims.py`.

Writes `lens/records/claims.json`, and between README's two markers what `lens.figures.claims.markdown` makes of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.figures.claims import markdown
from lens.figures.verdicts import KIND
from lens.probes.claims import claims_by_paper, claims_dataset

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "lens" / "records" / "claims.json"
README = ROOT / "README.md"
MARKERS = ("<!-- claims -->", "<!-- end of claims -->")


def gather(folder: Path = ROOT / "notebooks") -> list[dict[str, Any]]:
    """Rows of every verdict table, notebook by notebook in the order of their names, as their outputs hold them."""
    return [row for path in sorted(folder.glob("*.ipynb")) for row in rows_of(path)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of one notebook, each with where it stands, the device, and the command that makes its numbers again."""
    rows = []
    heading = ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            heading = ([heading, *headings("".join(cell["source"]))])[-1]
        for output in cell.get("outputs", []):
            for row in output.get("data", {}).get(KIND, {"rows": []})["rows"]:
                section = row.get("section", heading)
                own = {"section": section, "device": output["metadata"]["lens"]["device"], "command": command(path), **row}
                rows.append({**own, "notebook": path.stem, "anchor": anchor(section)})
    return rows


def headings(text: str) -> list[str]:
    """Headings of a markdown text as a page shows them, code fences left out."""
    lines = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
    found = (re.match(r"#{1,6}\s+(.*?)\s*#*$", line) for line in lines)
    return [re.sub(r"[`*]", "", one[1]) for one in found if one]


def anchor(heading: str) -> str:
    """What a link to a heading ends in: JupyterLab and nbconvert, which GitHub shows notebooks with, both make it like this."""
    return quote(heading.replace(" ", "-"), safe="?/:@!$&'*+,;=")  # no round brackets: these end a link in markdown


def command(path: Path) -> str:
    return f"pytest --nbval notebooks/{path.name}"


def record(rows: list[dict[str, Any]]) -> str:
    """The shipped text: one claim a line, so that a change of one number is a change of one line."""
    lines = ",\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    return f'{{"claims": [\n{lines}\n]}}\n'


def with_ledger(readme: str, rows: list[dict[str, Any]]) -> str:
    """README's text with the ledger between its markers.

    Raises:
        InputError: the markers are not there once each, in order.
    """
    start, end = MARKERS
    if Counter(re.findall("|".join(MARKERS), readme)) != {start: 1, end: 1} or readme.index(end) < readme.index(start):
        needed = f"{start} and below it {end}"
        raise InputError("README.md has not both markers of the ledger, once each", needed, "putting them in")
    claims = claims_dataset(rows)
    before, after = readme.split(start)[0], readme.split(end)[1]
    return f"{before}{start}\n{markdown(claims, claims_by_paper(claims))}\n{end}{after}"


def main() -> None:
    rows = gather()
    readme = with_ledger(README.read_text(encoding="utf-8"), rows)
    for path, text in ((RECORD, record(rows)), (README, readme)):
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{len(rows)} claims of {len({row['notebook'] for row in rows})} notebooks")


if __name__ == "__main__":
    try:
        main()
    except InputError as refusal:
        sys.exit(str(refusal))
