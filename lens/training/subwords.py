"""Text as subwords, for small models that are trained from nothing: a byte-pair vocabulary, windows, held-out documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor, nn

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_folder
from lens.corpora import Corpus, Document, Part

END = "<|endoftext|>"  # behind every document; token 0
_FORMAT = 1  # raised whenever texts become tokens in another way


@dataclass(frozen=True)
class SubwordText:
    """Corpora as tokens of a vocabulary that was made from their train parts.

    Attributes:
        corpora: the texts.
        tokenizer: a transformers tokenizer, to be saved beside a model.
        train: the train documents of all corpora in the order of their hashes, `END` behind each.
        digest: hexadecimal SHA-256 of the tokenizer.
    """

    corpora: tuple[Corpus, ...]
    tokenizer: Any
    train: UInt16[np.ndarray, " token"]
    digest: str

    def draw(self, count: int, length: int, random: np.random.Generator) -> Int[Tensor, "window length"]:
        """Windows of the train text, every place as likely as any other.

        Raises:
            InputError: less text than one window.
        """
        if len(self.train) < length:
            found = f"The train text has {len(self.train)} tokens"
            raise InputError(found, f"{length}, the length of a window and one", "a longer corpus")
        starts = random.integers(0, len(self.train) - length + 1, count)
        return torch.from_numpy(self.train[starts[:, None] + np.arange(length)].astype(np.int64))

    def held_out(self, part: Part, corpus: Corpus, length: int, documents: int, windows: int) -> HeldOut:
        """Windows from the heads of documents that were not trained on; shorter documents are left out.

        Args:
            part: `validation` or `test`.
            corpus: one of `corpora`.
            length: tokens of a window; one more is drawn, to be foretold.
            documents: the first so many, in the order of their hashes.
            windows: of each document at most, one behind the other.

        Raises:
            InputError: no document is as long.
        """
        found: list[np.ndarray] = []
        owners: list[int] = []
        count, size, tokens = 0, 0, 0
        for text, ids in self._encoded(corpus.part(part)):
            fitting = min(windows, (len(ids) - 1) // length)
            if not fitting:
                continue
            found += [np.asarray(ids[start * length : (start + 1) * length + 1]) for start in range(fitting)]
            owners += [count] * fitting
            count, size, tokens = count + 1, size + len(text.encode()), tokens + len(ids)
            if count == documents:
                break
        if not found:
            raise InputError(f"No {part} document of {corpus.name} has {length + 1} tokens", "one at least", "a longer corpus")
        return HeldOut(torch.from_numpy(np.stack(found)), tuple(owners), size / tokens)

    def _encoded(self, documents: Sequence[Document]) -> Iterator[tuple[str, list[int]]]:
        for document in documents:
            yield document.text, self.tokenizer(document.text)["input_ids"]


@dataclass(frozen=True)
class HeldOut:
    """Windows of held-out documents.

    Attributes:
        windows: token ids, each window with one token more than a model reads at once.
        document: that each window is of, counted from 0.
        bytes_per_token: over all of these documents.
    """

    windows: Int[Tensor, "window length"]
    document: tuple[int, ...]
    bytes_per_token: float

    def by_document(self, losses: Float[Tensor, "window position"]) -> list[float]:
        """Mean loss of each document."""
        owners = torch.tensor(self.document)
        return [losses[owners == which].mean().item() for which in range(owners[-1] + 1)]


class SubwordLoss:
    """The loss of a training step on text; its number draws the windows, so that two models with one seed see the same.

    On a CUDA device the model computes in bfloat16 wherever that is safe (autocast), on a CPU in float32.

    Args:
        model: gives `logits` for `input_ids`.
        text: what windows are drawn from.
        length: tokens that the model reads at once.
        windows: of each step.
        seed: with the step's number it draws them.
    """

    def __init__(self, model: nn.Module, text: SubwordText, *, length: int, windows: int, seed: int):
        self.model, self.text, self.length, self.windows, self.seed = model, text, length, windows, seed

    def __call__(self, step: int) -> Mapping[str, Tensor]:
        drawn = self.text.draw(self.windows, self.length + 1, np.random.default_rng([self.seed, step]))
        return {"text": window_losses(self.model, drawn).mean()}


def window_losses(model: nn.Module, windows: Int[Tensor, "window length"]) -> Float[Tensor, "window position"]:
    """−ln of the probability of every token of a window but the first, in nats, on the model's device."""
    device = next(model.parameters()).device
    ids = windows.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def subword_text(corpora: Sequence[Corpus], vocabulary: int) -> SubwordText:
    """Make a vocabulary from the train parts of corpora, and tokens of them; once, then both are kept in the cache.

    Args:
        corpora: each document's hash says which part it is of.
        vocabulary: tokens, the 256 bytes and `END` among them.

    Raises:
        InputError: too small a vocabulary, no train document, or two corpora of one name.
    """
    from safetensors.numpy import load_file

    if not 257 < vocabulary <= 2**16:
        raise InputError(f"A vocabulary of {vocabulary} tokens", "258 to 65536", "1024")
    names = [corpus.name for corpus in corpora]
    if len(set(names)) < len(names):
        raise InputError(
            f"The corpora are called {', '.join(names)}", "a name for each, which tells losses apart", "renaming one"
        )
    documents = sorted((d for corpus in corpora for d in corpus.part("train")), key=lambda d: d.digest)
    if not documents:
        raise InputError("No document is in the train part", "one at least", "a longer corpus")
    key = hashlib.sha256(json.dumps([_FORMAT, vocabulary, [d.digest for d in documents]]).encode()).hexdigest()[:16]
    folder = cache_folder() / "subwords" / key
    with cache_lock(f"subwords-{key}"):
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                _write(temporary, documents, vocabulary)
    described = (folder / "tokenizer.json").read_bytes()
    stream = load_file(folder / "train.safetensors")["train"]
    return SubwordText(tuple(corpora), _wrapped(described.decode()), stream, hashlib.sha256(described).hexdigest())


def _write(folder: Path, documents: Sequence[Document], vocabulary: int) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Sorted: the order of the alphabet decides the ids of the bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        found = f"These texts make {tokenizer.get_vocab_size()} tokens"
        raise InputError(found, f"a vocabulary of {vocabulary}", "more text, or a smaller vocabulary")
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    stream = np.concatenate([np.array([*encoding.ids, end], np.uint16) for encoding in encoded])
    save_file({"train": stream}, folder / "train.safetensors")


def _wrapped(described: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(described), eos_token=END)
