"""Text to token ids, exactly as the model's own tokenizer does it, and ids back to what a person can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

from lens.base.errors import InputError

Prompt = Literal["plain", "bos", "chat"]


def encode(tokenizer: Any, text: str, prompt: Prompt = "plain") -> list[int]:
    """Token ids of a text.

    Args:
        tokenizer: a transformers tokenizer.
        text: what to encode; must give at least one token.
        prompt: `plain` is the tokenizer's own default, `bos` puts the beginning-of-sequence token in
            front where the default does not, `chat` wraps the text as a user's turn in the
            tokenizer's chat template.

    Raises:
        InputError: empty text, or a prompt form that the tokenizer has no tokens for.
    """
    if prompt not in get_args(Prompt):
        raise InputError(f"The prompt form is {prompt!r}", f"one of {', '.join(get_args(Prompt))}", "prompt='plain'")
    if not text:
        raise InputError("The text is empty", "at least one character", "typing a sentence")
    if prompt == "chat":
        return _encode_chat(tokenizer, text)
    ids = list(tokenizer(text)["input_ids"])
    if prompt == "bos":
        if tokenizer.bos_token_id is None:
            raise InputError("This tokenizer has no beginning-of-sequence token", "one to put in front", "prompt='plain'")
        if ids[:1] != [tokenizer.bos_token_id]:
            ids.insert(0, tokenizer.bos_token_id)
    if not ids:
        raise InputError(f"The text {text!r} gives no token", "at least one token", "another text")
    return ids


def _encode_chat(tokenizer: Any, text: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("This tokenizer has no chat template", "one, as chat models ship it", "prompt='plain'")
    turns = [{"role": "user", "content": text}]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def pieces(tokenizer: Any | None, ids: Sequence[int]) -> list[str]:
    """Text of each token by itself, special tokens included.

    A token of a byte-level vocabulary can be part of a character: its bytes are then spelled,
    `<0xE2>`, where plain decoding would give a replacement sign. Without a tokenizer, the ids.
    """
    if tokenizer is None:
        return [f"#{i}" for i in ids]
    raw = tokenizer.convert_ids_to_tokens(list(ids))
    special = set(tokenizer.all_special_tokens) | set(getattr(tokenizer, "get_added_vocab", dict)())
    spell = _spelling(tokenizer)
    # Vocabularies padded beyond the tokenizer's own entries give None.
    return [f"<unused {i}>" if r is None else r if r in special else spell(r) for i, r in zip(ids, raw, strict=True)]


def _spelling(tokenizer: Any) -> Callable[[str], str]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    # The decoder's own state: writing out the whole tokenizer to read it takes as long as a short forward pass.
    scheme = json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False) if decoder is not None else ""
    if "ByteLevel" in scheme:
        return _from_byte_level
    return _from_sentencepiece if "▁" in scheme else lambda raw: tokenizer.convert_tokens_to_string([raw])


def _from_sentencepiece(raw: str) -> str:
    return raw.replace("▁", " ")


def _from_byte_level(raw: str) -> str:
    table = _byte_table()
    if any(character not in table for character in raw):
        return raw
    text = bytes(table[character] for character in raw).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


@cache
def _byte_table() -> dict[str, int]:
    """The printable stand-ins that GPT-2's byte-level vocabulary uses for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
