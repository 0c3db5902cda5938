"""Where a result came from: the attributes that every Dataset and every saved file carries."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

_LIBRARIES = ("torch", "transformers", "numpy", "xarray")


@cache
def lens_version() -> str:
    """Version of the installed distribution."""
    return importlib.metadata.version("lens-laboratory")


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, as `<name>_version` attributes."""
    versions = {"lens_version": lens_version(), "python_version": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[f"{name}_version"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[f"{name}_version"] = "not installed"
    return versions
