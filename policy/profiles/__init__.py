"""The carrier products that ship: one TOML file each, read with `load`.

A file's keys are the fields of `policy.model.Profile`, `name` being the file's name. Left out: profiles of an operator's own.
"""

from __future__ import annotations

import tomllib
from importlib import resources

import msgspec

from policy.model import Profile

__all__ = ["load"]


def load() -> dict[str, Profile]:
    """All shipped profiles by name. Raises msgspec.ValidationError when a file does not fit `Profile`."""
    found = {}
    for entry in resources.files(__name__).iterdir():
        name, dot, ending = entry.name.rpartition(".")
        if dot and ending == "toml":
            content = tomllib.loads(entry.read_text(encoding="utf-8"))
            found[name] = msgspec.convert({**content, "name": name}, Profile)
    return dict(sorted(found.items()))
