"""Text as bytes, for small models that are trained from nothing: windows to train on, and the loss of each byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens.base.errors import InputError
from lens.corpora import Document

BEGIN = 256  # the token before every window; tokens 0 to 255 are the bytes
VOCABULARY = 257


def token_losses(model: nn.Module, targets: Int[Tensor, "window length"]) -> Float[Tensor, "window length"]:
    """−ln of the probability that a model gives each byte after `BEGIN` and the bytes before it, in nats."""
    begin = torch.full((len(targets), 1), BEGIN, dtype=targets.dtype, device=targets.device)
    logits = model(input_ids=torch.cat([begin, targets[:, :-1]], dim=1), use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


class ByteText:
    """The bytes of documents, those that are long enough.

    Args:
        documents: in any order.
        length: bytes of the windows that will be drawn; shorter documents are left out.

    Raises:
        InputError: no document is as long.
    """

    def __init__(self, documents: Sequence[Document], length: int):
        known = [np.frombuffer(document.text.encode(), np.uint8).astype(np.int64) for document in documents]
        self.texts = tuple(text for text in known if len(text) >= length)
        if not self.texts:
            found = f"The longest of {len(known)} documents has {max(map(len, known), default=0)} bytes"
            raise InputError(found, f"{length}, the length of a window", "a longer corpus")
        self.length = length
        self._places = np.cumsum([len(text) - length + 1 for text in self.texts])

    def draw(self, count: int, random: np.random.Generator) -> Int[Tensor, "window length"]:
        """Windows from anywhere in the documents, every place as likely as any other."""
        windows = []
        for place in random.integers(0, self._places[-1], count):
            which = int(np.searchsorted(self._places, place, side="right"))
            start = int(place - (self._places[which - 1] if which else 0))
            windows.append(self.texts[which][start : start + self.length])
        return torch.from_numpy(np.stack(windows))

    def heads(self) -> Int[Tensor, "document length"]:
        """The first window of every document."""
        return torch.from_numpy(np.stack([text[: self.length] for text in self.texts]))


class ByteLoss:
    """The loss of a training step on text; its number draws the windows, so that two models with one seed see the same.

    Args:
        model: gives `logits` for `input_ids`.
        text: what windows are drawn from.
        windows: of each step.
        seed: with the step's number it draws them.
    """

    def __init__(self, model: nn.Module, text: ByteText, *, windows: int, seed: int):
        self.model, self.text, self.windows, self.seed = model, text, windows, seed

    def __call__(self, step: int) -> Mapping[str, Tensor]:
        targets = self.text.draw(self.windows, np.random.default_rng([self.seed, step]))
        return {"text": token_losses(self.model, targets.to(next(self.model.parameters()).device)).mean()}
