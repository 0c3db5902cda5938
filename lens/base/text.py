"""Token text that is safe to show: visible, escaped, never interpreted.

Tokens are data. A token can hold markup, a spreadsheet formula, a control character or half a
UTF-8 sequence; each target (a person's eye, HTML, plotly labels, CSV) needs its own treatment, and
these functions are the only ones that give it.
"""

from __future__ import annotations

import html
import unicodedata

_NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x00": "␀", "\x7f": "␡", "\u00a0": "⍽", "\u200b": "<ZWSP>", "\ufeff": "<BOM>"}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


def visible(piece: str, width: int | None = None) -> str:
    """Make every character of a token visible.

    Spaces at either end show as a middle dot, line breaks and tabs as arrows, other control and
    format characters (which could reorder or hide the text around them) as their code point.

    Args:
        piece: the token's text.
        width: longest result in characters; longer ones end in an ellipsis. None keeps all.
    """
    core = piece.strip(" ")
    left = len(piece) - len(piece.lstrip(" ")) if core else len(piece)
    right = len(piece) - len(piece.rstrip(" ")) if core else 0
    shown = "·" * left + "".join(_visible_character(c) for c in core) + "·" * right
    if width is not None and len(shown) > width:
        shown = shown[: max(width - 1, 0)] + "…"
    return shown


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character != " " and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"):
        return f"<U+{ord(character):04X}>"
    return character


def html_safe(text: str) -> str:
    """Escape text for HTML content and quoted attributes."""
    return html.escape(text, quote=True)


def plotly_safe(text: str) -> str:
    """Escape text for plotly labels, which interpret a subset of HTML and of LaTeX between dollars."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def csv_safe(text: str) -> str:
    """Guard a CSV field against being read as a formula by a spreadsheet."""
    return "'" + text if text.lstrip("\n").startswith(_FORMULA_STARTS) else text


def storable(text: str) -> str:
    """Replace what netCDF strings cannot hold: NUL ends a string there, lone surrogates are no UTF-8."""
    return text.replace("\x00", "␀").encode("utf-8", "replace").decode("utf-8")
