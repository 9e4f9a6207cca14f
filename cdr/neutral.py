r"""Texts of peers made harmless for text files, and back again.

A router's User-Agent or a dialled URI may hold anything. A spreadsheet runs a cell that begins like a formula, a terminal obeys
control characters, and a line end within a value makes two rows of one. Pure; `restore(text(value)) == value` for every value.

- Control characters, invisible and direction-changing ones, line separators and lone surrogates (Unicode categories Cc, Cf, Cs,
  Zl, Zp) become `\uXXXX` or `\UXXXXXXXX`, a backslash becomes two. Tab, CR and LF are among them.
- Where a cell could begin (at the start, and behind `,` `;` `|` `"`, in case the file is read with another separator), spaces
  and one of `= + - @`, in any width or as superscript, get an apostrophe in front, which makes them text; so does such a place
  with apostrophes of its own, which are thereby one more.
- As they are stay an E.164 number, `+` and up to 15 digits (ITU-T E.164 §6.2), which at worst is taken for a number and never
  for a formula, and a lone `-`, our word for a destination without a canonical form.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["restore", "text"]

_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u207a\u207b\u207c\u208a\u208b\u208c\u2212"
_PLAIN = re.compile(r"[A-Za-z0-9 .:;<>/_()*#!?~$%&\[\]{}^|,]*")  # most texts: nothing in them is ever changed
_HARMLESS = re.compile(r"\+[0-9]{1,15}|-")
_CELL = re.compile(rf"""(?:\A|(?<=[,;|"]))(?='*\s*[{_FORMULA}])""")
_MARKED = re.compile(rf"""(?:\A|(?<=[,;|"]))'(?='*\s*[{_FORMULA}])""")
_ESCAPED = re.compile(r"\\(?:\\|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_ESCAPES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def text(value: str) -> str:
    """`value` as it may stand in a text file."""
    if _PLAIN.fullmatch(value) or _HARMLESS.fullmatch(value):
        return value
    if not value.isprintable() or "\\" in value:  # isprintable is False for every category that is escaped, and for some more
        value = "".join(map(_escaped, value))
    return _CELL.sub("'", value)


def restore(value: str) -> str:
    """What `text` was given. Texts that it never writes come back changed as little as possible; never raises."""
    return _ESCAPED.sub(_unescaped, _MARKED.sub("", value))


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if unicodedata.category(char) not in _ESCAPES:
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2]
    if digits is None:
        return "\\"
    code = int(digits, 16)
    return chr(code) if code <= 0x10FFFF else match[0]
