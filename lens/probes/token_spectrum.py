"""Hidden states as signals over positions: how much of them changes slowly along a text, and how much from token to token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import scipy.fft
import scipy.signal
import torch
import xarray as xr
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.run import Run
from lens.probes.dataset import exact, provenance, texts, variable

SOURCE = (
    "our own bands; Tamkin, Jurafsky and Goodman, arXiv 2011.04823, section 2 (discrete cosine transform of states over "
    "positions, filters by period)"
)
Transform = Literal["cosine", "fourier"]
BANDS = ("over half the text", "half the text to 64 tokens", "64 to 16 tokens", "16 to 4 tokens", "under 4 tokens")
_EDGES = (64.0, 16.0, 4.0)


def token_spectrum(
    states: Run | Tensor,
    *,
    transform: str = "cosine",
    window: bool = False,
    detrend: bool = False,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Power of the residual stream by frequency over positions, and its shares by band.

    The first token is left out, the mean over positions is taken away, then a linear trend where wanted.

    Args:
        states: a run, or states `[layer, position, d]`; nine positions or more.
        transform: `cosine`, the orthonormal DCT-II, which sees no jump between the end of the text and its beginning; or
            `fourier`, which does, and wants a window.
        window: True lays a Hann window over the text; without it power adds up to the sum of squares (Parseval).
        detrend: True takes a linear trend of each neuron away as well.
        check: called before every layer; raising from it stops the work.

    Returns:
        Dataset over `layer`, `frequency` (cycles/token, coordinate `period` in tokens) and `band` (by period: over half the text,
        half of it to 64, 64 to 16, 16 to 4, under 4 tokens; a text under 128 tokens has nothing in the second):

        - `power[layer, frequency]`: mean over neurons, in squared units of the stream;
        - `band_share[layer, band]`: of all power, where loud neurons count for more;
        - `neuron_share[layer, band]`: mean over neurons of each one's own shares, where all count alike;
        - `white_share[band]`: expectation of both for white noise, through the same steps;
        - `dominant_band[layer, neuron]`: number of the band with most of a neuron's power.

    Source: see `SOURCE`. Memory: a few float64 copies of one layer.

    Raises:
        InputError: too few positions, or no such transform.
    """
    residual, facts = (states.residual, provenance(states, SOURCE)) if isinstance(states, Run) else (states, library_versions())
    _require(residual, transform)
    size = residual.shape[1] - 1
    frequency = frequencies(size, transform)
    band = bands_of(frequency, size)
    power, shares, own, dominant = [], [], [], []
    for layer in residual:
        if check is not None:
            check()
        found = power_of(layer[1:].detach().to("cpu", torch.float64).numpy(), transform, window=window, detrend=detrend)
        by_band = _by_band(found, band)
        power.append(found.mean(1))
        shares.append(by_band.sum(1) / by_band.sum())
        own.append(np.nanmean(_normalised(by_band), axis=1))
        dominant.append(by_band.argmax(0))
    white = _by_band(power_of(np.eye(size), transform, window=window, detrend=detrend), band).sum(1)
    with np.errstate(divide="ignore"):
        period = 1 / frequency
    labels = {"band_share": "share of all power", "neuron_share": "mean share of a neuron's power"}
    return xr.Dataset(
        {
            "power": exact(("layer", "frequency"), np.array(power), "mean power of a neuron", "state²"),
            "band_share": exact(("layer", "band"), np.array(shares), labels["band_share"]),
            "neuron_share": exact(("layer", "band"), np.array(own), labels["neuron_share"]),
            "white_share": exact(("band",), white / white.sum(), "share of white noise"),
            "dominant_band": variable(("layer", "neuron"), np.array(dominant), "band with most of the neuron's power"),
        },
        {
            "layer": variable(("layer",), np.arange(len(residual)), "residual state (0 is the embedding)"),
            "frequency": exact(("frequency",), frequency, "frequency", "cycles/token"),
            "period": exact(("frequency",), period, "period", "tokens"),
            "band": texts(("band",), BANDS, "period"),
            "neuron": variable(("neuron",), np.arange(residual.shape[2]), "coordinate of the stream"),
        },
        {
            **facts,
            "source": SOURCE,
            "probe": "token_spectrum",
            "transform": transform,
            "window": "hann" if window else "none",
            "detrended": int(detrend),
            "positions": size,
        },
    )


def _require(residual: Tensor, transform: str) -> None:
    if transform not in get_args(Transform):
        raise InputError(f"The transform is {transform!r}", f"one of {', '.join(get_args(Transform))}", "transform='cosine'")
    if residual.ndim != 3 or residual.shape[1] < 9:
        found = f"States of shape {tuple(residual.shape)}"
        raise InputError(found, "[layer, position, d] with nine positions or more", "a longer text")


def frequencies(size: int, transform: str) -> Float64[np.ndarray, " frequency"]:
    """Cycles/token of each bin."""
    return np.arange(size) / (2 * size) if transform == "cosine" else np.fft.rfftfreq(size)


def bands_of(frequency: Float64[np.ndarray, " frequency"], size: int) -> Int64[np.ndarray, " frequency"]:
    """Number of the band of each bin, for a text of `size` tokens; a bin on an edge belongs to the slower side."""
    slowest = 2 / size
    inner = [np.nextafter(1 / edge, 1) if edge < size / 2 else slowest for edge in _EDGES]
    cycles = np.array([slowest, *inner])
    return np.searchsorted(cycles, frequency, side="right").astype(np.int64)


def power_of(
    values: Float64[np.ndarray, "position neuron"], transform: str, *, window: bool = False, detrend: bool = False
) -> Float64[np.ndarray, "frequency neuron"]:
    """Power of each neuron, after the steps of `token_spectrum`; without a window it adds up to the sum of squares."""
    size = len(values)
    centred = scipy.signal.detrend(values, axis=0, type="linear" if detrend else "constant")
    if window:
        centred = centred * np.hanning(size)[:, None]
    if transform == "cosine":
        return np.asarray(scipy.fft.dct(centred, axis=0, norm="ortho")) ** 2
    found = np.abs(np.fft.rfft(centred, axis=0)) ** 2 / size
    found[1 : (size + 1) // 2] *= 2  # bins that stand for their mirror images as well
    return found


def _by_band(power: np.ndarray, band: np.ndarray) -> np.ndarray:
    return np.stack([power[band == number].sum(0) for number in range(len(BANDS))])


def _normalised(by_band: np.ndarray) -> np.ndarray:
    total = by_band.sum(0)
    return np.divide(by_band, total, out=np.full_like(by_band, np.nan), where=total > 0)


# -- one band, read as words --------------------------------------------------------------------------------------------


def keep_band(states: Float[Tensor, "*rows position d"], band: int) -> Float[Tensor, "*rows position d"]:
    """States with one band of changes over positions alone: their mean, and what the orthonormal DCT-II has there.

    The first position is left as it is, and is no part of the signal. All bands together, each less the mean, and the mean,
    are the states.

    Raises:
        InputError: no such band, or one that a text of this length does not have.
    """
    size = states.shape[-2] - 1
    numbers = bands_of(frequencies(size, "cosine"), size) if size > 1 else np.zeros(0)
    kept = numbers == band
    kept[:1] = False
    if not kept.any():
        known = ", ".join(f"{number} ({BANDS[number]})" for number in np.unique(numbers[1:]))
        raise InputError(f"Band {band} of {size} tokens is empty", f"one of {known or 'a longer text'}", "band=0")
    values = states[..., 1:, :].detach().to("cpu", torch.float64).numpy()
    kept[0] = True
    changes = scipy.fft.dct(values, axis=-2, norm="ortho") * kept[:, None]
    found = torch.tensor(scipy.fft.idct(changes, axis=-2, norm="ortho"), dtype=states.dtype, device=states.device)
    return torch.cat([states[..., :1, :], found], dim=-2)


def band_readout(run: Run, *, layer: int = -1) -> xr.Dataset:
    """What the model would say if one band of its states were all there is: each is read through the final norm and head.

    Args:
        run: of ten tokens or more.
        layer: residual state to filter; −1 is the last one.

    Returns:
        Dataset over `band` (those that a text of this length has), `position`: `token_id`, `token`, the most likely one;
        `agrees`, 1 where it is that of the unfiltered state at this layer, and `agreement[band]`, the mean over all positions
        but the first.

    Memory: the logits of one band. Raises: InputError: as `token_spectrum` and `keep_band`.
    """
    _require(run.residual, "cosine")
    states = run.residual[layer]
    size = len(run) - 1
    numbers = [int(number) for number in np.unique(bands_of(frequencies(size, "cosine"), size)[1:])]
    plain = run.model.unembed(states).argmax(-1)
    found = torch.stack([run.model.unembed(keep_band(states, number)).argmax(-1) for number in numbers])
    agrees = (found == plain).cpu().numpy()
    vocabulary = np.array(run.model.vocabulary, dtype=object)
    return xr.Dataset(
        {
            "token_id": variable(("band", "position"), found, "most likely token"),
            "token": texts(("band", "position"), vocabulary[found.cpu().numpy()], "most likely token"),
            "agrees": variable(("band", "position"), agrees.astype(np.int64), "whether the unfiltered state says the same"),
            "agreement": exact(("band",), agrees[:, 1:].mean(1), "share of positions that agree"),
        },
        {
            "band": texts(("band",), [BANDS[number] for number in numbers], "period"),
            "position": variable(("position",), np.arange(len(run)), "position in the prompt"),
            "input_token": texts(("position",), run.tokens, "token of the prompt"),
        },
        provenance(run, SOURCE, {"probe": "band_readout", "layer": range(len(run.residual))[layer]}),
    )
