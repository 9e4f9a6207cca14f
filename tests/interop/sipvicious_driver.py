"""SIPVicious' tools as programs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

BOUND_S = 100.0


def begun(tool: str, *arguments: str) -> subprocess.Popen[str]:
    """The tool has been started, in the network that this thread is in."""
    program = str(Path(sys.executable).with_name(f"sipvicious_{tool}"))
    return subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


async def output_of(process: subprocess.Popen[str]) -> str:
    """What the tool printed; it ends by itself."""
    try:
        output, _ = await asyncio.to_thread(process.communicate, timeout=BOUND_S)
    finally:
        process.kill()  # nothing where it has ended
    return output


async def sipvicious(tool: str, *arguments: str) -> str:
    """What the tool printed."""
    return await output_of(begun(tool, *arguments))
