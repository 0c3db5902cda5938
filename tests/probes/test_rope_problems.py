"""What speaks against each theory: the counts, names and numbers in the sentences are those of the probes."""

from __future__ import annotations

import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.rope_bounds import THEORIES, rope_bounds
from lens.probes.rope_practice import rope_practice
from lens.probes.rope_problems import counter_examples, rope_problems

OFFERED = "that are offered for their context"


@pytest.fixture(scope="module")
def practice() -> xr.Dataset:
    return rope_practice()


def against(theory: str, practice: xr.Dataset, **settings) -> list[str]:
    found = rope_problems(rope_bounds(**{"context": 4096, "base": 1e4, **settings}), practice)
    return found.sentence.to_numpy()[found.theory.to_numpy() == theory].tolist()


@pytest.mark.parametrize(
    ("theory", "sentence"),
    [
        ("aliasing", f"All 20 models {OFFERED} meet it; of 2 settings beyond what is offered it refuses 0."),
        ("slow_lane_share", f"All 20 models {OFFERED} meet it; of 2 settings beyond what is offered it refuses 2."),
        (
            "dc_stability",
            f"5 of 20 models {OFFERED} do not meet it: Llama-2 7B; Llama-2 70B; Mistral-7B v0.1, window 4096 and 2 more.",
        ),
        (
            "precision_wall",
            f"3 of 20 models {OFFERED} do not meet it: Llama-3-8B-Gradient-1048k; Qwen2.5-7B-1M; GLM-4-9B-chat-1M.",
        ),
    ],
)
def test_counter_examples_are_counted_and_named(practice, theory, sentence):
    assert counter_examples(practice, theory) == against(theory, practice)[0] == sentence


@pytest.mark.parametrize(("theory", "count"), [("depth", 11), ("similar_beats_random", 17), ("similar_beats_random_safe", 18)])
def test_models_in_use_that_do_not_meet_it(practice, theory, count):
    assert counter_examples(practice, theory).startswith(f"{count} of 20 models")


@pytest.mark.parametrize(("base", "width", "factor"), [(1e4, 128, "1.15"), (1e4, 64, "1.33"), (1e4, 16, "3.16")])
def test_the_slowest_lane_is_not_one_over_the_base(practice, base, width, factor):
    assert f"turns {factor} times as fast" in against("aliasing", practice, base=base, width=width)[1]


def test_with_the_exact_lane_that_is_no_problem(practice):
    assert not any("times as fast" in sentence for sentence in against("aliasing", practice, lane="exact"))


def test_most_lanes_have_turned_and_few_stay(practice):
    assert "At 4,096 tokens 46 of 64 lanes have come round" in against("aliasing", practice)[2]
    assert "3 of 64 keep their cosine at 0.95 or above" in against("dc_stability", practice, context=2048)[2]


def test_a_base_at_which_every_lane_comes_round_is_the_opposite(practice):
    sentence = against("aliasing", practice)[3]
    below = float(sentence.split("a base below ")[1].split(",")[0])
    assert int(rope_bounds(4096, base=below - 1).slow_lanes) == 0
    assert int(rope_bounds(4096, base=below + 1).slow_lanes) == 1


@pytest.mark.parametrize(("dtype", "refused"), [("float32", "every model of more than 6 layers"), ("float16", "every model")])
def test_the_wedge_at_a_million_tokens(practice, dtype, refused):
    sentence = against("depth", practice, dtype=dtype)[2]
    assert sentence == f"At 1,048,576 tokens it and the {dtype} wall together refuse {refused}."


def test_the_mechanism_of_the_wall_is_measured(practice):
    collisions, error, weights, casting = against("precision_wall", practice)[1:]
    assert "At base 2.8e+09 and position 1,048,575 0 of 64 lanes" in collisions
    wavelength = float(error.split("the one of ")[1].split(" tokens")[0])
    assert wavelength < 32
    assert weights.endswith("it would refuse 22 of 22 models.")
    assert "8,192 in bfloat16 become 897" in casting


def test_the_kernel_of_models_in_use(practice):
    earliest, few = against("similar_beats_random", practice)[1:]
    assert earliest == "DeepSeek-V2 is offered for 163,840 tokens, and its kernel falls below zero at 4,119 already."
    assert (
        few == "With very many lanes 6,644 would do; that 128 rotary dimensions need 4.32 times as much is because they are few."
    )
    assert "2.87e+04 is the smallest, and up to 5.89e+04 some fail" in against("similar_beats_random_safe", practice)[1]


def test_every_theory_has_something_against_it_and_keeps_it_in_a_file(practice, tmp_path):
    found = rope_problems(rope_bounds(4096, base=1e4), practice)
    assert set(found.theory.to_numpy()) == set(THEORIES)
    found.to_netcdf(tmp_path / "problems.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "problems.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), found)


@pytest.mark.parametrize("bounds", [rope_bounds(4096), rope_bounds([1024, 4096])])
def test_bounds_of_no_base_are_refused(practice, bounds):
    with pytest.raises(InputError, match="The bounds are of no base"):
        rope_problems(bounds, practice)
