"""The charts of models trained at several bases say what the Datasets say."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.figures.rope_training import THEORIES, rope_training_chart
from lens.probes.rope_training import rope_training, rope_training_verdicts


@pytest.fixture(scope="module")
def record():
    dataset = rope_training()
    return dataset, rope_training_verdicts(dataset)


def values(part: list) -> np.ndarray:
    return np.array(part, dtype=float)


def test_loss_by_position(record):
    dataset, verdicts = record
    left = rope_training_chart(dataset, verdicts)["plots"][0]
    *curves, short = left["series"]
    assert [curve["name"] for curve in curves] == [
        name if name == "no rotation" else f"base {name}" for name in dataset.setting.values
    ]
    for curve, loss in zip(curves, dataset.loss.mean(("document", "seed")), strict=True):
        np.testing.assert_allclose(values(curve["values"]), loss, rtol=1e-3)
        assert (values(curve["low"]) <= values(curve["high"])).all()
    assert short["values"][:2] == [None, None]
    expected = dataset.short_loss[:5, :, :, 2:].mean(("setting", "seed", "document"))  # the last one does not turn
    np.testing.assert_allclose(values(short["values"][2:]), expected, rtol=1e-3)
    (trained,) = left["rules"]
    assert (trained["value"], trained["on"]) == (dataset.attrs["length"], "x")
    assert left["x"]["values"][0] == 16  # the middle of the first bin


def test_cost_by_base_beside_the_theories(record):
    dataset, verdicts = record
    for reach in verdicts.reach.values.tolist():
        right = rope_training_chart(dataset, verdicts, reach)["plots"][1]
        known = verdicts.sel(reach=reach).isel(setting=np.flatnonzero(~np.isnan(verdicts.base)))
        assert right["x"]["values"] == known.base.values.tolist()
        for curve, cost in zip(right["series"], (known.cost, known.divided_cost), strict=True):
            np.testing.assert_allclose(values(curve["values"]), cost, rtol=1e-3, atol=1e-4)
        found = {rule["label"]: rule["value"] for rule in right["rules"]}
        assert found == {name: pytest.approx(float(known.required.sel(theory=name)), rel=1e-3) for name in THEORIES}


def test_a_reach_that_was_not_measured(record):
    with pytest.raises(InputError, match="256, 512, 1024"):
        rope_training_chart(*record, reach=2048)
