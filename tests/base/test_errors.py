"""Errors say what was found, what was needed and what to try, in one line."""

from __future__ import annotations

import copy
import pickle

import pytest

import lens
from lens.base import errors
from lens.base.errors import Cancelled, InputError, LensError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LensError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_has_its_three_parts_in_one_line(kind):
    error = kind("The text is empty", "at least one character", "typing a sentence")
    assert str(error) == "The text is empty. Needed: at least one character. Try: typing a sentence."
    assert (error.found, error.needed, error.hint) == ("The text is empty", "at least one character", "typing a sentence")
    assert "\n" not in str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_errors_travel_between_processes(kind, carry):
    error = kind("found", "needed", "hint")
    there = carry(error)
    assert type(there) is kind
    assert str(there) == str(error)
    assert (there.found, there.needed, there.hint) == ("found", "needed", "hint")


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        ("InputError", ValueError),
        ("ModelNotFoundError", LookupError),
        ("DiskSpaceError", OSError),
        ("MemoryEstimateError", MemoryError),
    ],
)
def test_callers_who_know_only_the_standard_errors_can_catch_ours(kind, standard):
    with pytest.raises(standard):
        raise getattr(errors, kind)("found", "needed", "hint")


def test_a_message_stays_one_line_when_what_was_found_is_not():
    assert "\n" not in str(InputError("The text is 'a\nb'", "one line", "another text"))


def test_cancelled_needs_no_words():
    assert str(Cancelled()) == "The computation was cancelled. Needed: nothing. Try: run it again."
    assert str(pickle.loads(pickle.dumps(Cancelled()))) == str(Cancelled())


def test_the_base_of_all_is_public():
    assert lens.LensError is LensError
    assert all(issubclass(kind, lens.LensError) for kind in KINDS)
