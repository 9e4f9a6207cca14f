"""Instructions that this thread executes, counted by the processor (Linux perf_event_open(2)): unlike time they are the same on
a machine that others use too.

Leaves out: the kernel's part, and other threads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

__all__ = ["Instructions"]

_CALL = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 0)  # perf_event_open, <asm/unistd.h>
_HARDWARE, _INSTRUCTIONS = 0, 1  # <linux/perf_event.h>: PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS
_SIZE = 112  # PERF_ATTR_SIZE_VER5
_USER_ALONE = 1 << 5 | 1 << 6  # exclude_kernel, exclude_hv


class Instructions:
    """`count()` is how many there were so far; always 0 where they cannot be counted."""

    def __init__(self) -> None:
        self._descriptor = -1
        if _CALL:
            words = struct.pack("=IIQQQQQ", _HARDWARE, _SIZE, _INSTRUCTIONS, 0, 0, 0, _USER_ALONE)
            event = ctypes.create_string_buffer(words, _SIZE)
            self._descriptor = ctypes.CDLL(None, use_errno=True).syscall(_CALL, event, 0, -1, -1, 0)

    def count(self) -> int:
        return int.from_bytes(os.read(self._descriptor, 8), "little") if self._descriptor >= 0 else 0

    def close(self) -> None:
        """Give the counter back; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
