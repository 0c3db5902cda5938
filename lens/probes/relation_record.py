"""The shipped record of relations: made once by a command, read by panel and notebook.

python -m lens.probes.relation_record FOLDER
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import torch
import xarray as xr

from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.models.load import load
from lens.models.model import Model
from lens.probes.relation_layers import study_relation
from lens.probes.relation_map import RelationMap, load_relation_map
from lens.probes.relations import other_template, relation_task, relations

MODEL = "smollm2-135m"
WHOLE = ("country: capital",)
LAYERS, EDIT_LAYERS = (3, 9, 15, 21, 27, 29), (9, 15)  # of the others
PRODUCTS = 64
_DIGITS = 3  # of log probabilities


def record_relations(folder: Path | str, model: Model, names: Iterable[str] | None = None) -> list[Path]:
    """Study relations and write, for each, what `relation_layers` gives and the map that edits: two files.

    Args:
        folder: where to; relations whose files are there are left as they are.
        model: whose relations.
        names: some of `relations()`; by default all.

    Raises:
        InputError: no such relation, or one of which the model knows too little.
    """
    written = []
    for name in relations() if names is None else names:
        path = Path(folder) / f"relation-{slug(name)}.nc"
        if path.exists():
            continue
        task = relation_task(model, name)
        few = {} if name in WHOLE else {"layers": LAYERS, "edit_layers": EDIT_LAYERS, "products": PRODUCTS}
        found, editing = study_relation(model, task, other=other_template(model, task, 1), **few)
        found = found.assign_attrs(date=datetime.datetime.now(datetime.UTC).date().isoformat(), command=_COMMAND)
        editing.save(path.with_suffix(".safetensors"), torch.bfloat16)
        with atomic_file(path) as temporary:
            small = found.assign(logprob=found.logprob.round(_DIGITS), model_logprob=found.model_logprob.round(_DIGITS))
            packed = {
                key: {"zlib": True, "complevel": 9} for key, values in small.items() if values.dtype.kind in "if" and values.ndim
            }
            small.to_netcdf(temporary, engine="h5netcdf", encoding=packed)
        written.append(path)
    return written


_COMMAND = f"python -m {__name__ if __name__ != '__main__' else 'lens.probes.relation_record'} FOLDER"


def slug(name: str) -> str:
    """A relation's name as part of a file name."""
    return name.replace(": ", "-").replace(" ", "-")


def relation_record() -> dict[str, xr.Dataset]:
    """What `relation_layers` gave for relations of the package on SmolLM2-135M-Instruct, by name; shipped."""
    found = {name: _stored(name) for name in relations()}
    return {name: study for name, study in found.items() if study is not None}


def _stored(name: str) -> xr.Dataset | None:
    entry = resources.files("lens.records") / f"relation-{slug(name)}.nc"
    if not entry.is_file():
        return None
    with resources.as_file(entry) as path, xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def shipped_relation(model: Model, name: str) -> tuple[xr.Dataset, RelationMap] | None:
    """The shipped record of a relation and its editing map for this very model, or None."""
    study = _stored(name)
    if study is None:
        return None
    try:
        with resources.as_file(resources.files("lens.records") / f"relation-{slug(name)}.safetensors") as path:
            return study, load_relation_map(path, model)
    except InputError:  # of another model
        return None


if __name__ == "__main__":
    record_relations(sys.argv[1], load(MODEL), sys.argv[2:] or None)
