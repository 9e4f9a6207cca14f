"""Commands that act on the calls of a running node: end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.admin import control
from sipproxy.config import load

if TYPE_CHECKING:
    from pathlib import Path

    from sipproxy.commands.output import Output

__all__ = ["end"]

DONE = {
    "answered": "ended: a BYE went to both parties",
    "proceeding": "ended: it was not answered yet, and was cancelled",
    "admitting": "ended before it was forwarded",
}


def end(path: Path, call: str, output: Output, *, emergency: bool) -> int:
    """End one call of the running node, an emergency call with `emergency` alone. Raises ControlError when it cannot be."""
    socket = control.socket_path(load(path).node.data_dir)
    result = control.ask(socket, "end", call=call, emergency=emergency)
    output.value(result)
    output.line(f"{call}: {DONE.get(result['state'], 'ended')}")
    return 0
