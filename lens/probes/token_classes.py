"""What kind of token a token is: punctuation, stop word, content word, or the rest of a word that takes several tokens.

The lists are our own, written for English: closed-class words, which say how others hang together. Published lists differ in
size and so do results by class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

CLASSES = ("punctuation", "stop word", "content word", "word continuation")
ARTICLES = frozenset(("a", "an", "the"))
_DETERMINERS = "this that these those each every either neither some any no another such all both few many much more most"
_PRONOUNS = (
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours ourselves "
    "they them their theirs themselves who whom whose which what one ones there here"
)
_PREPOSITIONS = (
    "of in to for with on at from by about as into through after over between out against during without before under around "
    "among within along across behind beyond near off up down above below since until upon toward towards per via"
)
_CONJUNCTIONS = "and or but nor so yet if then than because while when where why how though although whether unless"
_VERBS = (
    "be am is are was were been being have has had having do does did doing done can could may might must shall should will would"
)
_ADVERBS = "not only also just too very again ever never still even own same other others now s t d ll m re ve don doesn didn isn"
STOP_WORDS = ARTICLES | frozenset(" ".join((_DETERMINERS, _PRONOUNS, _PREPOSITIONS, _CONJUNCTIONS, _VERBS, _ADVERBS)).split())


def token_classes(tokens: Sequence[str]) -> Int[np.ndarray, " token"]:
    """Number in `CLASSES` of each token of one text.

    A token without letter or digit is punctuation, white space included. The others are put together to words: one begins with a
    token that begins with anything but a letter or digit, as a space or an apostrophe, and after a change between letters and
    digits. All tokens of a stop word are stop words; of any other word the first is a content word, the others its continuation.

    Args:
        tokens: their texts in order, leading spaces included, as `Run.tokens`.
    """
    found = np.zeros(len(tokens), dtype=np.int64)
    for start, stop in _words(tokens):
        if _bare(tokens[start:stop]) in STOP_WORDS:
            found[start:stop] = CLASSES.index("stop word")
        else:
            found[start] = CLASSES.index("content word")
            found[start + 1 : stop] = CLASSES.index("word continuation")
    return found


def are_articles(tokens: Sequence[str]) -> Bool[np.ndarray, " token"]:
    """Which tokens are an article, or a piece of one."""
    found = np.zeros(len(tokens), dtype=bool)
    for start, stop in _words(tokens):
        found[start:stop] = _bare(tokens[start:stop]) in ARTICLES
    return found


def _words(tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First token and the one after the last of every word."""
    start = None
    for place, token in enumerate(tokens):
        worded = any(character.isalnum() for character in token)
        if start is not None and (not worded or _breaks(tokens[place - 1], token)):
            yield start, place
            start = None
        if start is None and worded:
            start = place
    if start is not None:
        yield start, len(tokens)


def _breaks(before: str, token: str) -> bool:
    return not token[0].isalnum() or before[-1].isdigit() != token[0].isdigit()


def _bare(word: Sequence[str]) -> str:
    return "".join(character for character in "".join(word).lower() if character.isalnum())
