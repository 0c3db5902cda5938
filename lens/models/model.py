"""A causal language model that can be run and read."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens.base.errors import AnatomyError, InputError, LensError, UnsupportedModelError
from lens.base.provenance import library_versions
from lens.models.anatomy import Anatomy, find_anatomy
from lens.models.locks import ModelLock, lock_of
from lens.models.offload import stored_weight
from lens.models.readout import Readout, ReadoutCheck, build_readout, check_readout
from lens.models.run import Run, forward, require_memory
from lens.models.tokens import Prompt, encode, pieces


class Model:
    """A Hugging Face causal language model with its tokenizer, proved readable.

    Built by `lens.load`. Opening runs the model on a few tokens and refuses unless its weights are
    finite, later tokens leave earlier logits alone, and the last residual state read through the
    final norm and head gives the model's own logits.

    Args:
        module: a transformers causal language model; it is put in evaluation mode for every run and
            given back as it was.
        tokenizer: its tokenizer, or None to work with token ids only.
        name: how it is called in titles and provenance.
        revision: the hub revision or content hash it came from, "" where there is none.
        anatomy: dotted paths that override the search for its parts, see `find_anatomy`.

    Raises:
        UnsupportedModelError, AnatomyError: with what was found and what was needed.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        *,
        name: str = "",
        revision: str = "",
        anatomy: Mapping[str, Any] | None = None,
    ):
        self.module: Any = module
        self.tokenizer = tokenizer
        self.name = name or type(module).__name__
        self.revision = revision
        self.lock: ModelLock = lock_of(module)
        self._fingerprint: tuple[Any, str] | None = None
        _require_causal_language_model(module)
        with self.lock.hold(f"opening {self.name}"), evaluation_mode(module):
            _require_finite_weights(module)
            probe = self._probe_ids()
            with _explained(module):
                self.anatomy: Anatomy = find_anatomy(module, probe, anatomy)
                self.readout: Readout = build_readout(module, self.anatomy, probe)
                _require_causality(module, probe)
                residual, logits, _ = forward(self.module, self.anatomy, probe[0].tolist())
                self.d_model: int = residual.shape[-1]
                self.readout_check: ReadoutCheck = self._prove(residual[-1], logits)

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers, d={self.d_model}, {self.vocab_size} tokens"
        return f"Model({self.name!r}, {shape}, {self.dtype_name} on {self.device})"

    # -- what it is -------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Number of blocks; the residual stream has one state more."""
        return len(self.anatomy.blocks)

    @property
    def vocab_size(self) -> int:
        """Number of logits, which can exceed the tokenizer's entries."""
        return self.readout.vocab_size

    @property
    def context(self) -> int | None:
        """Longest input in tokens, or None where positions are not bounded."""
        config = self.module.config.get_text_config()
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
        return next((getattr(config, name) for name in names if getattr(config, name, None)), None)

    @property
    def device(self) -> torch.device:
        return self.anatomy.embedding.weight.device

    @property
    def dtype_name(self) -> str:
        return str(self.anatomy.head.weight.dtype).removeprefix("torch.")

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Text of every token id, `vocab_size` entries."""
        return tuple(pieces(self.tokenizer, range(self.vocab_size)))

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over the configuration and names, shapes and bytes of all weights and buffers, as they are now.

        Of the configuration, where it was read from and by which release is left out: the same model elsewhere is the
        same model. Rotary frequencies are buffers that no checkpoint holds. Computed anew only when something was
        written to since, or always where weights lie on disk (`device_map`), because that cannot be told of them.
        Every edit gives another one, because the map that stands in for a block cannot be told from all others.
        """
        state = dict(self.module.named_buffers()) | self.module.state_dict()
        settings = json.dumps(_lasting(self.module.config.to_dict()), sort_keys=True, default=str)
        versions = (settings, *((name, weight.data_ptr(), weight._version) for name, weight in state.items()))
        offloaded = any(weight.is_meta for weight in state.values())
        if offloaded or self._fingerprint is None or self._fingerprint[0] != versions:
            digest = hashlib.sha256(settings.encode())
            for name, weight in state.items():
                digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
                values: Any = stored_weight(self.module, name).to(weight.dtype) if weight.is_meta else weight.detach()
                digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
            self._fingerprint = versions, digest.hexdigest()
        edits = "".join(self.lock.edits)
        return hashlib.sha256(f"{self._fingerprint[1]}{edits}".encode()).hexdigest() if edits else self._fingerprint[1]

    @property
    def edits(self) -> tuple[str, ...]:
        """What is edited in the live module, in words, for the thread that edits it; empty for the model as it was opened."""
        return tuple(self.lock.edits.values())

    def provenance(self) -> dict[str, str]:
        """Attributes that say where a result came from: model, revision, dtype, device, live edits, versions."""
        return {
            "model": self.name,
            "model_revision": self.revision,
            "dtype": self.dtype_name,
            "device": self.device.type,
            **({"edits": "; ".join(self.edits)} if self.edits else {}),
            **library_versions(),
        }

    # -- what it does -----------------------------------------------------------------------------

    def encode(self, text: str | Sequence[Any] | Tensor, prompt: Prompt = "plain") -> list[int]:
        """Token ids of a text, or given ids checked against the vocabulary and the context.

        Raises:
            InputError: empty, out of range, longer than the context, or no tokenizer for a text.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise InputError(
                    f"{self.name} has no tokenizer", "one to read a text", "giving token ids, or a tokenizer to lens.load"
                )
            ids = encode(self.tokenizer, text, prompt)
        else:
            ids = _whole_numbers(text)
        self._require_valid(ids)
        return ids

    def encode_bare(self, text: str) -> list[int]:
        """Token ids of a text of any length without special tokens: of a single word, or of a document to be cut."""
        if self.tokenizer is None:
            raise InputError(f"{self.name} has no tokenizer", "one to read a text", "a token id")
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def run(
        self,
        text: str | Sequence[Any] | Tensor,
        *,
        attention: bool = False,
        logits: bool = True,
        prompt: Prompt = "plain",
        check: Callable[[], None] | None = None,
    ) -> Run:
        """One forward pass, without gradients and without a cache.

        Args:
            text: a text, tokenised as the model's tokenizer does, or token ids used as they are.
            attention: also keep the attention patterns; this pass then runs the eager kernel, whose
                logits can differ from the default kernel's in the last digits.
            logits: False keeps only the residual stream.
            prompt: `plain`, `bos` or `chat`, see `lens.models.tokens.encode`.
            check: called before every block; raising from it (as `CancelToken.check` does) stops.

        Memory: `(layers + 1) · positions · d` values, the logits (refused above 1 GiB) and, if asked
        for, `layers · heads · positions²` weights (the same).

        Raises:
            InputError: an unusable text or id. MemoryEstimateError: a result above its bound.
        """
        ids = self.encode(text, prompt)
        itemsize = self.anatomy.head.weight.element_size()
        if logits:
            require_memory("The logits", len(ids) * self.vocab_size * itemsize, "logits=False, or a shorter text")
        if attention:
            heads = getattr(self.module.config.get_text_config(), "num_attention_heads", 1)
            require_memory("The attention patterns", self.n_layers * heads * len(ids) ** 2 * itemsize, "a shorter text")
        with self.lock.hold(f"running {self.name}"), evaluation_mode(self.module):
            start = time.perf_counter()
            residual, out, patterns = forward(self.module, self.anatomy, ids, logits=logits, attention=attention, check=check)
            seconds = time.perf_counter() - start
        return Run(
            model=self,
            text=text if isinstance(text, str) else None,
            token_ids=torch.tensor(ids),
            tokens=tuple(pieces(self.tokenizer, ids)),
            residual=residual,
            logits=out,
            attention=patterns,
            seconds=seconds,
        )

    def unembed(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """Logits `[..., vocab]` of residual states `[..., d]`, through the real final norm and head."""
        with torch.no_grad(), self.lock.hold(f"reading {self.name}"):
            return self.readout(states)

    def checks(self) -> dict[str, str]:
        """What the self-checks found, in words, as `lens check` prints them.

        Read-out, causality and weights were proved when the model was opened; hooks and attention are tried now.
        """
        probe = self._probe_ids()
        with self.lock.hold(f"checking {self.name}"), evaluation_mode(self.module), torch.no_grad():
            bare = self.module(input_ids=probe[:1], use_cache=False).logits[0]
        run = self.run(probe[0].tolist())
        assert run.logits is not None  # asked for
        check = self.readout_check
        transform = self.readout.transform
        hooked = "bit-identical" if torch.equal(bare, run.logits) else f"differ by {(bare - run.logits).abs().max().item():.2g}"
        return {
            "model": repr(self),
            "parts": ", ".join(f"{part} {path}" for part, path in self.anatomy.paths.items()),
            "read-out": f"off by {check.relative_error:.2g} of the largest logit (at most {check.tolerance:.2g})",
            "logits": "as the head gives them" if transform.kind == "none" else f"{transform.kind} {transform.value:g}",
            "hooks": f"logits with and without are {hooked}",
            "causality": "later tokens leave earlier logits alone",
            "weights": "all finite",
            "attention": self._check_attention(probe[0].tolist()),
        }

    def _check_attention(self, ids: list[int]) -> str:
        try:
            patterns = self.run(ids, attention=True).attention
        except UnsupportedModelError as error:
            return f"none: {error.found[0].lower()}{error.found[1:]}"
        assert patterns is not None  # asked for
        off = (patterns.float().sum(-1) - 1).abs().max().item()
        if off > 2**-7:
            return f"rows leave up to {off:.2g} to a sink outside the text, eager kernel"
        return f"rows sum to 1 within {off:.2g}, eager kernel"

    # -- proofs -----------------------------------------------------------------------------------

    def _probe_ids(self) -> Tensor:
        """Two short prompts, equal but for their last token."""
        size = self.module.get_input_embeddings().weight.shape[0]
        row = [(7 * i + 1) % size for i in range(8)]
        other = [*row[:-1], (row[-1] + 1) % size]
        return torch.tensor([row, other], device=self.module.get_input_embeddings().weight.device)

    def _prove(self, last_state: Tensor, logits: Tensor | None) -> ReadoutCheck:
        assert logits is not None  # asked for
        with torch.no_grad():
            found = check_readout(self.readout, last_state, logits)
        if not found.passed:
            raise AnatomyError(
                f"Reading the last residual of {self.name} differs from its logits by {found.relative_error:.2g} of the largest",
                f"at most {found.tolerance:.2g}",
                'naming the parts: lens.load(..., anatomy={"blocks": …, "tail": […], "head": …})',
            )
        return found

    def _require_valid(self, ids: list[int]) -> None:
        if not ids:
            raise InputError("No token ids were given", "at least one", "a list of ids, or a text")
        wrong = next((i for i in ids if not 0 <= i < self.anatomy.embedding.weight.shape[0]), None)
        if wrong is not None:
            last = self.anatomy.embedding.weight.shape[0] - 1
            raise InputError(f"Token id {wrong} is not in the vocabulary", f"ids from 0 to {last}", "this model's own tokenizer")
        if self.context is not None and len(ids) > self.context:
            raise InputError(
                f"The input has {len(ids)} tokens", f"at most {self.context}, the context of {self.name}", "a shorter text"
            )


def _lasting(settings: Any) -> Any:
    """A configuration without what differs between two openings of one model."""
    if not isinstance(settings, dict):
        return settings
    return {
        str(name): _lasting(value) for name, value in settings.items() if name not in ("_name_or_path", "transformers_version")
    }


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout and its like off, and afterwards back on exactly where it was on."""
    training = [part for part in module.modules() if part.training] if module.training else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _whole_numbers(ids: Any) -> list[int]:
    """Token ids from any one-dimensional sequence of whole numbers, tensors included."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else None
    if listed is None or not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
        raise InputError(
            f"The input is {type(ids).__name__} {ids!r:.60}", "a text, or a flat list of token ids", "model.run([1, 2, 3])"
        )
    return listed


@contextmanager
def _explained(module: nn.Module) -> Iterator[None]:
    """Turn a crash inside a foreign model into one line; our own refusals pass."""
    try:
        yield
    except LensError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise UnsupportedModelError(
            f"{type(module).__name__} cannot be run on eight token ids ({type(error).__name__}: {line})",
            "a causal language model that takes input_ids alone",
            "another family, or lens.load(..., anatomy={…}) if its parts were mistaken",
        ) from error


def _require_causal_language_model(module: nn.Module) -> None:
    config: Any = getattr(module, "config", None)
    if config is None or not hasattr(module, "get_input_embeddings"):
        raise UnsupportedModelError(
            f"{type(module).__name__} is not a transformers model",
            "a causal language model of transformers",
            "AutoModelForCausalLM",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(module).__name__} is an encoder-decoder", "a decoder-only language model", "another model"
        )


def _require_finite_weights(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        # A sum is not finite if any entry is not; only then is every entry looked at, because a sum can also overflow.
        if weight.device.type != "meta" and not torch.isfinite(weight.detach().sum()) and not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise UnsupportedModelError(
                f"The weight {name} has {bad} values that are not finite", "finite weights", "fetching the model again"
            )


def _require_causality(module: nn.Module, probe: Tensor) -> None:
    with torch.no_grad():
        first, second = module(input_ids=probe, use_cache=False).logits.float()
    moved = (first[:-1] - second[:-1]).abs().max().item()
    if moved > 1e-3 * first.abs().max().item():
        raise UnsupportedModelError(
            f"In {type(module).__name__} a later token changes earlier logits by {moved:.2g}",
            "a causal model, whose logits depend on earlier tokens only",
            "a decoder; encoders such as BERT cannot be read as next-token predictors",
        )
