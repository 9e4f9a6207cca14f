"""What every process of a node needs before anything else: its signals, its event loop, how it says that it cannot start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAVE_S", "StartError", "Stop", "end_with", "loop_factory"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>: not in Python's modules
LEAVE_S = 20.0  # that closing everything may take after the drain


class StartError(Exception):
    """The node cannot start; the text says what to do."""


class Stop:
    """What signals asked for: a first SIGTERM to drain, SIGINT or a second SIGTERM to end at once."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.at_once = asyncio.Event()

    def listen(self) -> None:
        """Take the signals of the process from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.terminate)
        loop.add_signal_handler(signal.SIGINT, self.interrupt)

    def terminate(self) -> None:
        if self.wanted.is_set():
            self.at_once.set()
        self.wanted.set()

    def interrupt(self) -> None:
        self.at_once.set()
        self.wanted.set()


def end_with(parent: int) -> bool:
    """Have the kernel end this process with its parent, also one that hangs or is stopped (Linux; elsewhere the link to the
    parent tells). False when that has ended before. Raises OSError when the kernel refuses."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a node's event loop."""
    try:
        import uvloop  # noqa: PLC0415  left out where it does not build
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
