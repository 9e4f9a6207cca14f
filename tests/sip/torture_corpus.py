"""Where the message corpora are: beside the repository, or in $SIPPROXY_TORTURE."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(os.environ.get("SIPPROXY_TORTURE") or Path(__file__).resolve().parents[3] / "shared" / "torture")
MISSING = f"no message corpora in {CORPUS.name}/ beside the repository nor in $SIPPROXY_TORTURE"


def rows(part: str) -> list[dict[str, str]]:
    """The manifest's rows of one part; [] when the corpora are missing."""
    manifest = CORPUS / part / "manifest.csv"
    if not manifest.is_file():
        return []
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def data(part: str, name: str) -> bytes:
    return (CORPUS / part / name).read_bytes()


def protos_cases() -> Iterator[tuple[int, str, bytes, bytes]]:
    """(number, group, request, teardown) of every PROTOS c07-sip case."""
    spec = importlib.util.spec_from_file_location("protos_load", CORPUS / "protos_load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield from module.cases()
