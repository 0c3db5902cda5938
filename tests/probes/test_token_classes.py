"""Kinds of tokens: words are put together before they are named."""

from __future__ import annotations

from lens.probes.token_classes import ARTICLES, CLASSES, STOP_WORDS, are_articles, token_classes


def named(*tokens: str) -> list[str]:
    return [CLASSES[number] for number in token_classes(tokens)]


def test_a_sentence_in_pieces():
    tokens = ("The", " light", "house", " keeper", "'s", " lamp", ",", " which", " was", " new", ".", "\n")
    assert named(*tokens) == [
        "stop word", "content word", "word continuation", "content word", "stop word", "content word", "punctuation",
        "stop word", "stop word", "content word", "punctuation", "punctuation",
    ]  # fmt: skip


def test_a_stop_word_is_known_by_the_whole_word():
    assert named(" the") == ["stop word"]
    assert named(" the", "sis") == ["content word", "word continuation"]
    assert named(" th", "e", " sea") == ["stop word", "stop word", "content word"]
    assert named(" don", "'t") == ["stop word", "stop word"]


def test_digits_are_a_word_of_their_own():
    assert named(" in", " ", "1", "9", "8", "4", "th") == [
        "stop word", "punctuation", "content word", "word continuation", "word continuation", "word continuation", "content word",
    ]  # fmt: skip


def test_articles_are_stop_words_and_only_whole_ones_count():
    assert ARTICLES < STOP_WORDS
    assert are_articles((" a", " the", " an", "vil", ".", " The")).tolist() == [True, True, False, False, False, True]


def test_nothing_is_nothing():
    assert token_classes(()).tolist() == []
    assert named("", "…", "日本") == ["punctuation", "punctuation", "content word"]
