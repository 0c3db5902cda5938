"""Plots as SVG that becomes a part of a page: its theme's colours, its font, and nothing from elsewhere."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lens.figures.chart import BLACK, SERIES_COLOURS, Plot, chart
from lens.figures.measures import ACCENT
from lens.figures.static_chart import contrast, luminance, seen, static_figure

INK, DARK_INK = "#1b1e24", "#e9ebf0"
PAPER, DARK_PAPER = "#ffffff", "#16181d"
_ROLES = {
    # as drawn; its name in a page, and what it is there, light and dark: text, axes, and what is white because the page is
    INK: ("ink", INK, DARK_INK),
    "#555555": ("soft", "#555555", "#a9b0bd"),
    "#333333": ("strong", "#333333", "#d5d9e0"),
    "#9aa0ab": ("axis", "#9aa0ab", "#6d7480"),
    "#e6e8ec": ("grid", "#e6e8ec", "#2b2f37"),
    ACCENT: ("accent", "#bd4710", "#ff9a3c"),  # the name of what is selected has to be read, too
    PAPER: ("paper", PAPER, DARK_PAPER),
}
_COLOURS = sorted(set(SERIES_COLOURS.values()) - {BLACK})
_SIZE = (4.8, 3.7)  # inches; smaller than a picture of its own, so that its words are read on a narrow screen
_DOTS = 150  # per inch, of cells that are drawn as a picture
_REFERENCE = re.compile(r"(?:^|url\()#([^)]+)")
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_METADATA, _STYLE = f"{_SVG}metadata", f"{_SVG}style"


def inline_svg(plot: Plot, number: int, label: str, selected: Any = None) -> str:
    """One plot as an `<svg>` element without a fixed size.

    Its colours are the custom properties that `theme_styles` defines. Cells of maps are a picture inside, so that a map of
    thousands of heads stays small.

    Args:
        plot: from `lens.figures.chart`.
        number: different for every plot of a page; it keeps their inner names apart.
        label: what a screen reader says.
        selected: what is marked in the plot.
    """
    import matplotlib

    coloured = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    held: Any = {"svg.fonttype": "none", "svg.hashsalt": "lens", **coloured}
    with matplotlib.rc_context(held):
        figure = static_figure(chart([plot]), {plot["name"]: selected})
        figure.set_size_inches(_SIZE)
        for axes in figure.axes:
            for cells in axes.collections:
                # Only cells have a map of colours; intervals and dots stay shapes.
                cells.set_rasterized(plot["kind"] == "heat_map")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, dpi=_DOTS, metadata={"Date": None, "Creator": None})
    return _adapted(stream.getvalue(), number, label, is_map=plot["kind"] == "heat_map")


def theme_styles() -> str:
    """Custom properties of both themes, for the page that holds the plots."""
    light = {name: colour for name, colour, _ in _ROLES.values()}
    dark = {name: colour for name, _, colour in _ROLES.values()}
    for colour in _COLOURS:
        name = _named(colour)
        light[name], dark[name] = _hex(seen(colour)), _lightened(colour)

    def listed(colours: dict[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

    return f":root {{ {listed(light)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {listed(dark)} }} }}\n"


def _adapted(svg: str, number: int, label: str, *, is_map: bool) -> str:
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    for part in (_METADATA, _STYLE):
        for parent in root.iter():
            for child in parent.findall(part):
                parent.remove(child)
    used = {found for part in root.iter() for value in part.attrib.values() for found in _REFERENCE.findall(value)}
    for part in root.iter():
        attributes = {name: _attribute(name, value, number, is_map) for name, value in part.items()}
        if attributes.get("id", "").removeprefix(f"f{number}-") not in used:
            attributes.pop("id", None)  # nothing refers to it
        part.attrib.clear()
        part.attrib.update({name.removeprefix(_XLINK): value for name, value in attributes.items()})
        part.tag, part.tail = part.tag.removeprefix(_SVG), None
        if part.text is not None and not part.text.strip():
            part.text = None
    root.attrib = {
        "xmlns": _SVG[1:-1],
        "class": "plot map" if is_map else "plot",
        "role": "img",
        "aria-label": label,
        "viewBox": root.attrib["viewBox"],
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, number: int, is_map: bool) -> str:
    """With names of this plot's own, the page's colours and font, and coordinates to a hundredth of a point."""
    if name == "id":
        return f"f{number}-{value}"
    value = _REFERENCE.sub(lambda found: found[0].replace("#", f"#f{number}-"), value)
    if name == "style":
        value = re.sub(r"font-family: [^;]*; ", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda found: _themed(found[0], is_map), value)
    if value.startswith("data:"):
        return value
    return re.sub(r"(\.[0-9]{2})[0-9]+", r"\1", " ".join(value.split()))


def _themed(colour: str, is_map: bool) -> str:
    if colour in _ROLES and not (is_map and colour == PAPER):
        return f"var(--{_ROLES[colour][0]})"
    if is_map:
        return colour  # cells are pale or deep whatever the page is
    if colour == BLACK:
        return "var(--ink)"
    name = next((name for name, drawn in _drawn().items() if drawn == colour), None)
    return colour if name is None else f"var(--{name})"


def _drawn() -> dict[str, str]:
    """Names of the series' colours, and how they are drawn on white."""
    return {_named(colour): _hex(seen(colour)) for colour in _COLOURS}


def _named(colour: str) -> str:
    return f"c{colour[1:].lower()}"


def _lightened(colour: str) -> str:
    """The colour, lightened until it stands out from the dark page by 4.5 : 1."""
    page = luminance(_channels(DARK_PAPER))
    mixed = (share + (1 - share) * _channels(colour) for share in np.linspace(0, 1, 101))
    return _hex(next(one for one in mixed if contrast(one, page) >= 4.5))


def _channels(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _hex(channels: Any) -> str:
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in channels)
