"""The token grid of the logit lens: as a description for our own widget, and as a plotly figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lens.base.text import plotly_safe, visible
from lens.figures.measures import (
    ACCENT,
    DEEP,
    SURFACE,
    Measure,
    cell_values,
    chosen_measure,
    first_shown,
    measures,
    shown_correct,
    shown_layers,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go


def grid_spec(dataset: xr.Dataset) -> dict[str, Any]:
    """Describe the grid for the browser: small JSON and little-endian arrays.

    A pure function of the Dataset. Every layer is in it, so that colour, stride and selection need
    no answer from Python. Probabilities, entropies and divergences travel as 16-bit shares of their
    largest possible value: an error below 1e-5 of it, which no picture shows. Size: 28 bytes a cell
    with its five words, and the text of each distinct word once.

    Args:
        dataset: from `lens.logit_lens`.

    Returns:
        A dict of plain values and of arrays as `{"dtype", "shape", "data": bytes}`; a value is the
        stored integer times `"scale"` where there is one, and unknown where it equals `"missing"`.
    """
    ids, words = _word_table(dataset)
    vocabulary = int(dataset.attrs["vocabulary"])
    return {
        "version": 1,
        "title": str(dataset.attrs["model"]),
        "layers": dataset.layer.to_numpy().tolist(),
        "input": [visible(token) for token in dataset.input_token.to_numpy()],
        "words": words,
        "word_ids": ids.tolist(),
        "rank_count": dataset.sizes["rank"],
        "top": _integers(np.searchsorted(ids, dataset.token_id.to_numpy()), len(ids)),
        "probability": _scaled(np.exp(dataset.logprob.to_numpy()), 1.0),
        "final_probability": _scaled(np.exp(dataset.final_logprob.to_numpy()), 1.0),
        "entropy": _scaled(dataset.entropy.to_numpy(), float(np.log(vocabulary))),
        "kl_to_final": _scaled(dataset.kl_to_final.to_numpy(), float(dataset.kl_to_final.max())),
        "next_rank": {**_integers(np.nan_to_num(dataset.next_rank.to_numpy()), vocabulary + 1), "missing": 0},
        "final": np.searchsorted(ids, dataset.token_id.isel(layer=-1, rank=0).to_numpy()).tolist(),
        "next": [*np.searchsorted(ids, dataset.input_id.to_numpy()[1:]).tolist(), -1],
        "settles": dataset.settled_layer.to_numpy().tolist(),
        "first_correct": [-1 if np.isnan(layer) else int(layer) for layer in dataset.first_correct_layer.to_numpy()],
        "sentences": [sentence(dataset, position) for position in range(dataset.sizes["position"])],
        "colours": [measure.spec() for measure in measures(dataset).values()],
    }


def _word_table(dataset: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    """Distinct token ids in ascending order, and their visible texts (two tokens can look the same)."""
    ids = np.concatenate([dataset.token_id.to_numpy().ravel(), dataset.input_id.to_numpy()])
    texts = np.concatenate([dataset.token.to_numpy().ravel(), dataset.input_token.to_numpy()])
    distinct, first = np.unique(ids, return_index=True)
    return distinct, [visible(text) for text in texts[first]]


def _integers(values: np.ndarray, count: int) -> dict[str, Any]:
    """Whole numbers below `count`, in as few bytes as they need."""
    return _array(values, "uint16" if count <= 2**16 else "uint32")


def _scaled(values: np.ndarray, largest: float) -> dict[str, Any]:
    """Numbers between 0 and `largest` as 16-bit shares of it."""
    scale = largest / 65535 or 1.0
    return {**_array(np.rint(values / scale).clip(0, 65535), "uint16"), "scale": scale}


def _array(values: np.ndarray, dtype: str) -> dict[str, Any]:
    array = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "shape": list(array.shape), "data": array.tobytes()}


def sentence(dataset: xr.Dataset, position: int) -> str:
    """What the lens says at one position, in words and with its number."""
    here = dataset.isel(position=position)
    answer = visible(str(here.token.isel(layer=-1).sel(rank=1).item()))
    probability = float(np.exp(here.logprob.isel(layer=-1).sel(rank=1)))
    settled, first, last = int(here.settled_layer), int(dataset.layer[0]), int(dataset.layer[-1])
    prompt = visible(str(here.input_token.item()))
    when = (
        "only the last layer says so" if settled == last
        else "every layer says so" if settled == first
        else f"the {dataset.attrs.get('lens', 'plain')} lens says so from layer {settled} of {last} on"
    )  # fmt: skip
    text = f"After “{prompt}” the model answers “{answer}” with probability {probability:.2f}; {when}."
    if position + 1 < dataset.sizes["position"]:
        following = dataset.isel(position=position + 1)
        agrees = int(following.input_id) == int(here.token_id.isel(layer=-1, rank=0))
        text += " The text agrees." if agrees else f" The text goes on with “{visible(str(following.input_token.item()))}”."
    return text


def figure(dataset: xr.Dataset, colour: str = "probability", stride: int = 1) -> go.Figure:
    """The token grid as a plotly heat map: layers up, positions right, the first word in each cell.

    An orange rule marks, in each column, the first shown layer from which the answer stays; a dot the
    first one that names the token which really follows.

    Args:
        dataset: from `lens.logit_lens`.
        colour: `probability`, `entropy`, `next_rank` or `kl_to_final`.
        stride: show every so many layers; the first and the last always.
    """
    import plotly.graph_objects as go

    measure = chosen_measure(dataset, colour)
    layers = shown_layers(dataset, stride)
    shown = dataset.sel(layer=layers)
    values = cell_values(shown, colour)
    rows, columns = list(range(len(layers))), list(range(dataset.sizes["position"]))
    grid = go.Heatmap(
        z=measure.shade(values), x=columns, y=rows, zmin=0, zmax=1, colorscale=[[0, SURFACE], [1, DEEP]], xgap=1, ygap=1,
        text=[[plotly_safe(visible(t, 9)) for t in row] for row in shown.token.sel(rank=1).to_numpy()],
        texttemplate="%{text}", textfont={"family": "monospace", "size": 11},
        customdata=_hover_texts(shown, values, measure.label), hovertemplate="%{customdata}<extra></extra>",
        colorbar=_colour_bar(measure),
    )  # fmt: skip
    chart = go.Figure([grid, *_marks(dataset, layers)])
    tokens = [plotly_safe(visible(token, 9)) for token in dataset.input_token.to_numpy()]
    bare = {"showgrid": False, "zeroline": False}
    chart.update_layout(
        template="none", showlegend=False, width=160 + 72 * len(columns), height=120 + 28 * len(rows),
        margin={"l": 60, "r": 20, "t": 20, "b": 60}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        xaxis={**bare, "tickvals": columns, "ticktext": tokens, "tickfont": {"family": "monospace"}},
        yaxis={**bare, "tickvals": rows, "ticktext": layers, "title": {"text": "layer"}},
    )  # fmt: skip
    return chart


def _hover_texts(shown: xr.Dataset, values: np.ndarray, label: str) -> list[list[str]]:
    tokens, probabilities = shown.token.to_numpy(), np.exp(shown.logprob.to_numpy())
    heads = [visible(token) for token in shown.input_token.to_numpy()]

    def cell(row: int, column: int) -> str:
        lines = [f"layer {int(shown.layer[row])}, after “{plotly_safe(heads[column])}”, {label} {values[row, column]:.3g}"]
        pairs = zip(tokens[row, column], probabilities[row, column], strict=True)
        return "<br>".join(lines + [f"{p:.2f}  {plotly_safe(visible(t))}" for t, p in pairs])

    return [[cell(row, column) for column in range(values.shape[1])] for row in range(values.shape[0])]


def _colour_bar(measure: Measure) -> dict[str, Any]:
    title = {"text": measure.title, "side": "right"}
    return {"tickvals": [0, 1], "ticktext": list(measure.ends), "title": title, "thickness": 12, "outlinewidth": 0}


def _marks(dataset: xr.Dataset, layers: list[int]) -> list[go.Scatter]:
    import plotly.graph_objects as go

    rows = {layer: row for row, layer in enumerate(layers)}
    settled = [first_shown(layers, layer) for layer in dataset.settled_layer.to_numpy()]
    correct = shown_correct(dataset, layers)
    rule_x, rule_y = [], []
    for column, layer in enumerate(settled):
        if layer is not None:
            rule_x += [column - 0.48, column + 0.48, None]
            rule_y += [rows[layer] - 0.46, rows[layer] - 0.46, None]
    dots = [(column + 0.38, rows[layer] + 0.3) for column, layer in enumerate(correct) if layer is not None]
    return [
        go.Scatter(x=rule_x, y=rule_y, mode="lines", line={"color": ACCENT, "width": 2.5}, hoverinfo="skip"),
        go.Scatter(
            x=[x for x, _ in dots], y=[y for _, y in dots], mode="markers", hoverinfo="skip",
            marker={"color": ACCENT, "size": 6, "line": {"color": "white", "width": 1}},
        ),
    ]  # fmt: skip
