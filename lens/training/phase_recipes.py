"""Recipes of Three-Phase models: small files with a name, each of which says what it changes in one common training.

title = "3 phases"      # in words
[model]                 # fields of ThreePhaseConfig
num_phases = 3
[training]              # fields of Recipe, where they differ
[text]                  # fields of TextRecipe, where they differ
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from lens.base.errors import InputError
from lens.models.three_phase import ThreePhaseConfig
from lens.training.record import Recipe

SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "align_heads": False,  # the same heads for every number of phases; no computation depends on it
}
TRAINING = Recipe(
    "three-phase", steps=800, optimiser="adamw", learning_rate=3e-3, weight_decay=0.1, warm_up=100, schedule="cosine", clip=1.0,
    square_momentum=0.95, floor=0.1,
)  # fmt: skip
FAMILY = (
    *(f"three-phase-n{phases}" for phases in (1, 2, 3, 4, 6, 8, 12)),
    *(f"three-phase-{control}" for control in ("rope-only", "rope-only-scaled", "no-horn", "no-rotation", "frozen-theta")),
    "three-phase-no-theta-decay",
)
"""Models of one size that are compared with one another: numbers of phases, then controls."""


@dataclass(frozen=True)
class TextRecipe:
    """What a model is trained on.

    Attributes:
        corpora: as `lens.corpus` knows them.
        vocabulary: tokens.
        length: tokens that it reads at once.
        windows: of each step.
    """

    corpora: tuple[str, ...] = ("wikipedia", "docstrings")
    vocabulary: int = 1024
    length: int = 128
    windows: int = 16


@dataclass(frozen=True)
class PhaseRecipe:
    """A Three-Phase model and its training.

    Attributes:
        name, title: of the model, short and in words.
        model: fields of `ThreePhaseConfig`.
        training: its seed is replaced by whoever trains.
        text: what it is trained on.
    """

    name: str
    title: str
    model: Mapping[str, Any]
    training: Recipe
    text: TextRecipe = field(default_factory=TextRecipe)

    def config(self) -> ThreePhaseConfig:
        """Settings of the model."""
        return ThreePhaseConfig(
            vocab_size=self.text.vocabulary,
            max_position_embeddings=self.text.length,
            bos_token_id=0,
            eos_token_id=0,
            **self.model,
        )

    def shortened(self, steps: int) -> PhaseRecipe:
        """With another number of steps; of a short training at most a tenth is warm-up."""
        training = replace(self.training, steps=steps, warm_up=min(self.training.warm_up, steps // 10))
        return replace(self, training=training)


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package: the family first, then what is trained beside it."""
    found = {path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml")}
    return (*FAMILY, *sorted(found - set(FAMILY)))


def phase_recipe(source: str | Path) -> PhaseRecipe:
    """Read a recipe.

    Args:
        source: a name, see `recipe_names`, or a `.toml` file of your own.

    Raises:
        InputError: no such recipe, or a file that is none.
    """
    name = str(source)
    if name in recipe_names():
        return _recipe(name, (_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
        raise InputError(
            f"No recipe {name!r}", "a known name or a .toml file", near[0] if near else "lens train --list, which shows them"
        )
    return _recipe(path.stem, path.read_text(encoding="utf-8"))


def _folder() -> Any:
    return files("lens.training") / "recipes"


def _recipe(name: str, content: str) -> PhaseRecipe:
    try:
        told = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {name} is no TOML ({error})", "tables of names and values", "a corrected file") from error
    _require_known(name, "tables", told, {"title", "model", "training", "text"})
    tables = {table: told.get(table, {}) for table in ("model", "training", "text")}
    if not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"The recipe {name} gives a value where a table belongs", "[model], [training], [text]", "[model]")
    own = {"vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id"}  # which the text decides
    _require_known(name, "fields of the model", tables["model"], set(ThreePhaseConfig().to_dict()) - own)
    _require_known(name, "fields of the training", tables["training"], _names(Recipe) - {"name", "seed"})
    _require_known(name, "fields of the text", tables["text"], _names(TextRecipe))
    try:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in tables["text"].items()
        }
        text = TextRecipe(**values)
        training = replace(TRAINING, **{**tables["training"], "name": name})
        recipe = PhaseRecipe(name, str(told.get("title", name)), {**SHAPE, **tables["model"]}, training, text)
        recipe.config()
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The recipe {name} holds a value of another kind ({reason})", "the kind of its field", "3, not '3'"
        ) from error
    return recipe


def _names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _require_known(name: str, what: str, found: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(found) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        needed = f"some of its {what}" if len(known) > 12 else ", ".join(sorted(known))
        raise InputError(f"The recipe {name} has {unknown[0]}", needed, near[0] if near else "leaving it out")
