"""Relations of the package, their prompts, and which pairs count as known."""

from __future__ import annotations

import pytest

from lens.base.errors import InputError
from lens.probes.relations import Relation, answer, named_relation, other_template, relation_task, relations
from tests.probes.relation_toys import PAIRS, RELATION, small_model


def test_the_shipped_set():
    found = relations()
    assert len(found) == 8
    for name, relation in found.items():
        assert name == relation.name
        assert len(relation.templates) == 2
        assert all(template.count("{}") == 1 for template in relation.templates)
        assert len(relation.pairs) >= 30
        assert len(dict(relation.pairs)) == len(relation.pairs)  # no subject twice
        assert all(subject == subject.strip() and other == other.strip() for subject, other in relation.pairs)


def test_a_prompt_shows_pairs_and_ends_before_the_object():
    capital = relations()["country: capital"]
    start, end = capital.prompt("Peru", [("France", "Paris"), ("Italy", "Rome")])
    assert start + end == "The capital of France is Paris.\nThe capital of Italy is Rome.\nThe capital of Peru is"
    assert start.endswith("Peru")
    with pytest.raises(InputError, match="Template 2"):
        capital.prompt("Peru", [], 2)


def test_an_answer_holds_the_states_of_a_plain_run():
    model = small_model()
    found = answer(model, RELATION, PAIRS[0], PAIRS[1:3])
    run = model.run("w1 w6 w2 w26.\nw1 w7 w2 w27.\nw1 w5 w2")
    assert list(found.token_ids) == run.token_ids.tolist()
    assert run.tokens[found.position] == "w5"
    assert (found.states == run.residual[:, found.position]).all()
    assert found.token == int(run.logits[-1].argmax())
    assert found.expected == model.encode_bare("w25")[0]


def test_pairs_that_are_answered_wrongly_do_not_count():
    model = small_model()
    said = answer(model, RELATION, PAIRS[0], PAIRS[1:4])
    word = model.vocabulary[said.token].strip()
    assert not said.right
    assert answer(model, Relation("x: y", "x", "y", RELATION.templates, ()), ("w5", word), PAIRS[1:4]).right
    with pytest.raises(InputError, match="pairs of 'word: other word' rightly"):
        relation_task(model, RELATION, examples=3)


def test_a_task_of_a_model_that_says_one_word():
    """A relation with one object for all: some pairs get it and are examples and tests, others are left out."""
    model = small_model()
    word = model.vocabulary[answer(model, RELATION, PAIRS[0], PAIRS[1:3]).token].strip()
    same = Relation("one: word", "one", "word", ("w1 {} w2",), tuple((f"w{i}", word) for i in range(5, 45)))
    task = relation_task(model, same, examples=2)
    assert len(task.examples) == 2
    assert task.asked == 38
    assert 2 <= len(task.tests) < 38
    assert all(one.right for one in task.everything)
    shown = task.shown
    assert all(one.pair in shown for one in task.examples)
    assert all(answer(model, same, pair, shown).right == (pair in [one.pair for one in task.tests])
               for pair in same.pairs if pair not in shown)  # fmt: skip
    assert [one.pair for one in other_template(model, task, 0, most=5)] == [one.pair for one in task.tests[:5]]


def test_refusals():
    with pytest.raises(InputError, match="country: king"):
        named_relation("country: king")
    with pytest.raises(InputError, match="1 examples"):
        relation_task(small_model(), RELATION, examples=1)
