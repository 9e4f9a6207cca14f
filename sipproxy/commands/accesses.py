"""`sipproxy cdr access`, and the note that every command leaves which shows call detail records to a person.

Who looks is asked of the machine: the account that runs the command, the one that logged in (kept over `su` by the kernel),
and what sudo says. Fails closed: what cannot be written down is not shown.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from cdr import access
from cdr.access import Access, Seen
from cdr.wire import Link
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import CommandError, stamp
from sipproxy.config import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from sipproxy.commands.output import Output
    from sipproxy.config import Config

__all__ = ["Count", "begin", "end", "recorded", "show", "user_name"]

TIMEOUT_S = 5.0
NOBODY = 2**32 - 1  # the kernel's login uid of what nobody logged in for, such as a cron job


class Count:
    """How many records a command has shown so far."""

    def __init__(self) -> None:
        self.records = 0


@contextlib.asynccontextmanager
async def recorded(client: Redis, stream: str, command: str, what: str) -> AsyncIterator[Count]:
    """Write down that this person runs `command`, with `what` as its filter, then how many records it showed.

    Raises RedisError or OSError before the body when the store does not take it.
    """
    link = Link(client, timeout_s=TIMEOUT_S)
    count = Count()
    try:
        access_id = await access.begin(link.call, stream, _access(command, what))
        try:
            yield count
        finally:
            await access.end(link.call, stream, access_id, count.records)
    finally:
        await link.drop()


def begin(config: Config, command: str, what: str) -> str:
    """Write down that this person runs `command`, where the log can be reached; the entry's id, "" where it cannot."""

    async def work(client: Redis) -> str:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            return await access.begin(link.call, config.cdr.stream, _access(command, what))
        finally:
            await link.drop()

    try:
        return with_store(config, work)
    except (CommandError, RedisError, OSError):
        return ""


def end(config: Config, access_id: str, records: int) -> None:
    """Write down how much was seen."""

    async def work(client: Redis) -> None:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            await access.end(link.call, config.cdr.stream, access_id, records)
        finally:
            await link.drop()

    if access_id:
        with contextlib.suppress(CommandError, RedisError, OSError):
            with_store(config, work)


def show(path: Path, output: Output, *, count: int) -> int:
    """Print who looked at records."""
    config = load(path)

    async def work(client: Redis) -> list[Seen]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            return await access.recent(link.call, config.cdr.stream, count)
        finally:
            await link.drop()

    found = with_store(config, work)
    output.value([{"at_ms": seen.at_ms, **msgspec.structs.asdict(seen.access), "records": seen.records} for seen in found])
    rows = (
        (
            stamp(seen.at_ms),
            seen.access.user,
            seen.access.login or "-",
            seen.access.sudo_user or "-",
            seen.access.host,
            seen.access.command,
            seen.access.filter or "-",
            "-" if seen.records is None else seen.records,
        )
        for seen in found
    )
    columns = ("time", "user", "login", "sudo", "machine", "command", "filter", "records")
    output.table(columns, rows, empty="nobody has looked at any record")
    return 0


def user_name() -> str:
    """The account that runs this."""
    return _name(os.getuid())


def _access(command: str, what: str) -> Access:
    uid = os.getuid()
    return Access(user_name(), uid, _login(), os.environ.get("SUDO_USER", "")[:64], socket.gethostname(), command, what)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _login() -> str:
    """Who logged in, by the kernel's audit or the terminal; "" for what nobody logged in for."""
    with contextlib.suppress(OSError, ValueError):
        uid = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
        if uid != NOBODY:
            return _name(uid)
    with contextlib.suppress(OSError):
        return os.getlogin()
    return ""
