"""Every measure of every head of SmolLM2 at long contexts, and how entropies and ranks grow with the length of the text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import corpus
from lens.models.heads import head_states
from lens.models.load import load
from lens.models.model import Model
from lens.probes.attention_battery import attention_battery
from lens.probes.attention_growth import attention_growth
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting

_SHORTEST = 32


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """One battery for each length and text, then the growth of the longest text."""
    batteries: dict[str, Measure] = {
        f"battery-{tokens}-text-{number}": partial(_battery, tokens=tokens, number=number)
        for tokens in budget["lengths"]
        for number in range(budget["texts"])
    }
    return {**batteries, "growth": _growth}


ATTENTION_SPECTRA = NamedRun(
    "attention-spectra",
    "Attention of SmolLM2 at long contexts: 28 measures of every head, and their growth",
    {
        "cpu": {"model": "smollm2-135m", "lengths": [256, 512], "texts": 2},
        "cuda": {"model": "smollm2-135m", "lengths": [1024, 2048], "texts": 2},
    },
    pieces,
)


def _model(setting: Setting) -> Model:
    return load(setting.budget["model"], device=setting.device)


def _text(model: Model, tokens: int, number: int) -> list[int]:
    """First tokens of a test article that is long enough."""
    articles = (model.encode_bare(document.text) for document in corpus("wikipedia").part("test"))
    enough = [ids[:tokens] for ids in articles if len(ids) >= tokens]
    if number >= len(enough):
        found = f"{len(enough)} test articles of {tokens} tokens or more"
        raise InputError(found, f"{number + 1}", "a smaller number of texts")
    return enough[number]


def _battery(setting: Setting, *, tokens: int, number: int) -> Measured:
    model = _model(setting)
    ids = _text(model, tokens, number)
    return Measured(attention_battery(head_states(model, ids, check=setting.check), check=setting.check), tokens)


def _growth(setting: Setting) -> Measured:
    model, longest = _model(setting), max(setting.budget["lengths"])
    lengths = [tokens for tokens in (2**power for power in range(32)) if _SHORTEST <= tokens <= longest]
    found: xr.Dataset = attention_growth(model, torch.tensor(_text(model, longest, 0)), lengths, check=setting.check)
    return Measured(found, sum(lengths))
