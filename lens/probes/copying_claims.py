"""What has been said of heads that copy, measured on a model: scores from weights beside what heads do in texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits.attention import replace_attention
from lens.models.head_weights import head_weights
from lens.models.model import Model
from lens.models.operators import AttentionInput
from lens.models.vocabulary_maps import vocabulary_maps
from lens.probes.copying_behaviour import copying_behaviour, rank_correlation
from lens.probes.dataset import texts as labels
from lens.probes.dataset import variable
from lens.probes.ov_circuit import arriving_states, ov_circuit
from lens.probes.random_tokens import repeated_tokens
from lens.probes.verdict import judged

ELHAGE = "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits"
OLSSON, MCDOUGALL = "Olsson et al., arXiv 2209.11895", "McDougall et al., arXiv 2310.04625"
SOURCE = f"{ELHAGE}; {OLSSON}; {MCDOUGALL}"
MOST = 10  # heads of a kind
SILENCED = ("none", "induction heads", "highest scores", "other heads")


def copying_claims(
    model: Model,
    documents: Sequence[Document],
    *,
    tokens: int = 128,
    draws: int = 4,
    length: int = 64,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Copying scores of all heads, what they do in documents and in repeated random tokens, and what is lost without some.

    Args:
        model: a model whose heads' weights can be read.
        documents: those with fewer tokens are left out.
        tokens: of each document.
        draws: of repeated random tokens.
        length: of what is repeated.
        seed: of the draws.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset with

        - all of `ov_circuit` with its arriving states, over `circuit`, `block`, `head` and `rank`;
        - `copying`, `rise`, `attended` `[document, block, head]`, from `copying_behaviour`;
        - `repeated_copying`, `repeated_rise`, `induction`, `previous` `[draw, block, head]`, the same on repeated random tokens;
        - `loss[draw, silenced]`, nats a token of the second half: with all heads, without the ten with the highest induction,
          without the ten with the highest vocabulary score, and without ten others from the induction heads' blocks. A silenced
          head attends to nothing.

    Cost: for SmolLM2-135M about 1.5 s a document, 2.5 s a draw and 12 s besides, on one core.

    Raises:
        InputError: fewer than two documents that are long enough, or fewer than two draws.
    """
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2 or draws < 2:
        found = f"{len(chosen)} documents of {tokens} tokens and {draws} draws"
        raise InputError(found, "at least 2 of each", "tokens=64, or more documents")
    weights, vocabulary = head_weights(model), vocabulary_maps(model, check=check)
    arriving = arriving_states(model, weights, vocabulary, tokens=min(512, model.vocab_size // 2), seed=seed, check=check)
    circuits = ov_circuit(weights, vocabulary, arriving, check=check)
    written = copying_behaviour(model, chosen, weights, vocabulary, check=check)
    repeated = [repeated_tokens(model, length, seed=seed + draw) for draw in range(draws)]
    drawn = copying_behaviour(model, repeated, weights, vocabulary, check=check).rename(document="draw")
    found = circuits.merge(written[["copying", "rise", "attended"]], combine_attrs="override")
    drawn = drawn.rename(copying="repeated_copying", rise="repeated_rise")
    found = found.merge(drawn[["repeated_copying", "repeated_rise", "induction", "previous"]], combine_attrs="override")
    losses = [_losses(model, found, ids, np.random.default_rng((seed, draw)), check) for draw, ids in enumerate(repeated)]
    found["loss"] = variable(("draw", "silenced"), np.array(losses), "loss on the second half", "nats")
    found = found.assign_coords(silenced=labels(("silenced",), SILENCED, "heads that attend to nothing"))
    facts = {"tokens": tokens, "length": length, "seed": seed}
    return found.assign_attrs(source=SOURCE, probe="copying_claims", **facts, **model.provenance())


def _nothing(given: AttentionInput) -> torch.Tensor:
    """The operator of a head that attends to nothing."""
    return torch.zeros_like(given.logits)


def _losses(
    model: Model, found: xr.Dataset, ids: list[int], generator: np.random.Generator, check: Callable[[], None] | None
) -> list[float]:
    """By the names of `SILENCED`."""
    induction = found.induction.mean("draw").to_numpy()
    chosen = strongest(induction)
    score = found.copying_score.sel(circuit="vocabulary").to_numpy()
    blocks = sorted({block for block, _ in chosen})
    free = [(block, head) for block in blocks for head in range(induction.shape[1]) if (block, head) not in chosen]
    others = [free[place] for place in generator.permutation(len(free))[: len(chosen)]]
    losses = [_second_half(model, ids, check)]
    for heads in (chosen, strongest(score), others):
        silent = {block: [head for where, head in heads if where == block] for block in {block for block, _ in heads}}
        with replace_attention(model, _nothing, heads=silent):
            losses.append(_second_half(model, ids, check))
    return losses


def _second_half(model: Model, ids: list[int], check: Callable[[], None] | None) -> float:
    """Loss of all tokens of the second half but its first, which nothing foretells."""
    logits = model.run(ids, check=check).logits
    assert logits is not None  # asked for
    half = len(ids) // 2
    targets = torch.tensor(ids[half + 1 :], device=logits.device)
    return float(torch.nn.functional.cross_entropy(logits[half:-1].float(), targets))


def strongest(values: np.ndarray, count: int = MOST) -> list[tuple[int, int]]:
    """The heads with the largest values `[block, head]`, largest first, at most a third of all."""
    order = np.argsort(-values.ravel(), kind="stable")[: max(1, min(count, values.size // 3))]
    return [(int(place) // values.shape[1], int(place) % values.shape[1]) for place in order]


# -- verdicts -----------------------------------------------------------------------------------------------------------


def copying_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each.

    Args:
        claims: from `copying_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is, and over what its interval runs), `published` (the source's
        figure, None where it has none), `threshold` (from which the claim holds; ours where the papers give none), `value`,
        `low`, `high` (95 %) and `verdict` (`holds`, `fails` or `open`). Weights have no documents: what rests on them alone has
        its interval over blocks or over heads.
    """
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(claim), "threshold": threshold,
         **judged(list(units(claims)), threshold)}
        for claim, source, measured, threshold, units in _CLAIMS
    ]  # fmt: skip


def score_of(claims: xr.Dataset, circuit: str) -> np.ndarray:
    """Copying scores `[block, head]` of one circuit."""
    return claims.copying_score.sel(circuit=circuit).to_numpy()


def chance(claims: xr.Dataset, circuit: str) -> float:
    """The score that 97.5 % of heads with another block's values stay below, in size."""
    return float(np.quantile(np.abs(claims.mismatched_score.sel(circuit=circuit).to_numpy()), 0.95))


def rank_correlations(claims: xr.Dataset, circuit: str, measured: str) -> list[float]:
    """Spearman's rank correlation over all heads of a score and what was measured, one for each document or draw."""
    score, found = claims.copying_score.sel(circuit=circuit), claims[measured]
    return [rank_correlation(score, found[number]) for number in range(len(found))]


def _of_heads(claims: xr.Dataset, circuit: str, by: str, sign: int = 1) -> np.ndarray:
    """Scores of the ten heads with the largest (or with `sign` −1 the smallest) mean of what was measured."""
    mean = claims[by].mean(str(claims[by].dims[0])).to_numpy()
    score = score_of(claims, circuit)
    return np.array([score[place] for place in strongest(sign * mean)])


def _raised(claims: xr.Dataset) -> list[float]:
    """Mean rise that the ten strongest induction heads give, by draw."""
    heads = strongest(claims.induction.mean("draw").to_numpy())
    found = claims.repeated_copying.to_numpy()
    return [float(np.mean([one[place] for place in heads])) for one in found]


def _cost(claims: xr.Dataset, silenced: str, beyond: str) -> list[float]:
    loss = claims.loss
    return (loss.sel(silenced=silenced) - loss.sel(silenced=beyond)).to_numpy().tolist()


_PUBLISHED = {
    "Most heads copy": "10 of 12, one layer",
    "Induction heads have scores near 1": "near 1",
    "Heads that suppress have negative scores": "so in GPT-2 small",
}
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], Sequence[float] | np.ndarray]], ...] = (
    ("Most heads copy", ELHAGE, "share of heads above chance, vocabulary circuit; over blocks", 0.83,
     lambda claims: (score_of(claims, "vocabulary") > chance(claims, "vocabulary")).mean(-1)),
    ("Induction heads have scores near 1", ELHAGE, "mean score of the ten strongest, vocabulary circuit; over heads", 0.8,
     lambda claims: _of_heads(claims, "vocabulary", "induction")),
    ("Induction heads copy what they attend to", OLSSON,
     "rise of its logit in standard deviations, ten strongest; over draws", 0.5, _raised),
    ("Repetition is known by induction heads", OLSSON,
     "loss without the ten strongest less without ten others (nats); over draws", 1.0,
     lambda claims: _cost(claims, "induction heads", "other heads")),
    ("The heads with the highest scores carry repetition", "ours",
     "loss without the ten highest less without ten others (nats); over draws", 0.0,
     lambda claims: _cost(claims, "highest scores", "other heads")),
    ("Heads that suppress have negative scores", MCDOUGALL,
     "minus the mean score of the ten that suppress most, vocabulary circuit; over heads", 0.5,
     lambda claims: -_of_heads(claims, "vocabulary", "copying", -1)),
    ("The score from embeddings tells what heads do in texts", ELHAGE, "rank correlation over heads; over documents", 0.5,
     lambda claims: rank_correlations(claims, "vocabulary", "copying")),
    ("The score from embeddings tells what heads do with repetition", ELHAGE, "rank correlation over heads; over draws", 0.5,
     lambda claims: rank_correlations(claims, "vocabulary", "repeated_copying")),
    ("The score from arriving states tells what heads do in texts", "ours",
     "rank correlation over heads; over documents", 0.5, lambda claims: rank_correlations(claims, "arriving", "copying")),
    ("The score from arriving states tells what heads do with repetition", "ours",
     "rank correlation over heads; over draws", 0.5, lambda claims: rank_correlations(claims, "arriving", "repeated_copying")),
    ("Heads that suppress have negative scores, from arriving states", "ours",
     "minus the mean score of the ten that suppress most; over heads", 0.5,
     lambda claims: -_of_heads(claims, "arriving", "copying", -1)),
)  # fmt: skip
