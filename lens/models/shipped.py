"""Small models that come with the package, trained by `lens.training`: opened by the name of their recipe, without a network.

Each has a folder in `lens/records/three-phase` with its configuration, its weights in bfloat16 (angles and learned horns in
float32) and `record.json`, which says how it was trained and what it then measured. All share one tokenizer.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

FOLDER = "three-phase"
RECORD = "record.json"


def shipped_models() -> dict[str, Path]:
    """Folders of the shipped models, by name."""
    root = Path(str(files("lens.records"))) / FOLDER
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{RECORD}"))}


def shipped_record(name: str) -> dict[str, Any]:
    """How a shipped model was trained: `recipe`, `source`, `environment`, `command`, `results`, `weights_sha256`.

    `results` hold `saved_test_loss[corpus]`, nats per token of the weights as they are shipped, beside `test_loss[corpus]`,
    that of the weights before they were rounded.

    Raises:
        KeyError: no shipped model of that name.
    """
    return json.loads((shipped_models()[name] / RECORD).read_text(encoding="utf-8"))


def tokenizer_place(place: str) -> str:
    """Where the tokenizer of a model lies: beside its weights, and for a shipped model in the folder above."""
    return str(Path(place).parent) if Path(place) in shipped_models().values() else place
