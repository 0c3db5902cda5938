"""The microscope's lens: two definitions of one loss, and the model's own beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.model import Model
from lens.probes.adapted_lens import adapted_lens
from lens.probes.logit_lens import logit_lens
from tests.models.families import build

IDS = [5, 9, 3, 70, 11, 11, 4]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_all_three_are_what_they_are_called(family: str):
    model = Model(build(family))
    run = model.run(IDS)
    found = adapted_lens(run)
    assert found.sizes == {"layer": 4, "position": 6}
    assert np.array(found.loss) == pytest.approx(np.array(logit_lens(run).next_surprisal)[:, :-1], abs=1e-4)
    with torch.no_grad():
        raw = model.readout.transform(model.readout.head(run.residual[2, :-1])).log_softmax(-1)
    assert np.array(found.raw_confidence.sel(layer=2)) == pytest.approx(-raw.max(1).values.numpy(), abs=1e-4)
    wanted = -raw.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    assert np.array(found.raw_loss.sel(layer=2)) == pytest.approx(wanted.numpy(), abs=1e-4)
    assert bool((found.raw_confidence <= found.raw_loss).all())


def test_some_layers():
    run = Model(build("llama")).run(IDS)
    some = adapted_lens(run, [3, 1])
    assert some.layer.to_numpy().tolist() == [1, 3]
    assert np.array_equal(some.raw_loss, adapted_lens(run).raw_loss.sel(layer=[1, 3]))


def test_refused():
    model = Model(build("llama"))
    with pytest.raises(InputError, match="1 tokens"):
        adapted_lens(model.run([4]))
    with pytest.raises(InputError, match="layers 0 to 3"):
        adapted_lens(model.run(IDS), [4])
    with pytest.raises(UnsupportedModelError, match="reads 16 of 32"):
        adapted_lens(Model(build("opt-projected")).run(IDS))
