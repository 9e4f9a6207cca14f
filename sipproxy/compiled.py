"""Whether the SIP stack and the engine run as compiled modules (tools/compile_core.py) or as plain Python, slower and else the
same.

Compiled modules stand beside their sources and are taken instead of them. A stamp says which sources they were made of: with
others the program would run the engine of one version and the rest of another. To be asked before anything that may be compiled
is imported: modules of two versions may not even import each other.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

__all__ = ["STAMP", "digest", "fault", "kind", "outdated"]

ROOT = Path(__file__).parents[1]
STAMP = Path(__file__).with_name("compiled.stamp")
"""A line for each module that was compiled: the digest of its source, and its path below the folder of the packages."""
LIBRARY = "sipproxy_core__mypyc*.so"  # what all compiled modules need
PACKAGES = ("sipproxy", "policy", "cdr")


def kind() -> str:
    """`compiled` or `plain`."""
    spec = find_spec("sipproxy.sip.message")
    return "plain" if spec is None or str(spec.origin).endswith(".py") else "compiled"


def digest(source: Path) -> str:
    """What tells one version of a source from another."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def outdated(stamp: Path = STAMP, root: Path = ROOT) -> list[str]:
    """The sources that are not those which were compiled, that lack their module, or whose module is of no known source; []
    also where nothing is compiled.

    Raises OSError for a stamp that cannot be read.
    """
    if not stamp.exists() and next(root.glob(LIBRARY), None) is None:
        return []
    rows = [line.split(" ", 1) for line in stamp.read_text().splitlines()] if stamp.exists() else []
    known = {name: made_of for made_of, name in rows}
    files = (path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*.so"))
    modules = {path.with_name(path.name.partition(".")[0] + ".py").as_posix() for path in files}
    return sorted(
        name
        for name in modules | set(known)
        if name not in known or name not in modules or not (root / name).exists() or digest(root / name) != known[name]
    )


def fault() -> str:
    """Why nothing should run on what is compiled; "" where nothing speaks against it."""
    others = outdated()
    if not others:
        return ""
    return (
        f"{STAMP.parent}: the compiled modules are not of these sources ({', '.join(others[:3])}): "
        "`make compiled` makes them again, `make plain` goes without"
    )
