"""Switches of a training: what they describe, and that a choice which is a recipe of the family is that recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lens.base.errors import InputError
from lens.training.phase_choice import DIVISORS, ROTATIONS, PhaseChoice
from lens.training.phase_recipes import FAMILY, phase_recipe

MEMBERS = {
    **{f"three-phase-n{phases}": PhaseChoice(phases) for phases in (1, 2, 3, 4, 6, 8, 12)},
    "three-phase-rope-only": PhaseChoice(1, rotation="off", horn=False),
    "three-phase-rope-only-scaled": PhaseChoice(1, rotation="off", horn=False, multiplier=True),
    "three-phase-no-horn": PhaseChoice(horn=False),
    "three-phase-no-rotation": PhaseChoice(rotation="off"),
    "three-phase-frozen-theta": PhaseChoice(rotation="frozen"),
    "three-phase-no-theta-decay": PhaseChoice(theta_decay=False),
}


def test_family_can_be_chosen_and_keeps_its_names_and_facts():
    assert set(MEMBERS) == set(FAMILY)
    for name, choice in MEMBERS.items():
        known = phase_recipe(name)
        found = replace(choice, steps=known.training.steps).recipe()
        assert found == known
        assert found.training.facts() == known.training.facts()
    assert len({choice.title for choice in MEMBERS.values()}) == len(MEMBERS)


def test_every_number_of_phases_that_is_offered_makes_a_model():
    assert DIVISORS == (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)
    assert [PhaseChoice(phases).recipe().config().num_phases for phases in DIVISORS] == list(DIVISORS)


def test_switches_are_fields_of_the_model():
    choice = PhaseChoice(16, rope_base=500, rotation="tied", horn=False, theta_decay=False, multiplier=True, steps=40)
    recipe = choice.recipe()
    config = recipe.config()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    assert (config.phase_rotation, config.horn, config.embedding_multiplier) == ("tied", "none", 96**0.5)
    assert (recipe.training.undecayed, recipe.training.steps, recipe.training.warm_up) == (("theta",), 40, 4)
    assert choice.title == "16 phases, one angle for a block, no horn, no decay of angles, RoPE base 500 × √d"
    # Without learned angles there is none that decay could spare: the same training, whatever the switch says.
    assert PhaseChoice(rotation="frozen", theta_decay=False).recipe() == PhaseChoice(rotation="frozen").recipe()
    names = {
        replace(PhaseChoice(), rope_base=base, rotation=turn).recipe().name for base in (500, 1e4, 1e6) for turn in ROTATIONS
    }
    assert len(names) == 12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_phases": 5}, "one of 1, 2, 3, 4, 6"),
        ({"rotation": "on"}, "Try: rotation='learned'"),
        ({"rope_base": 1.0}, "above 1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_choices_that_describe_no_training_are_refused(wrong: dict, message: str):
    with pytest.raises(InputError, match=message):
        PhaseChoice(**wrong)
