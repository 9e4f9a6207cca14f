"""Export files on somebody else's machine by SFTP, by asyncssh (the extra `sftp`).

A file is sent aside, read back and compared, and then gets its name; one of that name that is there already is compared and
never overwritten, so that sending again after a lost reply is harmless. The checksum goes the same way before it. The server's
host key is always checked. Left out: passwords in addresses, which every process list shows.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Remote", "RemoteError", "Target", "parse_target"]

CHUNK = 256 * 1024
CONNECT_S = 20.0
SILENT_S = 30.0  # after two unanswered keep-alives so far apart the server counts as gone
NEEDS = "SFTP needs asyncssh: pip install 'sipproxy[sftp]'"


class RemoteError(Exception):
    """The server cannot be used or does not hold what it should; never names a secret."""


class Target(NamedTuple):
    """Where to."""

    host: str
    port: int
    user: str
    folder: str

    def __str__(self) -> str:
        return f"sftp://{self.user}@{self.host}:{self.port}{self.folder}"


def parse_target(url: str) -> Target:
    """`sftp://user@host[:port]/folder`. Raises RemoteError, which does not repeat the address: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port or 22
    except ValueError:
        raise RemoteError("the address is not sftp://user@host[:port]/folder") from None
    if parts.password is not None:
        raise RemoteError("no password in the address: use a key, or the variable SIPPROXY_SFTP_PASSWORD")
    if parts.scheme != "sftp" or not parts.hostname or not parts.username or parts.query or parts.fragment:
        raise RemoteError("the address is not sftp://user@host[:port]/folder")
    return Target(parts.hostname, port, unquote(parts.username), unquote(parts.path) or ".")


class Remote:
    """A connection to a folder there. Use it as an asynchronous context manager."""

    def __init__(self, target: Target, *, keys: tuple[str, ...] = (), known_hosts: str = "", password: str = "") -> None:
        """`keys` are files of private keys, none for those of ssh and its agent; `known_hosts` "" is ssh's own file. Raises
        RemoteError that names the pip command where asyncssh is missing."""
        try:
            import asyncssh  # noqa: PLC0415  an extra
        except ImportError:
            raise RemoteError(NEEDS) from None
        self._ssh: Any = asyncssh
        self._target = target
        self._options: dict[str, Any] = {"username": target.user, "keepalive_interval": SILENT_S, "keepalive_count_max": 2}
        if keys:
            self._options["client_keys"] = list(keys)
        if known_hosts:
            self._options["known_hosts"] = known_hosts
        if password:
            self._options["password"] = password
        self._stack = contextlib.AsyncExitStack()
        self._sftp: Any = None

    async def __aenter__(self) -> Remote:
        """Raises RemoteError."""
        target = self._target
        try:
            connection = await self._stack.enter_async_context(
                self._ssh.connect(target.host, target.port, connect_timeout=CONNECT_S, **self._options)
            )
            self._sftp = await self._stack.enter_async_context(connection.start_sftp_client())
            await self._sftp.makedirs(target.folder, exist_ok=True)
        except self._ssh.HostKeyNotVerifiable as error:
            await self._stack.aclose()
            raise RemoteError(
                f"{target}: the host key is not the known one: {str(error)[:200]}; see --sftp-known-hosts"
            ) from None
        except (self._ssh.Error, OSError, ValueError) as error:
            await self._stack.aclose()
            raise RemoteError(f"{target}: {str(error)[:200] or type(error).__name__}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def send(self, path: Path, *, size: int, sha256: str) -> None:
        """Have the file there under its name, with this content. Raises RemoteError: then it is not, or another one is."""
        final = f"{self._target.folder.rstrip('/') or ''}/{path.name}"
        aside = f"{self._target.folder.rstrip('/') or ''}/.{path.name}.part"
        try:
            if await self._sftp.exists(final):
                if await self._digest(final) != (size, sha256):
                    raise RemoteError(f"{self._target}: {path.name} is there with another content; nothing is overwritten")
                return
            await self._upload(path, aside)
            if await self._digest(aside) != (size, sha256):
                raise RemoteError(f"{self._target}: {path.name} did not arrive as it was sent")
            await self._sftp.rename(aside, final)  # SFTP's own rename fails where the name is taken
        except (self._ssh.Error, OSError) as error:
            raise RemoteError(f"{self._target}: {path.name}: {str(error)[:200] or type(error).__name__}") from None

    async def _upload(self, path: Path, aside: str) -> None:
        with path.open("rb") as source:
            async with self._sftp.open(aside, "wb") as there:
                while data := source.read(CHUNK):
                    await there.write(data)
                with contextlib.suppress(self._ssh.SFTPOpUnsupported):
                    await there.fsync()  # an extension of OpenSSH

    async def _digest(self, name: str) -> tuple[int, str]:
        """Size and SHA-256 of what is there, read back."""
        found, size = hashlib.sha256(), 0
        async with self._sftp.open(name, "rb") as there:
            while data := await there.read(CHUNK):
                found.update(data)
                size += len(data)
        return size, found.hexdigest()
