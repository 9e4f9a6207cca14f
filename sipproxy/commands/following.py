"""`sipproxy trace follow`: a line's messages and decisions as they come, on the terminal and as a packet file.

The node writes into its log who follows whom and why, before it tells anything; the log of who looked at records gets it too.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy.windows import ZONE
from sipproxy.admin import control
from sipproxy.commands import accesses
from sipproxy.commands.changing import operator
from sipproxy.commands.output import USAGE, CommandError, many
from sipproxy.config import load
from sipproxy.pcap import HEADER, write_packet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from sipproxy.commands.output import Output

__all__ = ["follow"]


def follow(path: Path, output: Output, target: str, *, why: str, minutes: float, file: Path | None, whole: bool) -> int:
    """Follow a line, number or call for so many minutes, or until interrupted."""
    if not why.strip():
        raise CommandError("--why is needed: who follows a customer's calls says what for, and it is written down", code=USAGE)
    config = load(path)
    socket = control.socket_path(config.node.data_dir)
    noted = accesses.begin(config, "trace follow", f"{target} for {minutes:g} min: {why}")
    told = 0
    with contextlib.ExitStack() as stack:
        packets = stack.enter_context(_packet_file(file)) if file is not None else None
        try:
            for event in control.follow(socket, "watch", target=target, minutes=minutes, why=why, who=operator()):
                told += event["kind"] not in ("begins", "alive", "over")
                _show(output, event, whole=whole)
                if packets is not None and event["kind"] == "message":
                    _keep(packets, event)
        except KeyboardInterrupt:
            output.line("no longer followed")
        except control.NodeAwayError as error:
            raise control.NodeAwayError(f"{error}; a line is followed on the node that its router registered at") from None
        finally:
            accesses.end(config, noted, told)
    return 0


@contextlib.contextmanager
def _packet_file(file: Path) -> Iterator[BinaryIO]:
    """A new file that its owner alone may read: it holds what people said to whom they would speak."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        raise CommandError(f"{file}: cannot be made ({error.strerror or error}); nothing was followed") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(HEADER)
        yield stream


def _keep(packets: BinaryIO, event: dict[str, Any]) -> None:
    local, remote = tuple(event["local"]), tuple(event["remote"])
    ends = (local, remote) if event["direction"] == "out" else (remote, local)
    packets.write(write_packet(event["at_ns"], *ends, event["data"].encode("latin-1")))
    packets.flush()


def _show(output: Output, event: dict[str, Any], *, whole: bool) -> None:
    output.value(event)
    kind = event["kind"]
    if kind == "begins":
        output.line(f"following for {event['minutes']:g} min; Ctrl-C ends it")
    elif kind == "over":
        left_out = f", {event['left_out']} left out: too fast for this terminal" if event["left_out"] else ""
        output.line(f"over: {many(event['told'], 'event')}{left_out}")
    elif kind == "message":
        first, _, _ = event["data"].partition("\r\n")
        arrow = "->" if event["direction"] == "out" else "<-"
        host, port = event["remote"]
        output.line(
            f"{_clock(event)}  {arrow} {event['transport'].lower()} {host}:{port}  {first[:100]}  [{event['call_id'][:32]}]"
        )
        if whole:
            output.line("\n".join(f"    {row}" for row in event["data"].splitlines()))
    elif kind != "alive":
        output.line(f"{_clock(event)}  == {_words(event)}  [{event['call_id'][:32]}]")


def _words(event: dict[str, Any]) -> str:
    limit = f", channel {event['slots_used']} of {event['slots_limit']}" if event["slots_used"] is not None else ""
    if event["kind"] == "admitted":
        return f"{event['verdict']} {event['canonical']} by {event['rule']}{limit}"
    if event["kind"] == "answered":
        return f"answered{' on ' + event['route'] if event['route'] else ''}"
    decided = f"{event['verdict']} by {event['rule']}, " if event["verdict"] == "deny" else ""
    return f"ended: {decided}{event['reason']}, status {event['status']}, by {event['released_by']}, {event['duration_ms']} ms"


def _clock(event: dict[str, Any]) -> str:
    return dt.datetime.fromtimestamp(event["at_ns"] / 1e9, ZONE).strftime("%H:%M:%S.%f")[:-3]
