"""Patterns mean the same on every Python 3.11 that a node runs on."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import cdr
import policy
import sipproxy

_POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+|\(\?>")


def patterns() -> dict[str, str]:
    """Each compiled pattern of the modules, by where it stands."""
    found = dict[str, str]()
    for package in (sipproxy, policy, cdr):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, re.Pattern):
                    text = value.pattern
                    found[f"{module.name}.{name}"] = text.decode("latin-1") if isinstance(text, bytes) else text
    return found


def without_characters(pattern: str) -> str:
    """A pattern with a letter for each escaped character and each class."""
    return re.sub(r"\[\^?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern))


def test_no_group_of_a_pattern_is_repeated_possessively() -> None:
    """Python before 3.11.5 goes on behind where the group's last turn failed (gh-106052): `engine.kinds` never found a To tag
    or a branch there, and a URI with a bare "%" was one."""
    found = patterns()
    assert len(found) > 50
    assert [where for where, pattern in found.items() if _POSSESSIVE_GROUP.search(without_characters(pattern))] == []


@pytest.mark.parametrize("pattern", [r"(?:a|b)*+", r"(a)++c", r"(?:ab)?+", r"(?:a[)]){1,2}+", r"(?>a)"])
def test_a_possessive_group_is_found(pattern: str) -> None:
    assert _POSSESSIVE_GROUP.search(without_characters(pattern))


@pytest.mark.parametrize("pattern", [r"[()*+]", r"[a)]*+", r"a++", r"\(\)*+", r"(a)+", r"(a)[b]*+"])
def test_what_is_no_possessive_group_is_not(pattern: str) -> None:
    assert not _POSSESSIVE_GROUP.search(without_characters(pattern))
