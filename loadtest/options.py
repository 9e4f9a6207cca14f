"""Numbers and files of command lines: with what nothing can be measured is told before anything starts."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from loadtest.node import NodeError

__all__ = ["amount", "amount_or_0", "check_writable", "count", "count_or_0"]


def count(text: str) -> int:
    """A whole number above 0; raises ArgumentTypeError, as the others here do."""
    if (number := count_or_0(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def count_or_0(text: str) -> int:
    """A whole number, 0 included."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return number


def amount(text: str) -> float:
    """A number above 0."""
    if (number := amount_or_0(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def amount_or_0(text: str) -> float:
    """A number that is neither below 0 nor without an end."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return number


def check_writable(option: str, file: Path) -> None:
    """Raise NodeError where the file of an option cannot be written; leaves it as it is."""
    existed = file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise NodeError(f"{option} {file}: cannot be written ({error.strerror}); name a file in a folder of yours") from None
    if not existed:
        file.unlink()
