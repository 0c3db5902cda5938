"""What has been said of linear maps of relations, beside what was measured.

Source: Hernandez et al., "Linearity of Relation Decoding in Transformer Language Models" (arXiv 2308.09124), sections 4
and 5, and the results that its authors released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.probes.dataset import texts, variable
from lens.probes.relation_map import SOURCE
from lens.probes.verdict import document_interval, verdict

LRE = "Hernandez et al., arXiv 2308.09124"
FAITHFUL = 0.6  # share of subjects from which the paper calls a relation linearly decoded


def wilson_interval(hits: float | int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share, from how often something happened in how many independent trials.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Raises:
        InputError: no trial, or more hits than trials.
    """
    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"{hits} of {count}", "hits among one or more trials", "more subjects")
    share, z = hits / count, float(scipy.stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def relation_shares(study: xr.Dataset) -> xr.Dataset:
    """Shares over the tests of one relation, with Wilson's 95 % intervals.

    Args:
        study: from `relation_layers`.

    Returns:
        Dataset with `agreement`, `agreement_low`, `agreement_high` `[predictor, layer]` and `reached`, `reached_low`,
        `reached_high` `[edit_method, edit_layer]`, all in 0 … 1. Edits of one subject depend on each other, so that
        subjects are what the intervals count.
    """
    count = study.sizes["subject"]
    reached = study.says_target.mean("edit").transpose("edit_method", "edit_layer")
    found: dict[str, Any] = {}
    for name, shares, label in (
        ("agreement", study.agrees.mean("subject"), "share of subjects on which a predictor agrees with the model"),
        ("reached", reached, "share of edits that reach their target"),
    ):
        dims, values = tuple(map(str, shares.dims)), shares.to_numpy()
        ends = np.array([wilson_interval(share * count, count) for share in values.ravel()]).reshape((*values.shape, 2))
        found[name] = variable(dims, values, label)
        found[f"{name}_low"] = variable(dims, ends[..., 0], f"{label}, lower end")
        found[f"{name}_high"] = variable(dims, ends[..., 1], f"{label}, upper end")
    chosen = {name: study[name].variable for name in ("chosen_layer", "chosen_edit_layer")}
    coordinates = {name: study[name].variable for name in ("layer", "predictor", "edit_layer", "edit_method")}
    return xr.Dataset({**found, **chosen}, coordinates, study.attrs)


def relation_table(studies: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """One row for each relation, at the layer, factor and rank that its examples chose.

    Args:
        studies: by name, from `relation_layers`.

    Returns:
        Dataset over `relation` (names): `known`, `asked`; `faithfulness` of the map with `faithfulness_low`, `_high`; the same
        of `translation`, `regression`, `logit_lens`, `other_subject`, `constant` at that layer; `at_beta_1`; `causality` with
        `causality_low`, `_high`, and of `substitution`, `output_difference`, `random_direction`; `last_layer`, the map's
        agreement at the last layer from which a block leads on; `best_layer`, its highest agreement over layers, which no
        choice on examples can promise; `other_template`; `beta`, `chosen_layer`, `chosen_edit_layer`, `edit_rank`, `edit_size`.

    Raises:
        InputError: no study.
    """
    if not studies:
        raise InputError("There is no study", "one or more", "lens.relation_record()")
    rows = [_row(study) for study in studies.values()]
    found = {key: variable(("relation",), np.array([row[key] for row in rows]), key.replace("_", " ")) for key in rows[0]}
    first = next(iter(studies.values())).attrs
    attrs = {
        "source": SOURCE,
        "probe": "relation_table",
        **{key: first[key] for key in ("model", "device", "date") if key in first},
    }
    return xr.Dataset(found, coords={"relation": texts(("relation",), list(studies), "relation")}, attrs=attrs)


def _row(study: xr.Dataset) -> dict[str, float]:
    layer, edit = int(study.chosen_layer), int(study.chosen_edit_layer)
    shares = relation_shares(study)
    here, edits = shares.sel(layer=layer), shares.sel(edit_layer=edit)
    maps = shares.agreement.sel(predictor="map")
    row = {"known": float(study.attrs["known"]), "asked": float(study.attrs["asked"])}
    for end in ("", "_low", "_high"):
        row[f"faithfulness{end}"] = float(here[f"agreement{end}"].sel(predictor="map"))
        row[f"causality{end}"] = float(edits[f"reached{end}"].sel(edit_method="inverse"))
    for method in ("translation", "regression", "logit lens", "other subject", "constant"):
        row[method.replace(" ", "_")] = float(here.agreement.sel(predictor=method))
    for method in ("substitution", "output difference", "random direction"):
        row[method.replace(" ", "_")] = float(edits.reached.sel(edit_method=method))
    row |= {
        "at_beta_1": float(study.beta_agreement.sel(tried_beta=1)),
        "last_layer": float(maps[-1]),
        "best_layer": float(maps.max()),
        "other_template": float(study.other_agrees.sel(layer=layer).mean()) if "other_agrees" in study else np.nan,
        "beta": float(study.beta.sel(layer=layer)),
        "chosen_layer": layer,
        "chosen_edit_layer": edit,
        "edit_rank": float(study.edit_rank.sel(edit_layer=edit)),
        "edit_size": float(study.edit_size.sel(edit_layer=edit).median()),
    }
    return row


# -- verdicts -----------------------------------------------------------------------------------------------------------


def relation_verdicts(table: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over relations.

    Args:
        table: from `relation_table`, of four relations or more.

    Returns:
        Rows of `claim`, `source`, `published` (empty for claims of ours), `measured` (what the number is), `threshold` (from
        which the claim holds; ours, where the paper gives none), `value`, `low`, `high` (95 %) and `verdict` (`holds`, `fails`
        or `open`).

    Raises:
        InputError: fewer than four relations.
    """
    count = table.sizes["relation"]
    if count < 4:
        raise InputError(f"{count} relations", "4 or more for an interval over them", "lens.relation_record()")
    rows = []
    for claim, published, measured, threshold, statistic in _CLAIMS:
        value, interval = statistic(table)
        rows.append({
            "claim": claim, "source": LRE if published else "ours", "published": published, "measured": measured,
            "threshold": threshold, "value": round(value, 3), "low": round(interval[0], 3), "high": round(interval[1], 3),
            "verdict": verdict(interval, at_least=threshold),
        })  # fmt: skip
    return rows


Statistic = tuple[float, tuple[float, float]]


def _mean(values: np.ndarray) -> Statistic:
    return float(values.mean()), document_interval(values.tolist(), np.mean)


def _difference(one: str, *others: str):
    """Of one column and the best of some others, relation by relation."""

    def statistic(table: xr.Dataset) -> Statistic:
        best = np.max([table[other].to_numpy() for other in others], axis=0)
        return _mean((table[one].to_numpy() - best).astype(float))

    return statistic


def _faithful(table: xr.Dataset) -> Statistic:
    hits = int((table.faithfulness > FAITHFUL).sum())
    return hits / table.sizes["relation"], wilson_interval(hits, table.sizes["relation"])


def _correlation(table: xr.Dataset) -> Statistic:
    """Pearson's r over relations, with Fisher's interval."""
    values = np.stack([table[name].to_numpy().astype(float) for name in ("faithfulness", "causality")])
    if values.std(axis=1).min() == 0:
        return 0.0, (-1.0, 1.0)  # one of the two does not vary: nothing can be told
    ends = scipy.stats.pearsonr(values[0], values[1]).confidence_interval(0.95)
    return float(np.corrcoef(values)[0, 1]), (float(ends.low), float(ends.high))


def _column(name: str):
    return lambda table: _mean(table[name].to_numpy().astype(float))


_CLAIMS: Sequence[tuple[str, str, str, float, Any]] = (
    ("About half of the relations are linearly decoded", "48 % over .6, GPT-J", "share of relations with faithfulness over .6",
     0.48, _faithful),
    ("A relation's map beats the baselines without a Jacobian", ".60 against .19, Llama-13B",
     "faithfulness less the best of shift, regression, lens", 0.0, _difference("faithfulness", "translation", "regression",
                                                                              "logit_lens")),
    ("A relation's map beats one answer for all", "", "faithfulness less that of the mean answer", 0.0,
     _difference("faithfulness", "constant")),
    ("A relation's map reads this subject, not any", "", "faithfulness less that with another subject's state", 0.0,
     _difference("faithfulness", "other_subject")),
    ("A factor β over 1 is needed", "β = 2.25, GPT-J", "agreement at the chosen β less at β = 1", 0.0,
     _difference("faithfulness", "at_beta_1")),
    ("The inverse of the map edits the answer", ".72 factual, .92 linguistic", "causality", 0.72, _column("causality")),
    ("The inverse edits as well as the other subject's state", ".79 against .76, factual", "causality less that of substitution",
     0.0, _difference("causality", "substitution")),
    ("Faithfulness and causality go together", "r = .84", "Pearson's r over relations", 0.5, _correlation),
    ("Maps of late layers fail", "falls towards the end", "chosen layer's agreement less the last one's", 0.2,
     _difference("faithfulness", "last_layer")),
)  # fmt: skip
