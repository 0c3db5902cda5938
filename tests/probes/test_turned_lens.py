"""A lens that turns first: the plain lens of the twin whose rotation was absorbed."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models.three_phase import absorb_rotation
from lens.probes.logit_lens import logit_lens
from lens.probes.turned_lens import TurnedLens
from tests.models.families import build
from tests.probes.test_phase_wheel import IDS, moved, three_phase


def test_it_reads_what_the_plain_lens_reads_in_the_twin_without_rotations():
    module = moved(three_phase())
    model, twin = lens.load(module), lens.load(absorb_rotation(module))
    turned = logit_lens(model.run(IDS), TurnedLens(model), top_k=3)
    plain, own = logit_lens(model.run(IDS), top_k=3), logit_lens(twin.run(IDS), top_k=3)
    np.testing.assert_allclose(turned.next_surprisal, own.next_surprisal, atol=1e-5)
    np.testing.assert_array_equal(turned.token_id, own.token_id)
    assert turned.attrs["lens"] == "turned"
    np.testing.assert_array_equal(turned.next_surprisal[-1], plain.next_surprisal[-1])
    assert float(np.abs(turned.next_surprisal - plain.next_surprisal)[:-1].max()) > 0.5


def test_it_belongs_to_one_model_with_phases():
    one, other = lens.load(three_phase()), lens.load(three_phase(phases=2))
    with pytest.raises(InputError, match="A lens of"):
        logit_lens(other.run(IDS), TurnedLens(one), top_k=1)
    with pytest.raises(UnsupportedModelError):
        TurnedLens(lens.load(build("llama")))
