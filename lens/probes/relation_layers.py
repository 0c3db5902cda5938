"""Relations through all layers: how often linear maps say what the model says, and edits by their inverses what they should.

Everything that is chosen (the factor β, the layer, the rank) is chosen on the examples, and scored on pairs that no fit has seen.

Source: Hernandez et al., "Linearity of Relation Decoding in Transformer Language Models" (arXiv 2308.09124), sections 3 and 4;
what is compared with, sections 4.2 and 4.3. There layer, factor and rank are chosen on the very pairs that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.model import Model
from lens.probes.dataset import texts, variable
from lens.probes.relation_map import (
    BETAS,
    RANKS,
    SOURCE,
    MeanJacobian,
    RelationMap,
    best,
    best_beta,
    continuation,
    low_rank_inverse,
    mean_jacobians,
    read,
)
from lens.probes.relations import Answer, RelationTask, stacked

PREDICTORS = ("map", "logit lens", "translation", "regression", "other subject", "constant")
EDITS = ("inverse", "substitution", "output difference", "random direction")
_TARGETS = 2  # other answers that each subject is edited towards
Check = Callable[[], None] | None


def relation_layers(
    model: Model,
    task: RelationTask,
    *,
    layers: Sequence[int] | None = None,
    edit_layers: Sequence[int] | None = None,
    products: int | None = None,
    other: Sequence[Answer] = (),
    check: Check = None,
) -> xr.Dataset:
    """A relation's maps at several layers, scored on its tests.

    Args:
        model: the model.
        task: from `relation_task`.
        layers: of the subject's state; by default all from which a block leads on.
        edit_layers: some of them, where states are edited; by default every sixth from the third on.
        products: see `fit_relation_map`; None for whole Jacobians, which one walk gives for all layers.
        other: answers to another template, on which the same maps are tried.
        check: called again and again; raising from it stops.

    Returns:
        Dataset over `layer`, `edit_layer`, `subject` (of the tests) and more:

        - `agrees[predictor, layer, subject]`: 1 where its top token is the model's. `map` is `β·W·s + b`; `logit lens`
          reads the subject's state, `translation` adds the examples' mean of o − s to it, `regression` is the least-squares map
          of smallest norm through the examples, `other subject` reads the map of another test's state, `constant` the mean
          last state of the examples;
        - `prefix[layer, subject]`: 1 where the map's top token begins the object, as the authors' code counts;
        - `word[layer, subject]`, `logprob[layer, subject, candidate]` in nats: what the map says, over the first tokens of
          all objects; `model_word`, `model_logprob` of the model;
        - `beta[layer]` and `example_agreement[layer]`, chosen on and reached by examples that are left out in turn;
          `beta_agreement[tried_beta]` on the tests at the chosen layer;
        - `says_target[edit_layer, edit_method, edit]`: 1 where the edited subject's prompt has the top token that the target's
          has (`edit_subject`, `edit_target` are numbers of tests). `inverse` adds `W⁺(o′ − o)`, `substitution` puts s′ in the
          place of s, the others add o′ − o and a random direction of the first one's length;
        - `edit_size[edit_layer, edit]`: length of the inverse's change over that of the state; `edit_rank[edit_layer]` chosen on
          the examples, `example_edits[edit_layer, tried_rank]` what each rank reached there;
        - `jacobian_cosine[layer]` between examples, `stable_rank[edit_layer]` of W;
        - `other_agrees[layer, other_subject]`: the maps' agreement with the model in the other template;
        - scalars `chosen_layer`, `chosen_edit_layer`, `known`, `asked`.

    Raises:
        InputError: no such layer, or one answer for all subjects.
    """
    return study_relation(model, task, layers=layers, edit_layers=edit_layers, products=products, other=other, check=check)[0]


def study_relation(
    model: Model,
    task: RelationTask,
    *,
    layers: Sequence[int] | None = None,
    edit_layers: Sequence[int] | None = None,
    products: int | None = None,
    other: Sequence[Answer] = (),
    check: Check = None,
) -> tuple[xr.Dataset, RelationMap]:
    """What `relation_layers` gives, and the map of the chosen edit layer, of its chosen rank."""
    shown = list(range(model.n_layers)) if layers is None else [int(layer) for layer in layers]
    some = [layer for layer in shown if layer % 6 == 3] or shown[-1:]
    edited = some if edit_layers is None else [int(layer) for layer in edit_layers]
    states, outputs = stacked([*task.everything, *other])
    means = mean_jacobians(model, task.examples, states, shown, products, inverted=edited, check=check)
    work = _Work(model, task, tuple(other), states, outputs, means, check)
    facts = _facts(work, products)
    found = xr.Dataset({**_agreement(work, shown), **_edits(work, edited)}, _coordinates(work, shown, edited), facts)
    return found, _editing_map(work, found, facts)


@dataclass(frozen=True, eq=False)
class _Work:
    """What all measures share: states and outputs of examples, tests and others, in this order."""

    model: Model
    task: RelationTask
    other: tuple[Answer, ...]
    states: Float[Tensor, "subject layer d"]
    outputs: Float[Tensor, "subject d"]
    means: Mapping[int, MeanJacobian]
    check: Check

    @property
    def examples(self) -> int:
        return len(self.task.examples)

    @property
    def tests(self) -> slice:
        return slice(self.examples, self.examples + len(self.task.tests))

    def left_over(self, layer: int) -> Tensor:
        """What each example's Jacobian leaves of its own output."""
        n = self.examples
        return self.outputs[:n] - self.means[layer].moved[range(n), range(n)]

    def step(self) -> None:
        if self.check is not None:
            self.check()


# -- what maps say --------------------------------------------------------------------------------------------------------


def _agreement(work: _Work, layers: Sequence[int]) -> dict[str, Any]:
    model, task = work.model, work.task
    said = np.array([one.token for one in task.tests])
    other_said = np.array([one.token for one in work.other], dtype=int)
    candidates = _candidates(model, task)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("agrees", "prefix", "word", "logprob", "beta", "score", "other", "cosine")
    }
    for layer in layers:
        work.step()
        beta, *score = best_beta(model, task.examples, work.means[layer].moved, work.left_over(layer))
        linear, bias = work.means[layer].moved.mean(0), work.left_over(layer).mean(0)
        predicted = beta * linear + bias
        logits = model.unembed(predicted[work.tests]).float().log_softmax(-1)
        token = logits.argmax(-1).cpu().numpy()
        baselines = _baselines(work, layer, predicted)
        rows["agrees"].append([token == said, *[read(model, one, said.tolist())[0] == said for one in baselines]])
        rows["word"].append([model.vocabulary[i] for i in token])
        rows["prefix"].append([begins(model.vocabulary[i], one.pair[1]) for i, one in zip(token, task.tests, strict=True)])
        rows["logprob"].append(logits[:, candidates].cpu().numpy())
        rows["beta"].append(beta)
        rows["score"].append(tuple(score))
        rows["other"].append(
            read(model, predicted[work.tests.stop :], other_said.tolist())[0] == other_said if work.other else []
        )
        rows["cosine"].append(work.means[layer].cosine)
    chosen = best(rows["score"])
    return {**_agreement_variables(rows, said, work, candidates), **_beta_curve(work, layers[chosen])}


def _agreement_variables(
    rows: Mapping[str, Sequence[Any]], said: np.ndarray, work: _Work, candidates: Sequence[int]
) -> dict[str, Any]:
    model = work.model
    plain = model.unembed(work.outputs[work.tests]).float().log_softmax(-1)[:, candidates]
    agrees = np.array(rows["agrees"]).transpose(1, 0, 2).astype(int)
    label = "log probability under the map"
    found = {
        "agrees": variable(("predictor", "layer", "subject"), agrees, "the predictor's top token is the model's"),
        "prefix": variable(("layer", "subject"), np.array(rows["prefix"]).astype(int), "the map's top token begins the object"),
        "word": texts(("layer", "subject"), rows["word"], "top token of the map"),
        "model_word": texts(("subject",), [model.vocabulary[i] for i in said], "top token of the model"),
        "logprob": variable(("layer", "subject", "candidate"), np.array(rows["logprob"]), label, "nats"),
        "model_logprob": variable(("subject", "candidate"), plain, "log probability under the model", "nats"),
        "beta": variable(("layer",), np.array(rows["beta"]), "factor of W, chosen on examples"),
        "example_agreement": variable(("layer",), np.array([one for one, _ in rows["score"]]), "agreement on left-out examples"),
        "jacobian_cosine": variable(("layer",), np.array(rows["cosine"]), "mean cosine of two examples' Jacobians"),
    }
    if work.other:
        agrees = np.array(rows["other"]).astype(int)
        found["other_agrees"] = variable(("layer", "other_subject"), agrees, "agreement in the other template")
    return found


def _beta_curve(work: _Work, layer: int) -> dict[str, Any]:
    """On the tests, at the layer that the examples chose."""
    said = np.array([one.token for one in work.task.tests])
    linear, bias = work.means[layer].moved.mean(0)[work.tests], work.left_over(layer).mean(0)
    share = [float((read(work.model, beta * linear + bias, said.tolist())[0] == said).mean()) for beta in BETAS]
    return {
        "beta_agreement": variable(("tried_beta",), np.array(share), "share of tests on which map and model agree"),
        "chosen_layer": variable((), np.asarray(layer), "layer of the map, chosen on examples"),
    }


def _baselines(work: _Work, layer: int, predicted: Tensor) -> list[Tensor]:
    """Last states that other ways than the map give for the tests, in the order of `PREDICTORS`."""
    n, tests = work.examples, work.tests
    state, output = work.states[:, layer], work.outputs
    shift = (output[:n] - state[:n]).mean(0)
    centre = state[:n].mean(0)
    fitted = torch.linalg.pinv((state[:n] - centre).double()) @ (output[:n] - output[:n].mean(0)).double()
    regression = (state[tests] - centre) @ fitted.to(state) + output[:n].mean(0)
    return [state[tests], state[tests] + shift, regression, predicted[tests].roll(1, 0),
            output[:n].mean(0).expand(len(work.task.tests), -1)]  # fmt: skip


def _candidates(model: Model, task: RelationTask) -> list[int]:
    """First tokens of all objects, each once."""
    return list(dict.fromkeys(model.encode_bare(f" {other}")[0] for _, other in task.relation.pairs))


def begins(piece: str, answer: str) -> bool:
    """Whether a token begins an answer, whatever the case; an empty one begins none."""
    return bool(piece.strip()) and answer.casefold().startswith(piece.strip().casefold())


# -- what edits do ------------------------------------------------------------------------------------------------------------


def _edits(work: _Work, layers: Sequence[int]) -> dict[str, Any]:
    pairs = _targets([one.token for one in work.task.tests], _TARGETS)
    if not pairs or not _targets([one.token for one in work.task.examples], 1):
        found = f"The model has one answer for all subjects of {work.task.relation.name!r}"
        raise InputError(found, "two or more, so that one can be edited into another", "another relation")
    factors = {layer: work.means[layer].singular_vectors() for layer in layers}
    ranks = [rank for rank in RANKS if all(_usable(values) >= rank for _, values, _ in factors.values())] or [1]
    tried = _example_edits(work, factors, ranks)
    chosen = {layer: ranks[best(tried[layer])] for layer in layers}
    place = best([max(tried[layer]) for layer in layers])
    says, size = _test_edits(work, factors, chosen, pairs)
    shares = np.array([[share for share, _ in tried[layer]] for layer in layers])
    stable = [float((values.double() ** 2).sum() / values[0].double() ** 2) for _, values, _ in factors.values()]
    label = "length of the change over that of the state"
    return {
        "says_target": variable(("edit_layer", "edit_method", "edit"), says, "the edited prompt has the target's top token"),
        "edit_size": variable(("edit_layer", "edit"), size, label),
        "edit_rank": variable(("edit_layer",), np.array(list(chosen.values())), "rank of the inverse, chosen on examples"),
        "example_edits": variable(("edit_layer", "tried_rank"), shares, "share of edits between examples that reach the target"),
        "tried_rank": variable(("tried_rank",), np.array(ranks), "rank of the inverse"),
        "stable_rank": variable(("edit_layer",), np.array(stable), "squared Frobenius norm of W over that of its largest value"),
        "edit_subject": variable(("edit",), np.array([one for one, _ in pairs], dtype=int), "number of the edited test"),
        "edit_target": variable(("edit",), np.array([one for _, one in pairs], dtype=int), "number of the target"),
        "chosen_edit_layer": variable((), np.asarray(layers[place]), "layer of the edit, chosen on examples"),
    }  # fmt: skip


def _usable(values: Tensor) -> int:
    return int((values > 1e-7 * values[0]).sum())


def _targets(tokens: Sequence[int], count: int) -> list[tuple[int, int]]:
    """For each subject the next few with other answers, in a circle."""
    n = len(tokens)
    found = []
    for one in range(n):
        others = [(one + step) % n for step in range(1, n) if tokens[(one + step) % n] != tokens[one]]
        found += [(one, other) for other in others[:count]]
    return found


_Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # left vectors, singular values, right vectors


def _example_edits(work: _Work, factors: Mapping[int, _Factors], ranks: Sequence[int]) -> dict[int, list[tuple[float, float]]]:
    """By layer and rank: share of edits between examples that reach their target, and its mean log probability."""
    tokens = [one.token for one in work.task.examples]
    pairs = _targets(tokens, 3)
    hits: dict[int, list[list[Any]]] = {layer: [[] for _ in ranks] for layer in factors}
    for one in range(work.examples):
        targets = [other for first, other in pairs if first == one]
        if not targets:
            continue
        work.step()
        end = continuation(work.model, work.task.examples[one])
        change = work.outputs[targets] - work.outputs[one]
        for layer, found in factors.items():
            states = [work.states[one, layer] + change @ low_rank_inverse(*found, rank).T for rank in ranks]
            given = end.outputs(layer, torch.cat(states), work.check)
            top, logprob = read(work.model, given, [tokens[other] for other in targets] * len(ranks))
            right = (top == np.array([tokens[other] for other in targets] * len(ranks))).reshape(len(ranks), -1)
            for place, (reached, likely) in enumerate(zip(right, logprob.reshape(len(ranks), -1), strict=True)):
                hits[layer][place] += list(zip(reached.tolist(), likely.tolist(), strict=True))
    return {layer: [(float(np.mean(a)), float(np.mean(b))) for a, b in (zip(*one, strict=True) for one in rows)]
            for layer, rows in hits.items()}  # fmt: skip


def _test_edits(
    work: _Work, factors: Mapping[int, _Factors], ranks: Mapping[int, int], pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    tests, states, outputs = work.task.tests, work.states[work.tests], work.outputs[work.tests]
    inverses = {layer: low_rank_inverse(*found, ranks[layer]) for layer, found in factors.items()}
    generator = torch.Generator().manual_seed(0)
    says, size = np.zeros((len(factors), len(EDITS), len(pairs)), int), np.zeros((len(factors), len(pairs)))
    for one in dict.fromkeys(first for first, _ in pairs):
        work.step()
        places = [place for place, (first, _) in enumerate(pairs) if first == one]
        targets = [pairs[place][1] for place in places]
        end = continuation(work.model, tests[one])
        for row, (layer, inverse) in enumerate(inverses.items()):
            state, wanted = states[one, layer], outputs[targets] - outputs[one]
            change = wanted @ inverse.T
            length = change.norm(dim=-1, keepdim=True)
            random = torch.randn(change.shape, generator=generator).to(change)
            changed = [state + change, states[targets, layer], *[
                state + length * given / given.norm(dim=-1, keepdim=True) for given in (wanted, random)]]  # fmt: skip
            tokens = np.array([tests[other].token for other in targets])
            top, _ = read(work.model, end.outputs(layer, torch.cat(changed), work.check), np.tile(tokens, len(EDITS)).tolist())
            says[row][:, places] = top.reshape(len(EDITS), -1) == tokens
            size[row, places] = (length[:, 0] / state.norm()).cpu().numpy()
    return says, size


def _editing_map(work: _Work, found: xr.Dataset, facts: Mapping[str, Any]) -> RelationMap:
    layer = int(found.chosen_edit_layer)
    rank = int(found.edit_rank.sel(edit_layer=layer))
    left, values, right = work.means[layer].singular_vectors()
    names = ("model", "relation", "template", "examples", "products")
    source = {**{name: facts[name] for name in names}, "model_fingerprint": work.model.fingerprint, "only_rank": rank}
    beta = float(found.beta.sel(layer=layer))
    return RelationMap(left[:, :rank], values[:rank], right[:rank], work.left_over(layer).mean(0), beta, rank, layer, source)


# -- labels -------------------------------------------------------------------------------------------------------------------


def _coordinates(work: _Work, layers: Sequence[int], edited: Sequence[int]) -> dict[str, Any]:
    task, words = work.task, work.model.vocabulary
    return {
        "layer": variable(("layer",), np.array(layers), "layer of the subject's state"),
        "edit_layer": variable(("edit_layer",), np.array(edited), "layer of the edited state"),
        "predictor": texts(("predictor",), PREDICTORS, "what stands for the model"),
        "edit_method": texts(("edit_method",), EDITS, "how the state is changed"),
        "tried_beta": variable(("tried_beta",), np.array(BETAS), "factor of W"),
        "candidate_text": texts(("candidate",), [words[i] for i in _candidates(work.model, task)], "first token of an object"),
        "candidate_id": variable(("candidate",), np.array(_candidates(work.model, task)), "token id"),
        "subject_text": texts(("subject",), [one.pair[0] for one in task.tests], "subject"),
        "object_text": texts(("subject",), [one.pair[1] for one in task.tests], "object"),
    }


def _facts(work: _Work, products: int | None) -> dict[str, Any]:
    task = work.task
    return {
        "source": SOURCE, "probe": "relation_layers", "relation": task.relation.name,
        "template": task.relation.templates[task.template], "pairs": len(task.relation.pairs), "examples": work.examples,
        "shown_subjects": ", ".join(name for name, _ in task.shown),
        "example_subjects": ", ".join(one.pair[0] for one in task.examples), "asked": task.asked, "known": len(task.tests),
        "products": "whole Jacobian" if products is None else products, **work.model.provenance(), **library_versions(),
    }  # fmt: skip
