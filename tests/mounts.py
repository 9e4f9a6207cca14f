"""Tests that mount file systems, each run of them in a mount namespace of its own: what is mounted ends with its processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mounted", "run_in_own_mounts", "run_inside"]

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 110.0  # below the suite's own bound for one test
INSIDE = "TESTS_IN_OWN_MOUNTS"  # in the environment of such a run


def run_in_own_mounts(cases: Path) -> None:
    """Run the tests in the file `cases`, with the right to mount; skips where the machine gives no such right."""
    run_inside(["--mount", "--propagation", "private"], cases, INSIDE)


def run_inside(namespaces: list[str], cases: Path, mark: str) -> None:
    """Run the tests in the file `cases` in new namespaces, as root there, with `mark` in their environment; skips where the
    machine gives no right to them."""
    unshare = ["unshare", *namespaces]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"needs the right to unshare {' '.join(namespaces)}")
    command = [
        *unshare,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        str(LONGEST_S),
        str(cases),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, mark: "1"}, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system of so many bytes at `place`; nothing is mounted where everybody else would see it."""
    assert INSIDE in os.environ, "run by run_in_own_mounts alone"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(place)], check=True)
