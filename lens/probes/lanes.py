"""Which frequencies make a head's logits, and how much of its queries and keys each lane holds.

A lane is one plane of rotary position embeddings. With q̃ and k̃ its two coordinates as complex numbers, before
rotation, lane i adds `c · α² · Re(q̃_i conj(k̃_i) e^{i(m−n)θ_i})` to the logit of query m and key n: c is the scale of the
softmax, α the attention factor of the table. Dimensions that do not rotate are lanes that stand still, with α = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from jaxtyping import Complex, Float
from torch import Tensor

from lens.base.errors import InputError, UnsupportedModelError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates, to_lanes
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope import bands

SOURCE = "Su et al., arXiv 2104.09864, section 3 (rotary embeddings); Barbero et al., arXiv 2410.06205 (norms by frequency)"

BAND = "fast (wavelength below 32 tokens), slow (longer than the context) or middle"


@dataclass(frozen=True, eq=False)
class HeadLanes:
    """One head's queries and keys as lanes, before rotation; the inputs of everything that is computed from lanes.

    Attributes:
        query, key: complex128. Behind the rotary lanes come those that stand still, two unrotated dimensions in each.
        theta: radians per token, 0 for lanes that stand still.
        weight: factor of each lane in the logit: the softmax scale, times α² where it rotates.
        rotary: how many lanes are rotary.
        window: how many keys a query sees, itself included; None for all.
    """

    query: Complex[np.ndarray, "query lane"]
    key: Complex[np.ndarray, "key lane"]
    theta: Float[np.ndarray, " lane"]
    weight: Float[np.ndarray, " lane"]
    rotary: int
    window: int | None = None

    def turned(self, theta: Float[np.ndarray, " lane"], attention_factor: float = 1.0) -> HeadLanes:
        """The same queries and keys under another table of as many rotary lanes; the factor comes on top of what there is."""
        if len(theta) != self.rotary:
            raise InputError(f"The table has {len(theta)} lanes", f"{self.rotary}, as the head has", "a table of the same width")
        still = self.theta[self.rotary :]
        scale = self.weight[: self.rotary] * attention_factor**2
        weight = np.concatenate([scale, self.weight[self.rotary :]])
        return replace(self, theta=np.concatenate([np.asarray(theta, dtype=float), still]), weight=weight)

    def after(self, skip: int) -> HeadLanes:
        """Without the first positions. Rotation depends on distance alone, so that nothing else changes."""
        if len(self.query) - skip < 2:
            raise InputError(f"{len(self.query)} tokens", f"at least {skip + 2}", "a longer text")
        return replace(self, query=self.query[skip:], key=self.key[skip:])


def head_lanes(
    states: HeadStates, head: int, *, theta: Float[np.ndarray, " lane"] | None = None, attention_factor: float | None = None
) -> HeadLanes:
    """Queries and keys of one head as lanes.

    Args:
        states: of one block.
        head: query head.
        theta, attention_factor: another table instead of the live one.

    Raises:
        InputError: no such head, or a table of another width. UnsupportedModelError: a block without rotary lanes.
    """
    heads = len(states.query)
    if not 0 <= head < heads:
        raise InputError(f"Head {head!r}", f"0 to {heads - 1} in block {states.block}", "head=0")
    if not len(states.theta):
        raise UnsupportedModelError(
            f"Block {states.block} rotates nothing", "a block with rotary position embeddings", "another block"
        )
    sides = [_as_lanes(states, given) for given in (states.query[head], states.key[states.kv_head_of(head)])]
    rotary = len(states.theta)
    still = np.zeros(sides[0].shape[1] - rotary)
    weight = np.concatenate([np.full(rotary, float(states.scaling)), still + float(states.scaling)])
    lanes = HeadLanes(sides[0], sides[1], np.concatenate([states.theta, still]), weight, rotary, states.window)
    return lanes.turned(
        states.theta if theta is None else theta, states.attention_factor if attention_factor is None else attention_factor
    )


def _as_lanes(states: HeadStates, given: Float[Tensor, "position width"]) -> Complex[np.ndarray, "position lane"]:
    """The rotary lanes, then unrotated dimensions, two in a lane; the last is filled up with zero where their number is odd."""
    values = given.double().cpu()
    rotating = values[:, slice(*states.rotary)]
    rest = np.delete(values.numpy(), slice(*states.rotary), axis=1)
    rest = np.pad(rest, ((0, 0), (0, rest.shape[1] % 2)))
    return np.concatenate([np.asarray(to_lanes(rotating, states.layout)), rest[:, 0::2] + 1j * rest[:, 1::2]], axis=1)


# -- pure functions of lanes --------------------------------------------------------------------------------------------


def lane_contributions(
    lanes: HeadLanes, query: Sequence[int] | np.ndarray, key: Sequence[int] | np.ndarray
) -> Float[np.ndarray, "cell lane"]:
    """What each lane adds to the logits of chosen cells, in float64; memory is cells × lanes."""
    queries, keys = np.asarray(query, dtype=int), np.asarray(key, dtype=int)
    turn = np.exp(1j * np.multiply.outer(queries - keys, lanes.theta))
    return lanes.weight * np.real(lanes.query[queries] * lanes.key[keys].conj() * turn)


def lane_profiles(lanes: HeadLanes) -> Float[np.ndarray, "lane offset"]:
    """What each lane adds on average to the logits of queries and keys that lie an offset apart, in float64.

    Sums along diagonals are correlations: one Fourier transform per lane, so that memory is lanes × positions and the
    tensor over queries, keys and lanes is never made. Offsets run from 0 to the last that the window lets see.
    """
    length = len(lanes.query)
    size = 2 * length
    found = np.fft.ifft(np.fft.fft(lanes.query, size, axis=0) * np.fft.fft(lanes.key, size, axis=0).conj(), axis=0)
    offsets = np.arange(min(length, lanes.window or length))
    turned = found[offsets] * np.exp(1j * np.multiply.outer(offsets, lanes.theta))
    return (lanes.weight * np.real(turned) / (length - offsets)[:, None]).T


def first_key_lead(lanes: HeadLanes) -> Float[np.ndarray, " lane"]:
    """By how much each lane lifts the first key above the others, on average over the queries that come later.

    A softmax sees differences between keys alone: where the first token is a sink, the lead says which lanes make it one.
    """
    later = lanes.after(1)
    profile = lane_profiles(later)
    pairs = len(later.query) - np.arange(profile.shape[1])
    queries = np.arange(1, len(lanes.query))
    first = lane_contributions(lanes, queries, 0 * queries).mean(0)
    return first - profile @ pairs / pairs.sum()


def wavelengths(theta: Float[np.ndarray, "*axes lane"]) -> Float[np.ndarray, "*axes lane"]:
    """Tokens per turn; infinite for lanes that stand still."""
    with np.errstate(divide="ignore"):
        return 2 * np.pi / np.abs(theta)


# -- one head -----------------------------------------------------------------------------------------------------------


def lane_logits(
    states: HeadStates,
    head: int,
    cells: Sequence[tuple[int, int]],
    *,
    context: int,
    theta: Float[np.ndarray, " lane"] | None = None,
    attention_factor: float | None = None,
) -> xr.Dataset:
    """The contribution of every lane to chosen cells of a head's logits.

    Args:
        states: of one block.
        head: query head.
        cells: pairs of query and key position.
        context: tokens; lanes with a longer wavelength are slow.
        theta, attention_factor: another table instead of the live one.

    Returns:
        Dataset over `cell` (coordinates `query`, `key`) and `lane` (`wavelength`, in tokens; `band`): `contribution[cell, lane]`,
        `unrotated[cell]` (the dimensions that do not turn) and `logit[cell]`, their sum, before any soft cap. Logits are
        as softmax sees them, scaled.

    Raises:
        InputError: no cell, one outside the text, or what `head_lanes` refuses.
    """
    lanes = head_lanes(states, head, theta=theta, attention_factor=attention_factor)
    length = len(lanes.query)
    wrong = [cell for cell in cells if not (0 <= cell[0] < length and 0 <= cell[1] < length)]
    if wrong or not len(cells):
        raise InputError(f"The cells {wrong or 'asked for'}", f"pairs (query, key) from 0 to {length - 1}", "cells=[(5, 4)]")
    query, key = np.array(cells).T
    parts = lane_contributions(lanes, query, key)
    return xr.Dataset(
        {
            "contribution": exact(("cell", "lane"), parts[:, : lanes.rotary], "contribution of a lane to the logit"),
            "unrotated": exact(("cell",), parts[:, lanes.rotary :].sum(1), "contribution of unrotated dimensions"),
            "logit": exact(("cell",), parts.sum(1), "logit, scaled, before any soft cap"),
        },
        {
            "query": variable(("cell",), query, "position of the query"),
            "key": variable(("cell",), key, "position of the key"),
            **lane_coordinates(lanes.theta[: lanes.rotary]),
            "band": texts(("lane",), bands(wavelengths(lanes.theta[: lanes.rotary]), context), BAND),
        },
        {"source": SOURCE, "probe": "lane_logits", **library_versions(), "block": states.block, "head": head, "context": context},
    )


def lane_offsets(
    states: HeadStates,
    head: int,
    *,
    theta: Float[np.ndarray, " lane"] | None = None,
    attention_factor: float | None = None,
    skip: int = 1,
) -> xr.Dataset:
    """The mean contribution of every lane to a head's logits, by how far the key lies before the query.

    Args:
        states: of one block.
        head: query head.
        theta, attention_factor: another table instead of the live one.
        skip: positions at the start that are left out; the first token's key is mostly a sink.

    Returns:
        Dataset over `lane` and `offset` (tokens): `contribution[lane, offset]`, `unrotated[offset]`, and `logit[offset]`,
        their sum, before any soft cap; `pairs[offset]`, how many cells the mean is over; and `level[lane]`, the mean over all
        of these cells, which a softmax does not see but for its distance from the skipped keys.
    """
    lanes = head_lanes(states, head, theta=theta, attention_factor=attention_factor).after(skip)
    profile = lane_profiles(lanes)
    offsets = np.arange(profile.shape[1])
    pairs = len(lanes.query) - offsets
    return xr.Dataset(
        {
            "contribution": exact(("lane", "offset"), profile[: lanes.rotary], "mean contribution of a lane to the logit"),
            "unrotated": exact(("offset",), profile[lanes.rotary :].sum(0), "mean contribution of unrotated dimensions"),
            "logit": exact(("offset",), profile.sum(0), "mean logit, scaled, before any soft cap"),
            "pairs": variable(("offset",), pairs, "cells that the mean is over"),
            "level": exact(
                ("lane",), (profile[: lanes.rotary] @ pairs) / pairs.sum(), "mean contribution of a lane to all of these"
            ),
        },
        {
            "offset": variable(("offset",), offsets, "tokens from the key to the query", "tokens"),
            **lane_coordinates(lanes.theta[: lanes.rotary]),
        },
        {
            "source": SOURCE,
            "probe": "lane_offsets",
            **library_versions(),
            "block": states.block,
            "head": head,
            "skipped_tokens": skip,
        },
    )


def lane_coordinates(theta: Float[np.ndarray, " lane"]) -> dict[str, xr.Variable]:
    """Coordinates of the dimension `lane`."""
    return {
        "lane": variable(("lane",), np.arange(len(theta)), "rotary lane, 0 the fastest"),
        "theta": exact(("lane",), theta, "rotation per token", "rad"),
        "wavelength": exact(("lane",), wavelengths(theta), "tokens in which the lane turns once", "tokens"),
    }


# -- many heads -----------------------------------------------------------------------------------------------------------


def lane_usage(states: HeadStates | Sequence[HeadStates], *, context: int) -> xr.Dataset:
    """How much of their queries and keys the heads of one or more blocks put into each lane.

    The first token is left out of all means and given by itself: its key is mostly a sink, and far from the others.
    Under grouped queries a key belongs to all heads of its group; means over a group are
    `usage.query_amplitude.groupby("kv_head").mean()` of one block.

    Args:
        states: of one text; blocks without rotary lanes are left out.
        context: tokens; lanes with a longer wavelength are slow.

    Returns:
        Dataset over `block`, `head` and `lane` (coordinates `wavelength` and `band` `[block, lane]`). Blocks can differ in
        their number of lanes (Gemma 4); what a block does not have is NaN, its band empty:

        - `query_amplitude`, `key_amplitude`: mean length of the lane's two coordinates, before rotation;
        - `first_query_amplitude`, `first_key_amplitude`: the same of the first token alone;
        - `query_share`, `key_share`: amplitudes over their sum; `joint_share`: the product of both amplitudes over its
          sum over lanes, 1 in all;
        - `query_coherence`, `key_coherence`: signal to noise, `|mean|² / (mean of squares − |mean|²)`: how far the lane holds
          one fixed vector at every position, which is what a positional pattern needs, rather than what varies with content;
        - `fast_share`, `slow_share` `[block, head]`: joint share of lanes under 32 tokens and of lanes longer than the context.

    Raises:
        InputError: no block, blocks of several numbers of heads, or a text of fewer than three tokens.
        UnsupportedModelError: no block rotates anything.
    """
    rotating = rotating_blocks(states)
    lengths, band = lengths_and_bands(rotating, context)
    found = [_amplitudes(block) for block in rotating]
    values = {name: stacked([one[name] for one in found]) for name in found[0]}
    values |= _shares(values)
    columns = {name: variable(("block", "head", "lane"), values[name], label) for name, label in _LABELS.items()}
    for name in ("fast", "slow"):
        inside = np.nansum(values["joint_share"] * (band == name)[:, None], axis=-1)
        columns[f"{name}_share"] = variable(("block", "head"), inside, f"joint share of the {name} lanes")
    return xr.Dataset(
        columns,
        {
            "block": variable(("block",), np.array([block.block for block in rotating]), "block"),
            "head": variable(("head",), np.arange(len(rotating[0].query)), "query head"),
            "kv_head": variable(("head",), _kv_heads(rotating[0]), "key head that a query head reads"),
            "lane": variable(("lane",), np.arange(lengths.shape[1]), "rotary lane, 0 the fastest"),
            "wavelength": exact(("block", "lane"), lengths, "tokens in which the lane turns once", "tokens"),
            "band": texts(("block", "lane"), band, BAND),
        },
        {
            "source": SOURCE,
            "probe": "lane_usage",
            **library_versions(),
            "context": context,
            "tokens": rotating[0].query.shape[1],
            "skipped_tokens": 1,
        },
    )


_LABELS = {
    "query_amplitude": "mean length of a lane of the queries",
    "key_amplitude": "mean length of a lane of the keys",
    "first_query_amplitude": "length of a lane of the first token's query",
    "first_key_amplitude": "length of a lane of the first token's key",
    "query_share": "share of a lane in the queries",
    "key_share": "share of a lane in the keys",
    "joint_share": "share of a lane in queries times keys",
    "query_coherence": "signal to noise of a lane over positions, queries",
    "key_coherence": "signal to noise of a lane over positions, keys",
}


def _amplitudes(states: HeadStates) -> dict[str, np.ndarray]:
    """Of one block, `[head, lane]` each; keys are repeated for the heads that read them."""
    found = {}
    for side, lanes in (("query", states.query_lanes()), ("key", states.key_lanes()[_kv_heads(states)])):
        later = lanes[:, 1:]
        found[f"{side}_amplitude"] = np.abs(later).mean(1)
        found[f"first_{side}_amplitude"] = np.abs(lanes[:, 0])
        signal = np.abs(later.mean(1)) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"{side}_coherence"] = signal / ((np.abs(later) ** 2).mean(1) - signal)
    return found


def _shares(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    sides = {side: values[f"{side}_amplitude"] for side in ("query", "key")}
    parts = {**sides, "joint": sides["query"] * sides["key"]}
    return {f"{name}_share": part / np.nansum(part, axis=-1, keepdims=True) for name, part in parts.items()}


def _kv_heads(states: HeadStates) -> np.ndarray:
    return np.array([states.kv_head_of(head) for head in range(len(states.query))])


def rotating_blocks(states: HeadStates | Sequence[HeadStates]) -> list[HeadStates]:
    """The blocks that have rotary lanes.

    Raises:
        InputError: no block, blocks of several numbers of heads, or a text of fewer than three tokens.
        UnsupportedModelError: no block rotates anything.
    """
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    rotating = [block for block in blocks if len(block.theta)]
    if not blocks:
        raise InputError("No block was given", "at least one", "head_states(model, text)")
    if not rotating:
        raise UnsupportedModelError("No block rotates anything", "a model with rotary position embeddings", "another model")
    heads = {len(block.query) for block in rotating}
    if len(heads) > 1:
        found = " and ".join(str(number) for number in sorted(heads))
        raise InputError(f"The blocks have {found} heads", "one number of heads", "the blocks of one kind at a time")
    if rotating[0].query.shape[1] < 3:
        raise InputError(f"The text has {rotating[0].query.shape[1]} tokens", "at least 3", "a longer text")
    return rotating


def lengths_and_bands(blocks: Sequence[HeadStates], context: int) -> tuple[Float[np.ndarray, "block lane"], np.ndarray]:
    """Wavelengths (tokens; NaN for lanes that a block does not have) and bands (empty there) of blocks."""
    lengths = stacked([wavelengths(block.theta) for block in blocks])
    band = np.array([bands(row, context) for row in lengths])
    return lengths, np.where(np.isnan(lengths), "", band)


def stacked(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays `[…, lane]` of several blocks on top of each other; lanes that a block does not have are NaN."""
    most = max(block.shape[-1] for block in blocks)
    return np.stack([
        np.pad(block, [(0, 0)] * (block.ndim - 1) + [(0, most - block.shape[-1])], constant_values=np.nan) for block in blocks
    ])  # fmt: skip
