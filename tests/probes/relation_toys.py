"""A small relation of made-up words on a small model, which need not know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lens.models.model import Model
from lens.probes.relations import Answer, Pair, Relation, RelationTask, answer
from tests.models.families import build, word_tokenizer

PAIRS = tuple((f"w{i}", f"w{i + 20}") for i in range(5, 17))
RELATION = Relation("word: other word", "word", "other word", ("w1 {} w2", "w3 {} w4", "w3 {}"), PAIRS)


def small_model(family: str = "llama", seed: int = 0) -> Model:
    return Model(build(family, seed), word_tokenizer())


def taken_as_right(model: Model, pair: Pair, shown: Sequence[Pair], template: int) -> Answer:
    """A random model answers nothing rightly: whatever it says counts as the answer."""
    found = answer(model, RELATION, pair, [one for one in shown if one != pair], template)
    return replace(found, expected=found.token)


def small_task(model: Model, template: int = 0, examples: int = 4) -> RelationTask:
    shown = PAIRS[:examples]
    fitted, tests = ([taken_as_right(model, pair, shown, template) for pair in some] for some in (shown, PAIRS[examples:]))
    return RelationTask(RELATION, template, shown, tuple(fitted), tuple(tests), len(tests))
