"""What was measured of SmolLM2's depth and channels, shipped: 120 runs of edited models take minutes.

Made anew by `python -m lens.probes.depth_record FILE.nc`: about six minutes on a free core.
"""

from __future__ import annotations

import datetime
import sys
from importlib import resources
from pathlib import Path

import xarray as xr

from lens.base.files import atomic_file
from lens.collect import collect_moments
from lens.corpora import corpus
from lens.models.load import load
from lens.probes.depth_claims import depth_claims

RECORD = "depth-smollm2-135m.nc"
COMMAND = f"python -m lens.probes.depth_record {RECORD}"
DOCUMENTS, CALIBRATION, TOKENS = 6, 3, 128
COUNTS = (2, 4, 6, 8)


def shipped_depth_claims() -> xr.Dataset:
    """What `depth_claims` gave for SmolLM2-135M-Instruct: six articles of the test part of `wikipedia`, 128 tokens of each.

    Its attributes name the command, the date, the device, the corpus and the versions; `document` holds the articles in
    hash order.
    """
    with resources.as_file(resources.files("lens.records") / RECORD) as path:
        return xr.load_dataset(path, engine="h5netcdf")


def record_depth(path: Path | str) -> Path:
    """Measure and write the record: orders of blocks from three validation articles, maps from 20,000 other tokens."""
    model, text = load("smollm2-135m"), corpus("wikipedia")
    moments = collect_moments(model, text, tokens=20_000, pairs="overview")
    long = {
        part: [one for one in text.part(part) if len(model.encode_bare(one.text)) >= TOKENS] for part in ("test", "validation")
    }
    found = depth_claims(
        model, long["test"][:DOCUMENTS], long["validation"][:CALIBRATION], moments=moments, tokens=TOKENS, counts=COUNTS
    )  # fmt: skip
    found = found.assign_attrs(
        corpus=text.name, corpus_hash=text.digest, date=datetime.datetime.now(datetime.UTC).date().isoformat(), command=COMMAND
    )
    large = [name for name, one in found.data_vars.items() if one.dtype.kind == "f" and one.size > 99]
    with atomic_file(path) as temporary:
        found.to_netcdf(temporary, engine="h5netcdf", encoding={name: {"zlib": True, "complevel": 9} for name in large})
    return Path(path)


if __name__ == "__main__":
    print(record_depth(sys.argv[1]))
