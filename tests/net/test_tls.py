"""TLS of a node on both event loops: who proves to be whom (RFC 5922), renewed certificates, handshakes that never end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import trustme
from waiting import until

from sipproxy.net.resolver import Resolver
from sipproxy.net.stream import StreamLimits, StreamListener
from sipproxy.net.tls import Tls, TlsError, TlsFiles, name_matches, names_of
from sipproxy.net.transports import Transports
from sipproxy.sip.flow import Hop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Make = Callable[..., Awaitable["Node"]]

MESSAGE = b"OPTIONS sip:a@b.example SIP/2.0\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.folder = folder
        folder.mkdir()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, to: str = "node") -> TlsFiles:
        issued = self._ca.issue_cert(*names)
        file = self.folder / f"{to}.new"
        issued.private_key_and_cert_chain_pem.write_to_path(file)
        final = self.folder / f"{to}.pem"
        file.rename(final)
        return TlsFiles(str(final), "", str(self.file))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


class Node:
    def __init__(self, files: TlsFiles, **limits: Any) -> None:
        self.tls = Tls(files)
        self.got: list[tuple[bytes, str, int, int]] = []
        self.failed: list[tuple[object, str]] = []
        self.listener = StreamListener(
            "127.0.0.1",
            0,
            lambda *args: self.got.append(args),
            on_failed=lambda *args: self.failed.append(args),
            limits=StreamLimits(**{"close_s": 0.5, **limits}),
            tls=self.tls,
        )


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[Make]:
    made: list[Node] = []

    async def make(files: TlsFiles, **limits: Any) -> Node:
        made.append(Node(files, **limits))
        await made[-1].listener.start()
        return made[-1]

    yield make
    await asyncio.gather(*(node.listener.close() for node in made))


async def test_tls_message_and_its_answer_use_one_connection_and_the_names_are_known(nodes: Make, authority: Authority) -> None:
    one = await nodes(authority.issue("one.example", to="one")._replace(clients="none"))
    two = await nodes(authority.issue("two.example", "sips.two.example", to="two")._replace(clients="optional"))
    number = one.listener.send(MESSAGE, *two.listener.address, domain="two.example")
    await until(lambda: two.got)
    data, host, port, connection = two.got[0]
    assert data == MESSAGE
    assert one.listener.names(number) == ("two.example", "sips.two.example")
    assert two.listener.names(connection) == ("one.example",)
    assert two.listener.send(MESSAGE, host, port, connection) == connection
    await until(lambda: one.got)
    big = MESSAGE.replace(b"Length: 0", b"Length: 60000") + b"x" * 60_000
    for domain in ("two.example", "SIPS.two.example", ""):
        assert one.listener.send(big, *two.listener.address, domain=domain) == number
    await until(lambda: len(two.got) == 4)
    assert {data for data, *_ in two.got[1:]} == {big}
    assert two.listener.counters["accepted"] == 1


@pytest.mark.parametrize(("domain", "reason"), [("three.example", "name"), ("", "name"), ("example", "name")])
async def test_tls_peer_that_proves_another_name_gets_nothing(
    nodes: Make, authority: Authority, domain: str, reason: str
) -> None:
    one = await nodes(authority.issue("one.example", to="one"))
    two = await nodes(authority.issue("two.example", "*.example", to="two"))
    one.listener.send(MESSAGE, *two.listener.address, domain=domain, key="k")
    await until(lambda: one.failed)
    assert one.failed == [("k", reason)]
    await until(lambda: not len(one.listener))
    assert two.got == []
    assert one.listener.closed[reason] == 1


async def test_tls_peer_of_an_authority_that_is_not_ours_gets_nothing(
    nodes: Make, authority: Authority, tmp_path: Path
) -> None:
    one = await nodes(authority.issue("one.example", to="one"))
    stranger = await nodes(Authority(tmp_path / "other").issue("two.example"))
    one.listener.send(MESSAGE, *stranger.listener.address, domain="two.example", key="k")
    await until(lambda: one.failed)
    assert one.failed == [("k", "handshake")]
    assert stranger.got == []


async def test_tls_address_of_a_name_has_to_prove_the_name(nodes: Make, authority: Authority) -> None:
    """RFC 5922 §4: whatever records led to the address, the certificate is for the domain of the URI."""
    far = await nodes(authority.issue("carrier.example", to="carrier"))
    failed: list[object] = []
    resolver = Resolver(hosts_file=None)
    transports = Transports(
        resolver, lambda *_: None, failed.append, lambda *_: None, lambda *_: None, tls=Tls(authority.issue("node.example"))
    )
    transports.bind([("TLS", "127.0.0.1", 0)])
    await transports.start()
    host, port = far.listener.address
    transports.send(Hop("TLS", host, port, domain="carrier.example"), MESSAGE, "named")
    await until(lambda: far.got)
    transports.send(Hop("TLS", host, port, domain="machine.example"), MESSAGE, "another")
    transports.send(Hop("TLS", host, port), MESSAGE, "address")
    await until(lambda: sorted(map(str, failed)) == ["address", "another"])
    assert len(far.got) == 1
    await transports.close()
    await resolver.close()


async def test_tls_message_for_another_domain_at_the_same_address_takes_another_connection(
    nodes: Make, authority: Authority
) -> None:
    one = await nodes(authority.issue("one.example", to="one"))
    two = await nodes(authority.issue("two.example", to="two"))
    first = one.listener.send(MESSAGE, *two.listener.address, domain="two.example")
    await until(lambda: two.got)
    assert one.listener.send(MESSAGE, *two.listener.address, domain="three.example", key="k") != first
    await until(lambda: one.failed)
    assert one.failed == [("k", "name")]
    assert len(two.got) == 1


@pytest.mark.parametrize(
    ("clients", "shows", "passes"), [("required", False, False), ("required", True, True), ("none", True, True)]
)
async def test_tls_client_without_a_certificate_is_refused_where_one_is_required(
    nodes: Make, authority: Authority, clients: Any, *, shows: bool, passes: bool
) -> None:
    node = await nodes(authority.issue("node.example", to="node")._replace(clients=clients))
    context = ssl.create_default_context(cafile=authority.file)
    if shows:
        context.load_cert_chain(authority.issue("client.example", to="client").certificate)
    writer = None
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(*node.listener.address, ssl=context, server_hostname="node.example")
        writer.write(MESSAGE)
    await until(lambda: node.got or node.listener.closed["handshake"])
    assert bool(node.got) is passes
    if passes:
        assert node.listener.names(node.got[0][3]) == (("client.example",) if clients == "required" else ())
    if writer is not None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_tls_handshake_that_does_not_begin_is_ended_and_held_to_the_limits(nodes: Make, authority: Authority) -> None:
    node = await nodes(authority.issue("node.example"), handshake_s=0.3, connections_per_source=3)
    slow = [await asyncio.open_connection(*node.listener.address) for _ in range(5)]
    await until(lambda: node.listener.counters["accepted"] == 5)
    assert node.listener.closed["too_many_from_source"] == 2
    assert len(node.listener) == 3
    await until(lambda: node.listener.closed["handshake"] == 3)
    assert len(node.listener) == 0
    for reader, writer in slow:
        with contextlib.suppress(OSError):
            assert await reader.read(-1) == b""
        writer.close()


async def test_tls_plain_sip_on_a_secured_port_is_not_read(nodes: Make, authority: Authority) -> None:
    node = await nodes(authority.issue("node.example"))
    _, writer = await asyncio.open_connection(*node.listener.address)
    writer.write(MESSAGE)
    await until(lambda: node.listener.closed["handshake"] == 1)
    assert node.got == []
    writer.close()


async def test_tls_close_ends_connections_in_their_handshake(nodes: Make, authority: Authority) -> None:
    node = await nodes(authority.issue("node.example"))
    reader, writer = await asyncio.open_connection(*node.listener.address)
    await until(lambda: len(node.listener) == 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        node.listener.send(MESSAGE, *silent.getsockname(), domain="x.example", key="k")
        await until(lambda: len(node.listener) == 2)
        await node.listener.close()
    assert len(node.listener) == 0
    await until(lambda: node.failed == [("k", "shutdown")])
    with contextlib.suppress(OSError):
        assert await reader.read(-1) == b""
    writer.close()


async def test_tls_renewed_certificate_is_shown_to_new_connections_alone(nodes: Make, authority: Authority) -> None:
    two = await nodes(authority.issue("old.example", to="two"))
    one = await nodes(authority.issue("one.example", to="one"))
    first = one.listener.send(MESSAGE, *two.listener.address, domain="old.example")
    await until(lambda: len(two.got) == 1)
    assert two.tls.reload() is False
    authority.issue("new.example", to="two")
    assert two.tls.reload() is True
    assert one.listener.send(MESSAGE, *two.listener.address, domain="old.example") == first
    assert one.listener.send(MESSAGE, *two.listener.address, domain="new.example") != first
    await until(lambda: len(two.got) == 3)
    assert two.listener.counters["accepted"] == 2


def test_tls_files_that_cannot_be_used_are_named_once_and_change_nothing(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("node.example")
    tls = Tls(files)
    before = tls.server
    Path(files.certificate).write_text("no certificate")
    with pytest.raises(TlsError, match=r"node\.pem"):
        tls.reload()
    assert tls.reload() is False
    assert tls.server is before
    shutil.rmtree(authority.folder)
    with pytest.raises(TlsError, match="No such file"):
        tls.reload()
    with pytest.raises(TlsError, match=r"ca .*gone"):
        Tls(Authority(tmp_path / "again").issue("x.example")._replace(ca=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("alternatives", "names"),
    [
        ((("DNS", "A.example"), ("DNS", "b.example")), ("a.example", "b.example")),
        ((("DNS", "a.example"), ("URI", "sip:c.example")), ("c.example",)),  # §7.1: a SIP URI leaves DNS names out
        ((("URI", "https://a.example"), ("DNS", "d.example")), ("d.example",)),
        ((("URI", "sip:user@a.example"), ("DNS", "d.example")), ("d.example",)),  # a user's, not a domain's
        ((("URI", "SIP:c.example;transport=tls"),), ("c.example",)),
        ((("IP Address", "192.0.2.1"), ("IP Address", "2001:DB8:0:0:0:0:0:1")), ("192.0.2.1", "2001:db8::1")),
        ((), ()),
    ],
)
def test_names_of_a_certificate_are_its_sip_uris_else_its_dns_names(alternatives: Any, names: tuple[str, ...]) -> None:
    assert names_of({"subjectAltName": alternatives, "subject": ((("commonName", "cn.example"),),)}) == names


def test_names_of_no_certificate_are_none() -> None:
    assert names_of(None) == names_of({}) == ()


@pytest.mark.parametrize(
    ("domain", "names", "matches"),
    [
        ("a.example", ("a.example",), True),
        ("A.Example.", ("a.example",), True),
        ("b.a.example", ("a.example",), False),  # §7.2: no suffixes
        ("b.example", ("*.example",), False),  # and no wildcards
        ("[2001:db8::1]", ("2001:db8::1",), True),
        ("192.0.2.1", ("192.0.2.10",), False),
        ("", ("a.example",), False),
        ("a.example", (), False),
    ],
)
def test_name_matches_whole_names_alone(domain: str, names: tuple[str, ...], *, matches: bool) -> None:
    assert name_matches(domain, names) is matches
