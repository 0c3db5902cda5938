"""Where a result came from, as attributes that netCDF can hold."""

from __future__ import annotations

import importlib.metadata
import platform

import numpy
import torch
import transformers
import xarray

import lens
from lens.base.provenance import lens_version, library_versions


def test_names_are_those_of_the_libraries_that_results_depend_on():
    expected = {f"{name}_version" for name in ("lens", "python", "torch", "transformers", "numpy", "xarray")}
    assert set(library_versions()) == expected


def test_values_are_texts_and_those_of_the_imported_libraries():
    versions = library_versions()
    assert all(type(value) is str for value in versions.values())
    assert versions["python_version"] == platform.python_version()
    for library in (torch, transformers, numpy, xarray):
        assert versions[f"{library.__name__}_version"].split("+")[0] == library.__version__.split("+")[0]


def test_our_own_version_is_the_distributions():
    assert lens_version() == lens.__version__ == library_versions()["lens_version"]
    assert lens_version() == importlib.metadata.version("lens-laboratory")
