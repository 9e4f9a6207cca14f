"""Whether the SIP stack and the engine run as compiled modules (tools/compile_core.py) or as plain Python, slower and else the
same.

Compiled modules stand beside their sources and are taken instead of them. A stamp says which sources they were made of: with
others the node would run the engine of one version and the rest of another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sipproxy.sip import message

__all__ = ["STAMP", "digest", "fault", "kind", "outdated"]

ROOT = Path(__file__).parents[1]
STAMP = Path(__file__).with_name("compiled.stamp")
"""A line for each module that was compiled: the digest of its source, and its path below the folder of the packages."""


def kind() -> str:
    """`compiled` or `plain`."""
    return "plain" if message.__file__.endswith(".py") else "compiled"


def digest(source: Path) -> str:
    """What tells one version of a source from another."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def outdated(stamp: Path = STAMP, root: Path = ROOT) -> list[str]:
    """The sources that are not those which were compiled; [] also where nothing is compiled.

    Raises OSError for a stamp that cannot be read.
    """
    if not stamp.exists():
        return ["no " + stamp.name] if kind() == "compiled" else []
    rows = [line.split(" ", 1) for line in stamp.read_text().splitlines()]
    return [name for known, name in rows if not (root / name).exists() or digest(root / name) != known]


def fault() -> str:
    """Why a node must not start on what is compiled; "" where nothing speaks against it."""
    others = outdated()
    if not others:
        return ""
    return (
        f"{STAMP.parent}: the compiled modules are not of these sources ({', '.join(others[:3])}): "
        "`make compiled` makes them again, `make plain` goes without"
    )
