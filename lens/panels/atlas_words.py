"""What the attention atlas says in words: what is striking, what is left out, and what the work will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lens.figures.head_grid import EDGES, WHOLE, tile_of
from lens.probes.singular_values import EXACT

MULTIPLICATIONS = 5e9  # a second, of the battery on one core of a common machine


def estimate(cost: Mapping[str, int]) -> str:
    """What the measures of all heads take, in words; processors differ, so the time is a rough one."""
    seconds = cost["multiplications"] / MULTIPLICATIONS
    return f"measuring {cost['heads']} heads, {cost['bytes'] / 1e6:,.0f} MB, about {max(1, seconds):.0f} s"


def left_out(positions: int, cut: int, drop_sink: bool) -> str:
    """What is not in the picture.

    Args:
        positions: tokens that were read.
        cut: tokens at the end of the text that were not.
        drop_sink: whether the first token is left out.
    """
    parts = []
    if cut:
        parts.append(f"the last {cut:,} tokens of the text were not read")
    if positions > WHOLE:
        tile = tile_of(positions)
        parts.append(f"the map shows the largest of {tile} × {tile} weights, the text the {EDGES} strongest keys of each query")
    if positions > EXACT:
        parts.append(f"beyond {EXACT} tokens no spectra of all heads, only the chosen one's")
    if drop_sink:
        parts.append("the first token is left out, its share given back")
    return "; ".join(parts)


def sentence(facts: Mapping[str, Any]) -> str:
    """What is striking of the chosen head, and of all of them."""
    unit = "" if facts["unit"] == "1" else f" {facts['unit']}"
    place = "the highest" if facts["rank"] == 1 else f"number {facts['rank']}"
    value = "no value" if facts["value"] is None else f"{_figure(facts['value'])}{unit}, {place} of {facts['heads']} heads"
    if facts["measure"] == "effective_rank" and facts["value"] is not None:
        uniform = _figure(facts["uniform_effective_rank"])
        value += f"; uniform attention has {uniform}, attention to the token itself {facts['positions']}"
    shares = {"first_token": "to the first token", "previous_token": "to the token before", "self_attention": "to itself"}
    said = [f"{100 * facts[key]:.0f} % {words}" for key, words in shares.items() if facts[key] is not None]
    return (
        f"Block {facts['block']}, head {facts['head']}: {facts['measured']} {value}. On average a token gives "
        f"{', '.join(said[:-1])} and {said[-1]}. {_count(facts['sinks'], facts['heads'])} the first token more than half."
    )


def _count(sinks: int, heads: int) -> str:
    return f"{sinks} of the {heads} heads give" if sinks != 1 else f"One of the {heads} heads gives"


def _figure(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:,.0f}"
