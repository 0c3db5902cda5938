"""The attention atlas as a file: one self-contained HTML page, or a drawing of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.text import html_safe
from lens.figures.head_grid import SCRIPTS, STYLES, head_grid_chart
from lens.figures.page import PAGE, widget_source

SUFFIXES = (".html", ".png", ".svg", ".pdf")


def head_grid_page(state: Mapping[str, Any], *, title: str, says: str, source: str) -> str:
    """The atlas as an HTML page that needs no kernel and no network: all heads by all measures, the heads of one block.

    Args:
        state: traits of the widget: `spec`, `block`, `detail`, `selected` and what else is to be seen at first, and `details`, a
            list with the detail of each head that the reader can choose.
        title: of the page.
        says: one line above the picture.
        source: one line below it: model, versions.
    """
    text = json.dumps(_with_text(dict(state)), allow_nan=False)
    return PAGE.format(
        title=html_safe(title),
        css=widget_source(*STYLES),
        prompt=html_safe(says),
        footer=html_safe(source),
        state=text.replace("<", "\\u003c"),  # so the text cannot close its own element
        script=widget_source(*SCRIPTS),
    )


def picture(drawn: Mapping[str, Any], selected: Mapping[str, Any], kind: str = "png", dpi: int = 72) -> bytes:
    """A drawing of the atlas.

    Args:
        drawn: arguments of `head_grid_chart`, by name.
        selected: as in the widget.
        kind: `png`, `svg` or `pdf`.
        dpi: dots per inch.
    """
    from lens.figures.static_chart import static_figure

    stream = io.BytesIO()
    arguments = dict(drawn)
    spec = head_grid_chart(arguments.pop("measures"), arguments.pop("detail"), arguments.pop("tokens"), **arguments)
    static_figure(spec, {"heads": selected["heads"]}).savefig(stream, format=kind, dpi=dpi)
    return stream.getvalue()


def write(path: Path | str, content: str | bytes) -> Path:
    """Write a page or a drawing; atomically."""
    target = Path(path)
    with atomic_file(target) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return target


def require_suffix(path: Path | str) -> str:
    """The suffix of a file name, which says what is written.

    Raises:
        InputError: one that nothing here writes.
    """
    suffix = Path(path).suffix
    if suffix not in (*SUFFIXES, ".csv", ".nc"):
        needed = f"one of {', '.join((*SUFFIXES, '.csv', '.nc'))}"
        raise InputError(f"The file name {Path(path).name!r} ends in {suffix!r}", needed, "atlas.html")
    return suffix


def _with_text(value: Any) -> Any:
    """The same description with arrays in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {name: _with_text(part) for name, part in value.items()}
    return [_with_text(part) for part in value] if isinstance(value, list) else value
