"""Short tables for print: the same on every machine, so that a notebook's output can be compared."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from lens.base.text import visible
from lens.figures.measures import first_shown

_GAP = "  "
WIDTH = 108  # characters that a notebook shows in one line beside the list of files


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3, width: int = WIDTH) -> str:
    """Columns aligned on their left for words and on their right for numbers.

    Args:
        header: one title per column.
        rows: cells; floats are rounded to `digits` decimals, NaN and None show as a dash.
        digits: decimals of floats.
        width: characters in a line. Where columns need more, the widest ones are narrowed and break their words over lines;
            numbers and single words stay whole.
    """
    cells = [[_cell(value, digits) for value in row] for row in rows]
    numeric = [all(_is_number(row[column]) or row[column] == "" for row in rows) for column in range(len(header))]
    columns = list(zip(header, *cells, strict=True))
    widths = _column_widths(columns, width - len(_GAP) * (len(columns) - 1))
    broken = [[_broken(text, room) for text, room in zip(row, widths, strict=True)] for row in [header, *cells]]
    # Rows of several lines run into one another without space between them.
    apart = "\n\n" if any(len(lines) > 1 for row in broken[1:] for lines in row) else "\n"
    return apart.join(_lines(row, widths, numeric) for row in broken)


def _column_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """As wide as the longest cell; where that is too wide together, the widest give way, down to their longest word."""
    widths = [max(len(text) for text in column) for column in columns]
    least = [max(len(word) for text in column for word in (text.split() or [""])) for column in columns]
    while sum(widths) > room and any(wide > low for wide, low in zip(widths, least, strict=True)):
        narrowed = max((place for place, wide in enumerate(widths) if wide > least[place]), key=widths.__getitem__)
        widths[narrowed] -= 1
    return widths


def _broken(text: str, width: int) -> list[str]:
    return [text] if len(text) <= width else textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _lines(row: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    def line(number: int) -> str:
        texts = [lines[number] if number < len(lines) else "" for lines in row]
        aligned = zip(texts, widths, numeric, strict=True)
        return _GAP.join(text.rjust(width) if right else text.ljust(width) for text, width, right in aligned).rstrip()

    return "\n".join(line(number) for number in range(max(len(lines) for lines in row)))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _cell(value: object, digits: int) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.{digits}f}"
    return str(value)


def logit_lens_table(dataset: xr.Dataset, layers: Sequence[int] | None = None, width: int = 9) -> str:
    """The first word of every cell as plain text, layers upward; a star marks where the answer stays.

    Args:
        dataset: from `lens.logit_lens`.
        layers: which layers to show; all by default.
        width: longest word in characters.
    """
    chosen = sorted(layers) if layers is not None else dataset.layer.to_numpy().tolist()
    settled = dataset.settled_layer.to_numpy()
    words = dict(zip(dataset.layer.to_numpy().tolist(), dataset.token.sel(rank=1).to_numpy(), strict=True))

    def cell(layer: int, position: int) -> str:
        star = "*" if layer == first_shown(chosen, settled[position]) else ""
        return visible(str(words[layer][position]), width) + star

    columns = range(dataset.sizes["position"])
    rows = [[layer, *(cell(layer, position) for position in columns)] for layer in reversed(chosen)]
    prompt = ["", *(visible(str(token), width) for token in dataset.input_token.to_numpy())]
    return text_table(["layer", *("" for _ in columns)], [*rows, prompt])


def shortcut_table(score: xr.Dataset) -> str:
    """Held-out R² of the maps to the last layer, one line each.

    Args:
        score: from `Shortcuts.score`.
    """
    last = int(score.to_layer.max())
    shown = score.isel(pair=(score.to_layer == last).to_numpy())
    names = ("r2_pooled", "r2_uniform", "identity_r2_pooled", "null_r2")
    header = (f"layer to {last}", "R², pooled", "R², mean over coordinates", "unchanged state", "expected of noise")
    columns = (shown.from_layer.to_numpy(), *(shown[name].to_numpy() for name in names))
    return text_table(header, list(zip(*columns, strict=True)))


def tuned_table(results: Mapping[str, Sequence[float]]) -> str:
    """KL to the model's own distribution on the validation part, layer by layer.

    Args:
        results: of the record of a tuned lens: `layers`, and `kl_plain`, `kl_start`, `kl_tuned` in nats.
    """
    columns = (results[name] for name in ("layers", "kl_plain", "kl_start", "kl_tuned"))
    header = ("layer", "KL of the plain lens (nats)", "of the start", "of the tuned lens")
    return text_table(header, [(int(layer), *rest) for layer, *rest in zip(*columns, strict=True)])
