"""Attention patterns of all heads as matrices: how many directions, how spread, how much on the first token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.progress import terminal_progress
from lens.base.text import visible
from lens.figures.export import table_csv
from lens.figures.report import Picture, Section, Table
from lens.figures.report_plots import heads_plot
from lens.models.heads import head_states
from lens.probes import attention_entropy, attention_spectrum
from lens.probes.attention_battery import FEWEST, MEASURES, attention_battery
from lens.probes.dataset import variable
from lens.probes.seen_patterns import seen_detail
from lens.report.words import counted, part, thinned
from lens.report.work import Work

_ARTICLES = 2
_LENGTH = 128  # tokens of each, as in the panel of all heads
_DRAWN = {
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "normalised_entropy": "entropy over that of uniform",
    "first_token": "share of the first token",
}
_MEASURES = (*_DRAWN, "mean_entropy", "previous_token", "self_attention")
_SINK = 0.5  # of the attention, to the first token
_BEGINNING = 60  # characters of an article that are told


def section(work: Work) -> Section:
    """Maps of ranks, entropy and sinks over all heads, means over some articles."""
    articles = _articles(work)
    heads, uniform = _measured(work, articles)
    mean = heads.mean("article", keep_attrs=True)
    sinks, count = int((mean.first_token > _SINK).sum()), int(mean.first_token.size)
    size = len(articles[0][1])
    ranks = mean.effective_rank
    few, many = _extreme(ranks, np.nanargmin), _extreme(ranks, np.nanargmax)
    given = f"{counted(sinks, count)} the first token more than half of the attention"
    rank = (
        f"The patterns have effective ranks from {_at(ranks, few):.1f} (block {few[0]}, head {few[1]}) to {_at(ranks, many):.1f} "
        f"(block {many[0]}, head {many[1]}), the median {float(ranks.median()):.1f}; uniform attention would have {uniform:.1f}, "
        f"attention to the token itself {size}."
    )
    entropy = float(mean.normalised_entropy.median())
    return Section(
        "attention-spectra",
        "Spectra of attention",
        says=[
            rank,
            f"{given}. The median head spreads its attention to {part(entropy)} of the entropy of uniform attention.",
        ],
        notable=[f"{given}."],
        pictures=[Picture(heads_plot(mean, name, title, _range(name, size)), _caption(name)) for name, title in _DRAWN.items()],
        tables=[_table(mean, heads)],
        how=f"the first {size} tokens of {len(articles)} articles of {work.corpus.name} that no map was fitted on "
        f"({'; '.join(f'“{visible(text[:_BEGINNING].strip())}…”' for text, _ in articles)}); means over the articles.",
        source=f"{attention_spectrum.SOURCE}; {attention_entropy.SOURCE}",
    )


def _articles(work: Work) -> list[tuple[str, list[int]]]:
    """The first articles of the test part that are long enough, all cut to one length, and their ids."""
    length = min(_LENGTH, work.model.context or _LENGTH)
    found = [(article.text, work.model.encode_bare(article.text)[:length]) for article in work.corpus.part("test")]
    found = sorted(found, key=lambda article: -len(article[1]))[:_ARTICLES]  # stable: the first ones of equal length
    shortest = min((len(ids) for _, ids in found), default=0)
    if shortest <= FEWEST:
        what = f"The longest articles that {work.corpus.name} keeps for tests have {shortest} tokens"
        raise InputError(what, f"more than {FEWEST}", "longer texts")
    return [(text, ids[:shortest]) for text, ids in found]


def _measured(work: Work, articles: list[tuple[str, list[int]]]) -> tuple[xr.Dataset, float]:
    """Every measure over `article`, `block` and `head`, and the effective rank of uniform attention."""
    rows: list[xr.Dataset] = []
    uniform = np.nan
    with terminal_progress() as bar:
        for done, (_, ids) in enumerate(articles, 1):
            states = head_states(work.model, ids, check=work.check)
            rows.append(attention_battery(states, measures=_MEASURES, check=work.check))
            uniform = float(seen_detail(states[0], 0).attrs["uniform_effective_rank"])
            work.step(done, len(articles), "articles", "attention", bar)
    return xr.concat(rows, variable(("article",), np.arange(len(rows)), "article"), combine_attrs="override"), uniform


def _table(mean: xr.Dataset, heads: xr.Dataset) -> Table:
    by_block = mean.median("head")
    sinks = (mean.first_token > _SINK).sum("head")
    blocks = mean.block.to_numpy()
    rows = [[int(blocks[k]), *(float(by_block[name][k]) for name in _DRAWN), int(sinks[k])] for k in thinned(len(blocks))]
    header = ("block", *_DRAWN.values(), "heads that give it half")
    caption = f"Medians over the heads of {len(rows)} of the {len(blocks)} blocks"
    return Table("attention", caption, header, rows, table_csv(heads, _MEASURES, ["article", "block", "head"]))


def _range(name: str, size: int) -> tuple[float, float] | None:
    return (0.0, float(size)) if name == "effective_rank" else MEASURES[name].range


def _caption(name: str) -> str:
    words = MEASURES[name].words
    return words[0].upper() + words[1:]


def _extreme(values: xr.DataArray, of: Callable[[np.ndarray], np.intp]) -> tuple[int, int]:
    """Block and head of the smallest or largest value."""
    shown = values.transpose("block", "head")
    row, column = np.unravel_index(of(shown.to_numpy()), shown.shape)
    return int(shown.block[row]), int(shown["head"][column])


def _at(values: xr.DataArray, place: tuple[int, int]) -> float:
    return float(values.sel(block=place[0], head=place[1]))
