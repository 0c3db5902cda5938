"""Relations between a subject and an object, such as a country and its capital, and what a model says when it is asked for them.

A prompt shows some pairs of a relation, one sentence each, and ends before the object of one more. Only what the model then
answers rightly can tell how it finds the answer.

Source: Hernandez et al., "Linearity of Relation Decoding in Transformer Language Models" (arXiv 2308.09124), sections 2 and 4.
The pairs and sentences are not theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.model import Model

EXAMPLES = 5  # of each relation to fit on, as in the authors' sweeps
Pair = tuple[str, str]


@dataclass(frozen=True)
class Relation:
    """Pairs of one kind, and sentences that hold them.

    Attributes:
        name: as in "country: capital".
        subject, object: what the two are, in words.
        templates: sentences with `{}` in the subject's place, which end before the object.
        pairs: subject and object.
    """

    name: str
    subject: str
    object: str
    templates: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def prompt(self, subject: str, shown: Sequence[Pair], template: int = 0) -> tuple[str, str]:
        """The prompt that asks for a subject's object after the shown pairs: up to the subject's end, and what follows."""
        if not 0 <= template < len(self.templates):
            raise InputError(f"Template {template}", f"0 to {len(self.templates) - 1}, those of {self.name!r}", "template=0")
        sentence = self.templates[template]
        lines = "".join(f"{sentence.format(one)} {other}.\n" for one, other in shown)
        before, after = sentence.split("{}")
        return f"{lines}{before}{subject}", after


@cache
def relations() -> dict[str, Relation]:
    """The relations that come with the package, by name: 30 to 40 pairs and two templates each."""
    text = (resources.files("lens.records") / "relations.json").read_text("utf-8")
    return {
        one["name"]: Relation(
            one["name"], one["subject"], one["object"], tuple(one["templates"]), tuple((a, b) for a, b in one["pairs"])
        )
        for one in json.loads(text)["relations"]
    }


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says when it is asked for one subject's object.

    Attributes:
        pair: subject and object.
        token_ids: of the prompt.
        position: of the subject's last token.
        states: `[layer, d]`, that token's residual states.
        output: `[d]`, the state behind the last block at the prompt's end.
        token: the model's next token.
        expected: the object's first token.
    """

    pair: Pair
    token_ids: tuple[int, ...]
    position: int
    states: Float[Tensor, "layer d"]
    output: Float[Tensor, " d"]
    token: int
    expected: int

    @property
    def right(self) -> bool:
        return self.token == self.expected


@dataclass(frozen=True, eq=False)
class RelationTask:
    """A relation's pairs in two parts: examples to fit on, and others to be asked.

    Attributes:
        relation: whose pairs they are.
        template: in which sentence.
        shown: the pairs that stand before every question, without the one that is asked.
        examples: those of them that are still answered rightly.
        tests: others that are answered rightly.
        asked: how many pairs were asked that are no examples.
    """

    relation: Relation
    template: int
    shown: tuple[Pair, ...]
    examples: tuple[Answer, ...]
    tests: tuple[Answer, ...]
    asked: int

    @property
    def everything(self) -> tuple[Answer, ...]:
        return (*self.examples, *self.tests)


def answer(model: Model, relation: Relation, pair: Pair, shown: Sequence[Pair], template: int = 0) -> Answer:
    """Ask a model for one subject's object.

    Raises:
        InputError: a tokenizer that joins the subject's end with what follows.
    """
    start, end = relation.prompt(pair[0], shown, template)
    head, ids = model.encode(start), model.encode(start + end)
    if ids[: len(head)] != head:
        found = f"A token of {start[-20:] + end!r} holds the end of {pair[0]!r} and what follows"
        raise InputError(found, "a subject that ends with a token", "another template")
    run = model.run(ids, logits=False)
    output = run.residual[-1, -1]
    expected = model.encode_bare(f" {pair[1]}")[0]
    place = len(head) - 1
    states = run.residual[:, place].clone()  # or else the states of the whole prompt stay
    return Answer(pair, tuple(ids), place, states, output.clone(), int(model.unembed(output).argmax()), expected)


def relation_task(
    model: Model,
    relation: Relation | str,
    *,
    template: int = 0,
    examples: int = EXAMPLES,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> RelationTask:
    """Choose examples among the pairs that a model knows, and ask it for all others.

    Pairs are tried in a random order until enough are known, each with as many others shown as there will be examples. A pair
    that is no longer answered rightly when the chosen examples are shown is left out.

    Args:
        model: with a tokenizer.
        relation: or the name of one of `relations()`.
        template: which of its sentences.
        examples: how many to fit on, two or more.
        seed: of the order.
        check: called before every prompt; raising from it stops.

    Raises:
        InputError: no such relation or template, or fewer known pairs than examples and two more.
    """
    chosen = named_relation(relation)
    if examples < 2:
        raise InputError(f"{examples} examples", "2 or more", f"examples={EXAMPLES}")
    order = [chosen.pairs[i] for i in np.random.default_rng(seed).permutation(len(chosen.pairs))]

    def ask(pair: Pair, shown: Sequence[Pair]) -> Answer:
        if check is not None:
            check()
        return answer(model, chosen, pair, [one for one in shown if one != pair], template)

    known: list[Pair] = []
    for place, pair in enumerate(order):
        if len(known) == examples:
            break
        others = [*order[place + 1 :], *order[:place]][:examples]
        known += [pair] if ask(pair, others).right else []
    fitted = [one for one in (ask(pair, known) for pair in known) if one.right]
    rest = [ask(pair, known) for pair in order if pair not in known]
    tests = [one for one in rest if one.right]
    if len(known) < examples or len(fitted) < 2 or len(tests) < 2:
        found = f"{model.name} answers {len(known) + len(tests)} of {len(order)} pairs of {chosen.name!r} rightly"
        raise InputError(found, f"{examples} to fit on and 2 more", "fewer examples, another relation or a larger model")
    return RelationTask(chosen, template, tuple(known), tuple(fitted), tuple(tests), len(rest))


def other_template(
    model: Model, task: RelationTask, template: int, *, most: int = 12, check: Callable[[], None] | None = None
) -> tuple[Answer, ...]:
    """The first `most` tests of a task, asked in another sentence; those that are answered rightly.

    Raises:
        InputError: no such template.
    """
    shown = [one.pair for one in task.examples]
    found = []
    for one in task.tests[:most]:
        if check is not None:
            check()
        found.append(answer(model, task.relation, one.pair, shown, template))
    return tuple(one for one in found if one.right)


def named_relation(relation: Relation | str) -> Relation:
    """A relation, or the one of that name among those of the package."""
    if isinstance(relation, Relation):
        return relation
    known = relations()
    if relation not in known:
        raise InputError(f"The relation is {relation!r}", f"one of {', '.join(known)}", f"{next(iter(known))!r}")
    return known[relation]


def stacked(answers: Sequence[Answer]) -> tuple[Float[Tensor, "subject layer d"], Float[Tensor, "subject d"]]:
    """States and outputs of several answers."""
    return torch.stack([one.states for one in answers]), torch.stack([one.output for one in answers])
