"""A store over TLS whose node may do no more than its work: the users that the operation guide names (Redis ACL)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio as redis
import trustme
from redis.exceptions import NoPermissionError

from cdr.consumer import Consumer
from loadtest.network import Network
from loadtest.node import LineSpec
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parent.parent.parent
LINES = [
    LineSpec("B2001", "b2001", "secret-b", "+49603255501"),
    LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert"),
]
PASSWORD = "of-the-store"


def rights(user: str) -> list[str]:
    """What the guide grants to a user."""
    guide = (ROOT / "docs" / "operation.md").read_text()
    found = re.search(rf"^ACL SETUSER {user} on >PASSWORD (.+?)$", guide, re.MULTILINE)
    assert found is not None, f"the guide names no user {user}"
    return found[1].split()


class SecuredStore(Valkey):
    """A real server behind TLS on a port, with the guide's users alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._authority = trustme.CA()
        self._file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self._file)
        self._front: asyncio.Server | None = None
        self.admin = ""

    async def __aenter__(self) -> SecuredStore:
        await super().__aenter__()
        self.admin = self.own_url
        for user in ("node", "billing"):
            await self.client.execute_command("ACL", "SETUSER", user, "on", f">{PASSWORD}", *rights(user))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        self._front = await asyncio.start_server(self._pass, "127.0.0.1", 0, ssl=context)
        self.url = self.url_of("node")
        return self

    def url_of(self, user: str) -> str:
        assert self._front is not None
        port = self._front.sockets[0].getsockname()[1]
        return f"rediss://{user}:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={self._file}"

    async def __aexit__(self, *errors: object) -> None:
        if self._front is not None:
            self._front.close()
        await super().__aexit__(*errors)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self.directory / "s")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            with contextlib.suppress(OSError):
                sink.close()

        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    made = Network(LINES)
    made.store = SecuredStore(tmp_path)
    async with made:
        yield made
        await made.stop_node()


async def test_node_does_its_work_over_tls_with_the_rights_of_the_guide(network: Network) -> None:
    one, other = await network.router("v1001"), await network.router("b2001")
    call = await (await one.call("03023125001")).answered()
    internal = await (await other.call("02051555101")).answered()
    assert await network.slots("v1001", 2) == 2
    assert await (await one.call("09001234567")).final() == 403
    for made in (call, internal):
        await made.hang_up()
    _, compared = await network.reconciled(timeout_s=20)
    assert compared.ok, str(compared)
    assert await network.slots_of_all(0) == 0
    assert await network.bindings("v1001", 1) == 1
    denied: Any = await network.store.client.execute_command("ACL", "LOG")
    assert denied == []
    assert PASSWORD not in network.node.log(tail=1_000_000)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("node", ("FLUSHALL",)),
        ("node", ("CONFIG", "SET", "save", "")),
        ("node", ("KEYS", "*")),
        ("node", ("SET", "other", "1")),
        ("billing", ("HSET", "sp:lines", "x", "y")),
        ("billing", ("HGETALL", "sp:accounts")),
        ("billing", ("XTRIM", "sp:cdr", "MAXLEN", "0")),
    ],
)
async def test_user_of_the_store_may_do_no_more_than_its_work(network: Network, user: str, command: tuple[str, ...]) -> None:
    assert isinstance(network.store, SecuredStore)
    client = redis.Redis.from_url(network.store.url_of(user))
    with pytest.raises(NoPermissionError):
        await client.execute_command(*command)
    await client.aclose()


async def test_billing_reads_acknowledges_and_sets_aside_with_its_rights(network: Network) -> None:
    assert isinstance(network.store, SecuredStore)
    router = await network.router("v1001")
    assert await (await router.call("09001234567")).final() == 403
    await network.records(1)
    await network.store.client.xadd("sp:cdr", {"id": "x", "d": b"no record"})
    got: list[str] = []
    client = redis.Redis.from_url(network.store.url_of("billing"))
    async with Consumer(client, group="billing") as consumer:
        await consumer.run(lambda batch: got.extend(delivery.record.id for delivery in batch), follow=False)
    await client.aclose()
    assert len(got) == 1
    assert await network.store.client.xlen("{sp:cdr}:dead") == 1
    assert (await network.store.client.xpending("sp:cdr", "billing"))["pending"] == 0
    denied: Any = await network.store.client.execute_command("ACL", "LOG")
    assert denied == []
