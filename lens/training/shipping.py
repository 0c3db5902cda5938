"""From the folder of a finished training to a shipped model: weights, configuration, a short record; one tokenizer for all.

    python -m lens.training.shipping three-phase FOLDER…

writes what is shipped as `lens/records/three-phase` from the folders that `lens train` wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens.base.errors import InputError
from lens.base.files import atomic_file, sha256
from lens.models.shipped import RECORD as SHIPPED_RECORD
from lens.training.phase_recipes import FAMILY
from lens.training.record import Record, read_record
from lens.training.three_phase import RECORD

SHIPPED = (*FAMILY, "three-phase-12-blocks")
SEED = 0  # of the models that are shipped; the record of the family holds the others' numbers
FORMAT = "lens-three-phase-1"
WEIGHTS = "model.safetensors"
LARGEST = 20_000_000  # bytes of all shipped weights
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def ship_models(trained: Sequence[Path | str], target: Path | str) -> list[Path]:
    """Write what of finished trainings is shipped; what lies there already is replaced.

    Args:
        trained: folders that `lens train` wrote, with one tokenizer.
        target: the folder of all shipped models.

    Returns:
        The folder of each model, named after its recipe.

    Raises:
        InputError: no record, two trainings of one recipe, another tokenizer, or more than 20 MB of weights in all.
    """
    records = {Path(folder): read_record(Path(folder) / RECORD) for folder in trained}
    names = [record.recipe.name for record in records.values()]
    if len(set(names)) < len(names):
        raise InputError(f"{len(names)} trainings of {len(set(names))} recipes", "one of each", "the folders of one seed")
    if (size := sum((folder / WEIGHTS).stat().st_size for folder in records)) > LARGEST:
        raise InputError(f"{size / 1e6:.1f} MB of weights", f"at most {LARGEST / 1e6:.0f} MB", "fewer or smaller models")
    _ship_tokenizer(list(records), Path(target))
    return [_ship(folder, record, Path(target)) for folder, record in records.items()]


def _ship_tokenizer(trained: list[Path], target: Path) -> None:
    for name in _TOKENIZER:
        digests = {sha256(folder / name) for folder in trained}
        if len(digests) > 1:
            raise InputError(f"{len(digests)} kinds of {name}", "one tokenizer for all models", "trainings on the same corpora")
        with atomic_file(target / name) as temporary:
            shutil.copyfile(trained[0] / name, temporary)


def _ship(folder: Path, record: Record, target: Path) -> Path:
    place = target / record.recipe.name
    for name in ("config.json", WEIGHTS):
        with atomic_file(place / name) as temporary:
            shutil.copyfile(folder / name, temporary)
    with atomic_file(place / SHIPPED_RECORD) as temporary:
        temporary.write_text(json.dumps(_short(record, sha256(folder / WEIGHTS)), indent=1) + "\n", encoding="utf-8")
    return place


def _short(record: Record, digest: str) -> dict[str, Any]:
    """A record without its course and its documents, which the record of the whole family holds."""
    means = {name: round(sum(losses) / len(losses), 5) for name, losses in record.results["test_loss"].items()}
    kept = ("saved_test_loss", "bytes_per_token", "parameters", "tokens_per_second", "weight_bytes")
    return {
        "format": FORMAT,
        "command": training_command(record),
        "recipe": record.recipe.facts(),
        "source": dict(record.source),
        "environment": dict(record.environment),
        "tokens": record.tokens,
        "seconds": round(record.seconds, 1),
        "results": {"test_loss": means, **{name: record.results[name] for name in kept}},
        "weights_sha256": digest,
    }


def training_command(record: Record) -> str:
    """What makes the model again."""
    return f"lens train {record.recipe.name} --seed {record.recipe.seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lens.training.shipping TARGET FOLDER…`: ship what of the folders belongs to the family, of one seed."""
    parser = argparse.ArgumentParser(description="Ship trained Three-Phase models.")
    parser.add_argument("target", type=Path, help="the folder of all shipped models")
    parser.add_argument("folders", type=Path, nargs="+", help="that lens train wrote; other recipes and seeds are left out")
    options = parser.parse_args(arguments)
    recipes = {folder: read_record(folder / RECORD).recipe for folder in options.folders}
    chosen = [folder for folder, recipe in recipes.items() if recipe.name in SHIPPED and recipe.seed == SEED]
    if not chosen:
        raise InputError(f"None of {len(recipes)} trainings is shipped", f"one of {', '.join(SHIPPED)}, seed {SEED}", "others")
    for place in ship_models(chosen, options.target):
        print(place)


if __name__ == "__main__":
    main()
