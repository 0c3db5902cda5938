"""The loss of a running model when its rotary table is changed under it, position by position, and what its heads then look at.

The model was trained at one table and has never seen another, so that what is measured is how far it bears a change:
not what a model that was trained at the other base could do.

Sources: Su et al., "RoFormer" (arXiv 2104.09864), section 3.4, for the table; Chen et al., "Extending Context Window of Large
Language Models via Positional Interpolation" (arXiv 2306.15595) and Peng et al., "YaRN" (arXiv 2309.00071), for tables that
are changed after training; Barbero et al., "Round and Round We Go" (arXiv 2410.06205), for lanes that are stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.progress import Progress, Step, terminal_progress
from lens.collect.windows import SHORTEST_WINDOW, draw_documents
from lens.corpora import Corpus, Part
from lens.models import edits
from lens.models.frequencies import RopeTable, rope_table
from lens.models.model import Model
from lens.models.rotary import rotaries
from lens.probes.dataset import exact, texts, variable
from lens.probes.token_losses import token_losses
from lens.probes.verdict import document_interval

SOURCE = "arXiv 2104.09864, section 3.4; arXiv 2306.15595; arXiv 2309.00071; arXiv 2410.06205 (lanes stopped)"
TRAINED = "as trained"
LONGEST_PATTERN = 256  # tokens; patterns grow with the square
_COST = "increase of the loss over the trained table"

Turn = float | int | RopeTable | np.ndarray
Window = tuple[list[int], int]


def rope_sweep(
    model: Model,
    corpus: Corpus | Sequence[str] | Sequence[Sequence[int]],
    tables: Mapping[str, Turn] | Sequence[Turn],
    *,
    tokens: int = 3072,
    window: int = 256,
    part: Part = "test",
    bins: Sequence[int] | None = None,
    patterns: int = 0,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss by position under each of several rotary tables, beside the table that the model was trained with.

    Args:
        model: a model with rotary position embeddings.
        corpus: a corpus, of which one part is read; or texts, or lists of token ids, each of them one document.
        tables: for each row of the result a base, a table from `lens.models.frequencies.rope_table`, or a mask
            `[lane]`, True for lanes that are to stand still; with names of your own, or a list that is named here.
        tokens: how many to read; the last of each window has no next token and is not scored.
        window: tokens of context; at most the model's.
        part: `test`, or another part of the corpus.
        bins: where bins of positions begin and end, increasing; by default 0, 16, 32, 64, … up to the window.
        patterns: of how many windows the attention is looked at, each cut to 256 tokens; 0 leaves it out.
        progress: callback in tokens, each read once for every table; by default a bar in a terminal.
        check: called before every block; raising from it stops, and leaves the model as it was.

    Returns:
        Dataset over `table`, whose first row is the model as trained, `position` of the token read and `bin`; in nats per token

        - `loss` over `[table, position]`: mean −log p of the next token; `scored` over `[position]`: number of windows in it;
        - `bin_loss` over `[table, bin]`, and `bin_cost`, the same less the trained model's on the same tokens;
        - `mean_loss` and `cost` over `[table]`, over all positions;
        - each with `…_low` and `…_high`: 95 % intervals over documents, NaN where there is only one;
        - `document_cost` over `[table, document]`: the cost in each document, whose weights are `document_scored`;
        - with `patterns`, over `[table, block, head]`, mean over all queries but the first: `attended_distance` (tokens), and the
          attention given to the token before (`previous_token`), to the first one (`first_token`), and to the token itself
          (`same_token`).

        Coordinates `base` (as it was asked for; the trained one where only lanes are stopped, NaN for a table without one)
        and `kind` over `[table]`; `bin_start` and `bin_stop` over `[bin]`, the latter left out of the bin.
        A table equal to the trained one gives the same bits, so that its cost is exactly zero.

    Cost: one forward pass of all tokens for each table. Memory: `(blocks + 1) · window · d` values, the logits of 128 positions,
    and with `patterns` at most `blocks · heads · 256²` weights more.

    Raises:
        InputError: no table, two of one name, no window of two tokens, or a mask of another length.
        UnsupportedModelError: a model without rotary position embeddings, or one whose tables cannot be edited.
    """
    turns = _turns(model, tables)
    windows = _windows(model, corpus, tokens, min(window, model.context or window), part)
    edges = _edges(bins, max(len(ids) for ids, _ in windows) - 1)
    measured = {name: _Readings([], []) for name in turns}
    total, done = len(turns) * sum(len(ids) for ids, _ in windows), 0
    name = corpus.name if isinstance(corpus, Corpus) else "texts"
    with terminal_progress() as bar:
        for number, (ids, _) in enumerate(windows):
            for label, turn in turns.items():
                with _turned(model, turn):
                    measured[label].losses.append(token_losses(model, ids, check))
                    if number < patterns:
                        measured[label].patterns.append(_attention(model, ids[:LONGEST_PATTERN], check))
                done += len(ids)
                (progress or bar)(Step(done, total, "tokens", f"{name}, rotary tables"))
    facts = (
        {"corpus": corpus.name, "corpus_hash": corpus.digest, "part": part} if isinstance(corpus, Corpus) else {"corpus": name}
    )
    return _dataset(model, turns, windows, edges, measured, facts)


def lane_ablations(model: Model, factor: float = 0.5) -> dict[str, RopeTable | np.ndarray]:
    """Settings for `rope_sweep` that tell fast lanes from slow ones: stopped, and turned by one and the same factor.

    Args:
        model: a model of which all blocks share one table.
        factor: what the frequencies of the fastest and of the slowest eighth are multiplied with.

    Returns:
        Name to mask or table: the slowest quarter and eighth stopped, the fastest quarter and eighth stopped, all stopped
        (no rotation at all), and the slowest, the fastest and each other eighth at `factor` times their frequency.

    Raises:
        InputError: blocks with tables of their own. UnsupportedModelError: no rotary position embeddings.
    """
    table = trained_table(model)
    count = len(table.theta)
    lanes = np.arange(count)
    parts = {
        "slowest quarter": lanes >= count - count // 4,
        "slowest eighth": lanes >= count - count // 8,
        "fastest quarter": lanes < count // 4,
        "fastest eighth": lanes < count // 8,
        "all lanes": lanes >= 0,
    }
    stopped = {f"{name} stopped": mask for name, mask in parts.items()}
    scaled = {
        f"lanes {eighth[0]} to {eighth[-1]} times {factor:g}": _scaled(table, eighth, factor)
        for eighth in np.array_split(lanes, min(8, count))
    }
    return {**stopped, **scaled}


def trained_table(model: Model) -> RopeTable:
    """The one rotary table that all blocks of a model share.

    Raises:
        InputError: blocks with tables of their own. UnsupportedModelError: no rotary position embeddings.
    """
    found = rotaries(model)
    first = found[0]
    if any(not np.array_equal(one.theta, first.theta) for one in found[1:]):
        raise InputError(
            f"{model.name} has {len(found)} rotary tables", "one for all blocks", "a RopeTable or a mask of your own"
        )
    return first.table


def _scaled(table: RopeTable, lanes: np.ndarray, factor: float) -> RopeTable:
    theta = table.theta.copy()
    theta[lanes] *= factor
    return explicit(table, theta)


def explicit(table: RopeTable, theta: np.ndarray) -> RopeTable:
    """A table like another one, with given frequencies."""
    return rope_table("explicit", table.base, table.width, theta=theta, attention_factor=table.attention_factor)


# -- what is read, and under what -----------------------------------------------------------------


def _turns(model: Model, tables: Mapping[str, Turn] | Sequence[Turn]) -> dict[str, Turn | None]:
    """Names and settings, the trained model first."""
    lanes = [len(one.theta) for one in rotaries(model)]  # refuses models without
    for mask in tables.values() if isinstance(tables, Mapping) else tables:
        if isinstance(mask, np.ndarray) and (mask.dtype != bool or any(mask.shape != (count,) for count in lanes)):
            given = f"A mask is of shape {mask.shape} and {mask.dtype}"
            raise InputError(given, f"one bool for each of {lanes[0]} lanes", "np.arange(lanes) >= 24")
    named = list(tables.items()) if isinstance(tables, Mapping) else [(_name(table), table) for table in tables]
    found: dict[str, Turn | None] = {TRAINED: None, **dict(named)}
    if not named or len(found) <= len(named):
        names = ", ".join(name for name, _ in named) or "none"
        raise InputError(f"The tables are {names}", f"one or more, each with a name of its own but {TRAINED!r}", "[1e4, 1e6]")
    return found


def _name(table: Turn) -> str:
    if isinstance(table, RopeTable):
        factor = table.parameters.get("factor")
        return f"{table.kind}, base {table.base:g}" if factor is None else f"{table.kind}, factor {factor:g}"
    if isinstance(table, np.ndarray):
        return f"lanes {', '.join(map(str, np.flatnonzero(table)))} stopped"
    return f"base {table:,.0f}"


@contextmanager
def _turned(model: Model, turn: Turn | None) -> Iterator[None]:
    """The model under one setting, and as it was afterwards."""
    if turn is None or (isinstance(turn, np.ndarray) and not turn.any()):
        edit: Any = nullcontext()
    elif isinstance(turn, RopeTable):
        edit = edits.rope_table(model, "explicit", theta=turn.theta, attention_factor=turn.attention_factor)
    elif isinstance(turn, np.ndarray):
        edit = edits.rope_lanes(model, stop=np.flatnonzero(turn).tolist())
    else:
        edit = edits.rope_base(model, float(turn))
    with edit:
        yield


def _windows(model: Model, corpus: Any, tokens: int, window: int, part: Part) -> list[Window]:
    if isinstance(corpus, Corpus):
        found = draw_documents(model, corpus, part, tokens, window)
    else:
        bare = [model.encode_bare(one) if isinstance(one, str) else model.encode(one) for one in corpus]
        found = [(ids[:window], number) for number, ids in enumerate(bare)]
    found = [(ids, document) for ids, document in found if len(ids) > 1]
    if not found:
        raise InputError(
            "There is no window of two tokens", f"texts, in a corpus of {SHORTEST_WINDOW} tokens or more", "more text"
        )
    return found


def _edges(bins: Sequence[int] | None, last: int) -> np.ndarray:
    """Where bins begin and end: doubled from 16 on, up to the longest window, unless they are given."""
    if bins is None:
        doubled = [0, *(16 * 2**power for power in range(32) if 16 * 2**power < last), last]
        return np.array(doubled)
    edges = np.asarray(bins)
    if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) <= 0).any() or edges[0] < 0 or edges[-2] >= last:
        needed = f"two or more positions that increase, the last bin beginning before {last}"
        raise InputError(f"The bins are {list(bins)}", needed, "bins=(0, 128, 256)")
    return edges


@dataclass(frozen=True)
class _Readings:
    """Of one table: losses of every window `[position]`, and of some windows what its heads look at `[measure, block, head]`."""

    losses: list[np.ndarray]
    patterns: list[np.ndarray] = field(default_factory=list)


# -- attention ------------------------------------------------------------------------------------

_PATTERN_MEASURES = {
    "attended_distance": ("mean distance to the tokens attended to", "tokens"),
    "previous_token": ("attention to the token before", "1"),
    "first_token": ("attention to the first token", "1"),
    "same_token": ("attention to the token itself", "1"),
}


def _attention(model: Model, ids: Sequence[int], check: Callable[[], None] | None) -> np.ndarray:
    patterns = model.run(ids, attention=True, logits=False, check=check).attention
    assert patterns is not None  # asked for
    return np.stack([measure.cpu().double().numpy() for measure in _pattern_measures(patterns.float())])


def _pattern_measures(patterns: Float[Tensor, "block head query key"]) -> tuple[Tensor, ...]:
    """Each `[block, head]`, in the order of `_PATTERN_MEASURES`. The first query, which sees itself alone, is left out."""
    size = patterns.shape[-1]
    places = torch.arange(size, device=patterns.device)
    distance = (places[:, None] - places).clamp(min=0).float()
    seen = patterns[..., 1:, :]
    return (
        torch.einsum("bhqk,qk->bh", seen, distance[1:]) / (size - 1),
        patterns.diagonal(-1, -2, -1).mean(-1),
        seen[..., 0].mean(-1),
        patterns.diagonal(0, -2, -1)[..., 1:].mean(-1),
    )


# -- the result -----------------------------------------------------------------------------------


def _dataset(
    model: Model,
    turns: Mapping[str, Turn | None],
    windows: Sequence[Window],
    edges: np.ndarray,
    measured: Mapping[str, _Readings],
    facts: Mapping[str, str],
) -> xr.Dataset:
    size = max(len(ids) for ids, _ in windows) - 1
    losses = np.full((len(turns), len(windows), size), np.nan)
    for row, readings in enumerate(measured.values()):
        for number, found in enumerate(readings.losses):
            losses[row, number, : len(found)] = found
    documents = np.array([document for _, document in windows])
    bases = np.array([_base(model, turn) for turn in turns.values()])
    kinds = [_kind(turn) for turn in turns.values()]
    coords = {
        "table": texts(("table",), list(turns), "rotary table under which the model ran"),
        "base": exact(("table",), bases, "rotary base"),
        "kind": texts(("table",), kinds, "kind of change"),
        "position": variable(("position",), np.arange(size), "position of the token read"),
        "bin": variable(("bin",), np.arange(len(edges) - 1), "bin of positions"),
        "bin_start": variable(("bin",), edges[:-1], "first position of the bin"),
        "bin_stop": variable(("bin",), edges[1:], "first position after the bin"),
        "document": variable(("document",), np.unique(documents), "document, in the order in which they are read"),
    }
    found = {**_by_position(losses), **_by_bin(losses, documents, edges), **_by_document(losses, documents)}
    attrs = {"source": SOURCE, "probe": "rope_sweep", **facts, "windows": len(windows), "window": size + 1}
    attrs |= {"trained_base": float(bases[0]), "tokens_scored": int(np.isfinite(losses[0]).sum()), "context": model.context or 0}
    attrs |= {"blocks": model.n_layers, "width": rotaries(model)[0].table.width}
    return xr.Dataset({**found, **_by_head(list(measured.values()))}, coords=coords, attrs={**attrs, **model.provenance()})


def _base(model: Model, turn: Turn | None) -> float:
    if isinstance(turn, RopeTable):
        return turn.base
    return rotaries(model)[0].table.base if turn is None or isinstance(turn, np.ndarray) else float(turn)


def _kind(turn: Turn | None) -> str:
    if turn is None:
        return TRAINED
    return turn.kind if isinstance(turn, RopeTable) else "lanes" if isinstance(turn, np.ndarray) else "base"


def _by_position(losses: np.ndarray) -> dict[str, xr.Variable]:
    scored = np.isfinite(losses[0]).sum(0)
    return {
        "loss": variable(("table", "position"), np.nansum(losses, 1) / scored, "next-token loss", "nats"),
        "scored": variable(("position",), scored, "windows that reach this position"),
    }


def _by_bin(losses: np.ndarray, documents: np.ndarray, edges: np.ndarray) -> dict[str, xr.Variable]:
    """Means with their intervals, over each bin and over all positions; costs are differences on the same tokens."""
    costs = losses - losses[0]
    parts = [slice(start, stop) for start, stop in pairwise(edges.tolist())]
    found: dict[str, xr.Variable] = {}
    for name, values, what in (
        ("loss", losses, "next-token loss"),
        ("cost", costs, "increase of the loss over the trained table"),
    ):
        binned = np.stack([_with_interval(values[..., part], documents) for part in parts], -1)
        whole = _with_interval(values, documents)
        mean = "mean_loss" if name == "loss" else name
        for at, end in enumerate(("", "_low", "_high")):
            words = f"{('', 'lower end of the 95 % interval of the ', 'upper end of the 95 % interval of the ')[at]}{what}"
            found[f"bin_{name}{end}"] = variable(("table", "bin"), binned[at], words, "nats")
            found[f"{mean}{end}"] = variable(("table",), whole[at], words, "nats")
    return found


def _with_interval(values: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Mean over tokens and its ends over documents, `[3, table]`, of `[table, window, position]`; NaN was not scored."""
    sums, counts = _document_sums(values, documents)
    means = sums.sum(-1) / counts.sum()
    known = counts > 0
    if known.sum() < 2:
        return np.stack([means, np.full_like(means, np.nan), np.full_like(means, np.nan)])
    ends = [_interval(row[known], counts[known]) for row in sums]
    return np.stack([means, *np.array(ends).T])


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    return document_interval(list(zip(sums, counts, strict=True)), lambda d: sum(s for s, _ in d) / sum(n for _, n in d))


def _document_sums(values: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums `[table, document]` and counts `[document]`."""
    distinct = np.unique(documents)
    sums = np.stack([np.nansum(values[:, documents == one], (1, 2)) for one in distinct], -1)
    return sums, np.array([np.isfinite(values[0, documents == one]).sum() for one in distinct])


def _by_document(losses: np.ndarray, documents: np.ndarray) -> dict[str, xr.Variable]:
    sums, counts = _document_sums(losses - losses[0], documents)
    return {
        "document_cost": variable(("table", "document"), sums / counts, _COST, "nats"),
        "document_scored": variable(("document",), counts, "tokens scored"),
    }


def _by_head(measured: Sequence[_Readings]) -> dict[str, xr.Variable]:
    if not measured[0].patterns:
        return {}
    means = np.stack([np.mean(readings.patterns, 0) for readings in measured], 1)
    dims = ("table", "block", "head")
    return {
        name: variable(dims, values, words, unit)
        for values, (name, (words, unit)) in zip(means, _PATTERN_MEASURES.items(), strict=True)
    }
