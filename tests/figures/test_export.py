"""Exported files: the suffix chooses, the content is the Dataset's, and a failure leaves nothing behind."""

from __future__ import annotations

import csv

import numpy as np
import pandas
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import csv_safe, visible
from lens.figures.export import SUFFIXES, export_logit_lens, export_table, logit_lens_csv, require_suffix
from tests.base.hostile import HOSTILE

STARTS = {
    ".html": b"<!doctype html>",
    ".csv": b"position,layer,rank,",
    ".png": b"\x89PNG",
    ".svg": b"<?xml",
    ".pdf": b"%PDF-",
    ".nc": b"\x89HDF",
}
PICTURES = (".html", ".png", ".svg", ".pdf")


def load_csv(path) -> pandas.DataFrame:
    return pandas.read_csv(path, keep_default_na=False, na_values={"next_rank": "", "next_surprisal": ""})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_suffix_says_what_is_written(dataset, tmp_path, suffix):
    path = export_logit_lens(dataset, tmp_path / f"made here{suffix}", colour="entropy", stride=2, selected=(1, 2))
    assert path == tmp_path / f"made here{suffix}"
    assert path.read_bytes().startswith(STARTS[suffix])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_tokens_can_be_exported(hostile, tmp_path, suffix):
    assert export_logit_lens(hostile, str(tmp_path / f"a{suffix}")).read_bytes().startswith(STARTS[suffix])


@pytest.mark.parametrize("name", ["a.exe", "a", "a.html.gz", ".html", "a.PNG"])
def test_another_suffix_is_refused_and_nothing_is_written(dataset, tmp_path, name):
    with pytest.raises(InputError, match=r"one of \.html, \.csv, \.png, \.svg, \.pdf, \.nc"):
        export_logit_lens(dataset, tmp_path / "new" / name)
    with pytest.raises(InputError):
        require_suffix(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("wrong", [{"colour": "blue"}, {"stride": 0}])
def test_a_picture_of_unknown_options_is_refused_and_nothing_is_written(dataset, tmp_path, suffix, wrong):
    with pytest.raises(InputError):
        export_logit_lens(dataset, tmp_path / f"a{suffix}", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "missing"), [(".html", "sentences"), (".csv", "entropy"), (".png", "settled_layer"), (".nc", None)]
)
def test_a_failing_write_keeps_the_file_that_was_there(dataset, tmp_path, suffix, missing):
    target = tmp_path / f"a{suffix}"
    target.write_text("old")
    broken = (
        dataset.drop_vars("settled_layer" if missing == "sentences" else missing) if missing else dataset.assign_attrs(x=object())
    )
    with pytest.raises((AttributeError, KeyError, TypeError)):
        export_logit_lens(broken, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


# -- tables ---------------------------------------------------------------------------------------


def test_a_csv_has_one_line_per_position_layer_and_rank(dataset, tmp_path):
    table = load_csv(export_logit_lens(dataset, tmp_path / "a.csv"))
    positions, layers, ranks = (dataset.sizes[name] for name in ("position", "layer", "rank"))
    assert table[["position", "layer", "rank"]].to_numpy().tolist() == [
        [position, layer, rank + 1] for position in range(positions) for layer in range(layers) for rank in range(ranks)
    ]
    assert set(table) == {
        "position", "layer", "rank", "input_id", "input_token", "token_id", "token", "logprob", "entropy", "kl_to_final",
        "next_rank", "next_surprisal",
    }  # fmt: skip


def test_a_csv_holds_the_datasets_values(dataset, tmp_path):
    table = load_csv(export_logit_lens(dataset, tmp_path / "a.csv")).set_index(["position", "layer", "rank"]).to_xarray()
    turned = dataset.transpose("position", "layer", "rank")
    assert (table.token_id.to_numpy() == turned.token_id.to_numpy()).all()
    assert (table.token.to_numpy() == turned.token.to_numpy()).all()
    assert table.logprob.to_numpy() == pytest.approx(turned.logprob.to_numpy(), rel=1e-5)
    for name in ("entropy", "kl_to_final", "next_rank", "next_surprisal"):
        expected = np.repeat(turned[name].to_numpy()[..., None], 5, axis=-1)
        assert table[name].to_numpy() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_formula_tokens_are_guarded_and_all_tokens_legible(hostile, tmp_path):
    table = load_csv(export_logit_lens(hostile, tmp_path / "a.csv"))
    assert not table.token.str.match(r"[=+\-@]").any()
    assert not table.input_token.str.match(r"[=+\-@]").any()
    first = table[(table.layer == 0) & (table["rank"] == 1)]
    expected = [csv_safe(visible(token)) for token in hostile.input_token.to_numpy()]
    assert first.input_token.tolist() == expected
    assert {"'=1+1", "'+1", "'-1", "'@SUM(A1)"} <= set(expected)
    assert len(expected) == len(HOSTILE)


def test_making_a_csv_changes_nothing(dataset):
    before = dataset.copy(deep=True)
    logit_lens_csv(dataset)
    assert dataset.identical(before)


# -- netCDF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["dataset", "hostile"])
def test_netcdf_gives_back_the_identical_dataset(which, request, tmp_path):
    data: xr.Dataset = request.getfixturevalue(which)
    with xr.open_dataset(export_logit_lens(data, tmp_path / "a.nc"), engine="h5netcdf") as again:
        assert again.identical(data)
        assert {name: again[name].dtype for name in again if again[name].dtype.kind != "U"} == {
            name: data[name].dtype for name in data if data[name].dtype != object
        }


def test_a_table_guards_its_texts_and_keeps_its_numbers(tmp_path):
    dataset = xr.Dataset(
        {
            "base": (("model", "lane"), np.array([[1 / 3, 2.0], [3.0, 4.0]])),
            "note": ("model", np.array(["=1+1", "plain"], dtype=object)),
        },
        {"model": ("model", np.array(["@home", "b"], dtype=object))},
    )
    path = export_table(dataset, tmp_path / "table.csv", ("base", "note"), ("model", "lane"))
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [row["note"] for row in rows] == ["'=1+1", "'=1+1", "plain", "plain"]
    assert rows[0]["model"] == "'@home"
    assert float(rows[0]["base"]) == 1 / 3
    with pytest.raises(InputError, match=r"ends in '\.txt'"):
        export_table(dataset, tmp_path / "table.txt", ("base",), ("model", "lane"))
