"""What has been said of attention, measured on a model: every head on several documents, and the claims beside the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.probes.attention_battery import attention_battery
from lens.probes.attention_growth import attention_growth
from lens.probes.dataset import exact
from lens.probes.offset_profile import shuffled_profile
from lens.probes.verdict import judged

XIAO, LINFORMER = "Xiao et al., arXiv 2309.17453", "Wang et al., arXiv 2006.04768"
NAHSHAN, NAKANISHI = "Nahshan et al., arXiv 2311.13541", "Nakanishi, arXiv 2501.19399"
OURS = "ours"
SOURCE = f"{XIAO}, figure 2 (Llama-2-7B); {LINFORMER}, figure 1 (RoBERTa); {NAHSHAN}; {NAKANISHI}"
WITHOUT_SINK = (
    "effective_rank", "stable_rank", "leading_share", "mean_entropy", "normalised_entropy", "key_entropy", "skewness",
    "excess_kurtosis", "predicted_entropy", "entropy_gap",
)  # fmt: skip
BOTTOM = 2  # blocks that are said to do without sinks
TEN = 10  # heads of a kind


def attention_claims(
    model: Model,
    documents: Sequence[Document],
    *,
    tokens: int = 128,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """The attention battery of every head on the start of each document, with the sink and without, and what else claims need.

    Args:
        model: the model.
        documents: those with fewer tokens are left out.
        tokens: of each document, 64 or more.
        seed: of the order of shuffled tokens.
        check: called before every block of every pass and before every head; raising from it stops the work.

    Returns:
        Dataset over `document`, `block` and `head`:

        - every measure of `lens.probes.attention_battery.MEASURES`;
        - `rest_…` of the measures in `WITHOUT_SINK`, without the first key and the first query;
        - `entropy_growth`: nats by which the mean entropy grows each time the text is e times as long, from 16 tokens on;
        - `shuffled_toeplitz_share` of the same tokens in another order;
        - `induction`: over the first half of the tokens, given twice, the mean attention from the second time to the token
          after the same one's first.

    Cost: about 3 s a document of 128 tokens for SmolLM2-135M on one core. Memory: the states of one document.

    Raises:
        InputError: fewer than two documents that are long enough, or fewer than 64 tokens.
    """
    if tokens < 64:
        raise InputError(f"{tokens} tokens", "64 or more", "tokens=128")
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2", "tokens=64, or more documents")
    rows = [_document(model, ids, seed + number, check) for number, ids in enumerate(chosen)]
    found = xr.concat(rows, "document", combine_attrs="override")
    facts = {"source": SOURCE, "probe": "attention_claims", "tokens": tokens, "seed": seed}
    return found.assign_attrs(**facts, **model.provenance())


def _document(model: Model, ids: Sequence[int], seed: int, check: Callable[[], None] | None) -> xr.Dataset:
    states = head_states(model, ids, check=check)
    whole = attention_battery(states, check=check)
    rest = attention_battery(states, drop_sink=True, measures=WITHOUT_SINK, check=check)
    growth = attention_growth(model, ids, measures=("mean_entropy",), check=check).growth.isel(measure=0)
    shuffled = shuffled_profile(model, ids, seed=seed, check=check).toeplitz_share
    half = ids[: len(ids) // 2]
    again = np.array([_induction(block, check) for block in head_states(model, [*half, *half], check=check)])
    dims = ("block", "head")
    return whole.assign(
        {f"rest_{name}": rest[name] for name in WITHOUT_SINK}
        | {
            "entropy_growth": exact(dims, growth.to_numpy(), "growth of the mean entropy over ln length", "nats"),
            "shuffled_toeplitz_share": exact(dims, shuffled.to_numpy(), "share of a function of distance, tokens shuffled"),
            "induction": exact(dims, again, "attention to the token after the same one's first"),
        }
    )


def _induction(states: HeadStates, check: Callable[[], None] | None) -> list[float]:
    """Of a text given twice, without the first token of the second time."""
    back = states.query.shape[1] // 2 - 1
    found = []
    for head in range(len(states.query)):
        if check is not None:
            check()
        found.append(float(np.diagonal(states.pattern(head), -back)[2:].mean()))
    return found


# -- verdicts -------------------------------------------------------------------------------------------------------------


def attention_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents, one model's heads as they are.

    Args:
        claims: from `attention_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published` (what the source says of it, None where nothing is
        known), `threshold` (from which the claim holds; ours, for the papers give none), `value` (mean over documents), `low`,
        `high` (95 %) and `verdict` (`holds`, `fails`, `open`, or `untested` where the model has no block or head of the kind).
    """
    documents = [claims.isel(document=number) for number in range(claims.sizes["document"])]
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(source), "threshold": threshold,
         **judged([statistic(document) for document in documents], threshold)}
        for claim, source, measured, threshold, statistic in _CLAIMS
    ]  # fmt: skip


def attention_numbers(claims: xr.Dataset) -> dict[str, Any]:
    """What is known of a model's attention beside the claims: quartiles over heads of means over documents, three digits."""
    mean = claims.mean("document", keep_attrs=True)
    names = [
        "first_token", "stable_rank", "rest_stable_rank", "effective_rank", "rest_effective_rank", "normalised_entropy",
        "effective_support", "contraction", "dobrushin", "logit_variance", "entropy_gap", "rest_entropy_gap", "toeplitz_share",
        "shuffled_toeplitz_share", "entropy_growth",
    ]  # fmt: skip
    return {
        "documents": claims.sizes["document"],
        "heads": mean.first_token.size,
        "quartiles": {name: [round(float(one), 3) for one in mean[name].quantile([0.25, 0.5, 0.75])] for name in names},
        "quadrants": {name: int((quadrants(mean) == name).sum()) for name in QUADRANTS},
        "sink_heads": int((mean.first_token > 0.5).sum()),
        "dominated_by_the_first_token": round(float((mean.top_key == 0).mean()), 3),
    }


QUADRANTS = ("biased", "unbiased", "spread", "spread, with a favourite")


def quadrants(found: xr.Dataset) -> np.ndarray:
    """How each head concentrates: `biased`, all queries on the same few keys; `unbiased`, each on few keys of its own; or not.

    Args:
        found: measures `[block, head]` with the attribute `tokens`.

    Returns:
        One of `QUADRANTS` for each block and head: whether the entropy of rows is below half of that of uniform attention, and
        whether that of the mean over queries is below half of ln tokens. The halves are ours.
    """
    rows = found.normalised_entropy.to_numpy() < 0.5
    keys = found.key_entropy.to_numpy() < 0.5 * np.log(found.attrs["tokens"])
    return np.where(rows, np.where(keys, QUADRANTS[0], QUADRANTS[1]), np.where(keys, QUADRANTS[3], QUADRANTS[2]))


# -- statistics of one document -------------------------------------------------------------------------------------------


def sink_heads(found: xr.Dataset) -> xr.DataArray:
    """Heads that give the first token more than half of their attention."""
    return found.first_token > 0.5


def share_of(heads: xr.DataArray, among: xr.DataArray | None = None) -> float:
    """Share of the heads that are so, among some of them; NaN where there are none."""
    return float(heads.where(True if among is None else among).mean())


def difference(values: xr.DataArray, one: xr.DataArray, other: xr.DataArray) -> float:
    """Mean over some heads less the mean over others; NaN where one of the two has none."""
    return float(values.where(one).mean() - values.where(other).mean())


def strongest(values: xr.DataArray, heads: int = TEN) -> xr.DataArray:
    """The heads with the largest values."""
    return values >= np.sort(values.to_numpy(), axis=None)[-heads:][0]


def third(found: xr.Dataset, which: int) -> xr.DataArray:
    """Blocks of the first, second or last third: 0, 1, 2."""
    blocks = xr.DataArray(np.arange(found.sizes["block"]) * 3 // found.sizes["block"], dims="block")
    return blocks == which


def flatness(found: xr.Dataset, heads: xr.DataArray) -> float:
    """Mean energy rank of some heads over the number of tokens."""
    return float(found.energy_rank.where(heads).mean()) / found.attrs["tokens"]


def _beyond(found: xr.Dataset) -> xr.DataArray:
    return xr.DataArray(np.arange(found.sizes["block"]) >= BOTTOM, dims="block")


def _local(found: xr.Dataset) -> float:
    near = found.near > 0.5
    middle = third(found, 1)
    return difference(found.effective_rank, near & middle, near & ~middle)


def _positional(found: xr.Dataset) -> xr.DataArray:
    return found.previous_token + found.self_attention


def _early(found: xr.Dataset, heads: xr.DataArray) -> float:
    positional = heads & third(found, 0)
    return difference(found.normalised_entropy, ~positional, positional)


def _late(found: xr.Dataset) -> float:
    late = sink_heads(found) & third(found, 2)
    return difference(found.normalised_entropy, ~late, late)


def _biased(found: xr.Dataset) -> float:
    return share_of(found.contraction < 0.5, found.contraction.copy(data=quadrants(found) == QUADRANTS[0]))


def _normal(found: xr.Dataset, rest: str = "") -> float:
    return share_of((abs(found[f"{rest}skewness"]) < 0.5) & (abs(found[f"{rest}excess_kurtosis"]) < 1))


def _foretold(found: xr.Dataset, rest: str = "") -> float:
    return share_of(abs(found[f"{rest}entropy_gap"]) < 0.25)


def _uniform_share(found: xr.Dataset) -> float:
    """What uniform causal attention has of Σσ in the largest quarter of its singular values."""
    size = found.attrs["tokens"]
    singular = np.linalg.svd(np.tri(size) / np.arange(1, size + 1)[:, None], compute_uv=False)
    return float(singular[: -(-size // 4)].sum() / singular.sum())


_PUBLISHED = {XIAO: "so on Llama-2-7B", LINFORMER: "nearly all, RoBERTa"}  # read off figures 2 and 1
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], float]], ...] = (
    ("Beyond the first two blocks, heads give the first token most of their attention", XIAO,
     "share of these heads that give it over half", 0.5, lambda found: share_of(sink_heads(found), _beyond(found))),
    ("Beyond the first two blocks, the first token is the favourite of all heads", XIAO,
     "share of these heads that give no other more", 0.9, lambda found: share_of(found.top_key == 0, _beyond(found))),
    ("The first two blocks do without", XIAO, "share of their heads that give it less than half", 0.9,
     lambda found: share_of(~sink_heads(found), ~_beyond(found))),
    ("Attention has low rank", LINFORMER, "Σσ in the largest quarter of the singular values", 0.9,
     lambda found: float(found.leading_share.mean())),
    ("Attention has low rank, the first token apart", LINFORMER, "Σσ in the largest quarter of the singular values", 0.9,
     lambda found: float(found.rest_leading_share.mean())),
    ("Its rank is lower than that of attention to everything alike", OURS, "the same share, less that of uniform attention", 0.0,
     lambda found: float(found.leading_share.mean()) - _uniform_share(found)),
    ("Sink heads have nearly rank one: stable rank", OURS, "share of them below 1.5", 0.9,
     lambda found: share_of(found.stable_rank < 1.5, sink_heads(found))),
    ("Sink heads have nearly rank one: effective rank", OURS, "share of them below 2", 0.9,
     lambda found: share_of(found.effective_rank < 2, sink_heads(found))),
    ("Previous-token heads have flat spectra", OURS, "energy rank over tokens, heads that give it over half", 0.5,
     lambda found: flatness(found, found.previous_token > 0.5)),
    ("Induction heads have flat spectra", OURS, "energy rank over tokens, the ten strongest", 0.5,
     lambda found: flatness(found, strongest(found.induction))),
    ("Spectra of local heads are flattest in the middle blocks", OURS, "effective rank there, less that elsewhere", 0.0, _local),
    ("Entropy is low in early heads that give over half to the token before and to itself", OURS,
     "normalised entropy of the others, less theirs", 0.0, lambda found: _early(found, _positional(found) > 0.5)),
    ("Entropy is low in the ten early heads that give most to the token before and to itself", OURS,
     "normalised entropy of the others, less theirs", 0.0,
     lambda found: _early(found, strongest(_positional(found).where(third(found, 0), -1)))),
    ("Entropy is low in late sink heads", OURS, "normalised entropy of the others, less theirs", 0.0, _late),
    ("Biased heads make all positions alike", OURS, "share of them with a contraction below 0.5", 0.5, _biased),
    ("Logits are normal", NAHSHAN, "share of heads, |skewness| < 0.5 and |excess kurtosis| < 1", 0.5, _normal),
    ("Logits are normal, the first token apart", NAHSHAN, "share of heads, |skewness| < 0.5 and |excess kurtosis| < 1", 0.5,
     lambda found: _normal(found, "rest_")),
    ("The variance of the logits foretells the entropy", NAHSHAN, "share of heads within 0.25 nats", 0.5, _foretold),
    ("The variance of the logits foretells the entropy, the first token apart", NAHSHAN, "share of heads within 0.25 nats", 0.5,
     lambda found: _foretold(found, "rest_")),
    ("Attention dilutes as the text grows", NAKANISHI,
     "share of heads whose entropy grows by over half of that of uniform attention", 0.5,
     lambda found: share_of(found.entropy_growth > 0.5)),
    ("The order of words adds to what is a function of distance", OURS, "Toeplitz share, less that of shuffled tokens", 0.0,
     lambda found: float((found.toeplitz_share - found.shuffled_toeplitz_share).mean())),
)  # fmt: skip
