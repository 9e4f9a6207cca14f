"""Words to systemd: sd_notify(3) without its library. Does nothing where no notify socket is named.

A word that cannot be sent is lost: no call may suffer for whoever watches over the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Notifier"]


class Notifier:
    """`watchdog_s` is the time within which systemd wants to hear from the process, 0 when it does not watch."""

    VARIABLES = frozenset(["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"])  # of the environment, for this process alone

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name  # abstract: outside of the file system
        for_us = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if self._address and for_us and usec.isdigit() else 0.0

    def tell(self, *words: str, status: str = "") -> None:
        """Send the words, such as `READY=1`, and the line that `systemctl status` shows."""
        if not self._address:
            return
        text = "\n".join([*words, *([f"STATUS={status}"] if status else [])])
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(0)
            sender.sendto(text.encode(), self._address)

    async def run(self, is_healthy: Callable[[], bool], status: Callable[[], str]) -> None:
        """Pat the watchdog from the event loop, twice within its time, as long as the node is healthy."""
        while self.watchdog_s > 0:
            words = ["WATCHDOG=1"] if is_healthy() else []
            self.tell(*words, status=status())
            await asyncio.sleep(self.watchdog_s / 2)
