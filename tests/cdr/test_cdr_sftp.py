"""cdr.sftp against a real SFTP server on loopback."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh
import pytest

from cdr.sftp import Remote, RemoteError, Target, parse_target

SECRET = "correct-horse-battery"


class Ssh(NamedTuple):
    target: Target
    root: Path
    key: str
    known_hosts: str
    faults: dict[str, Any]


@pytest.fixture
async def ssh(tmp_path: Path) -> AsyncIterator[Ssh]:
    """A server whose folder is `root`, for one key and one password. `faults["write"]` changes what it writes."""
    root, faults = tmp_path / "there", {}
    root.mkdir()
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(tmp_path / "key")
    (tmp_path / "authorized").write_bytes(user.export_public_key())

    class Files(asyncssh.SFTPServer):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, chroot=str(root))

        def write(self, file_obj: object, offset: int, data: bytes) -> int:
            return super().write(file_obj, offset, faults.get("write", lambda given: given)(data))

        def rename(self, oldpath: bytes, newpath: bytes) -> None:
            if faults.get("rename"):
                raise asyncssh.SFTPFailure("no")
            super().rename(oldpath, newpath)

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == ("billing", SECRET)

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        server_factory=Server,
        authorized_client_keys=str(tmp_path / "authorized"),
        sftp_factory=Files,
    )
    port = server.get_port()
    hosts = tmp_path / "known_hosts"
    hosts.write_text(f"[127.0.0.1]:{port} {host.export_public_key().decode()}")
    yield Ssh(Target("127.0.0.1", port, "billing", "/in/cdr"), root / "in/cdr", str(tmp_path / "key"), str(hosts), faults)
    server.close()
    await server.wait_closed()


def written(path: Path, data: bytes) -> tuple[Path, dict[str, Any]]:
    path.write_bytes(data)
    return path, {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def remote(ssh: Ssh, **options: Any) -> Remote:
    return Remote(ssh.target, **{"keys": (ssh.key,), "known_hosts": ssh.known_hosts, **options})


async def test_send_brings_the_file_whole_and_again_harmlessly(ssh: Ssh, tmp_path: Path) -> None:
    path, about = written(tmp_path / "cdr-1.jsonl", b"x" * 700_000)
    async with remote(ssh) as there:
        await there.send(path, **about)
        await there.send(path, **about)
    assert [file.name for file in ssh.root.iterdir()] == ["cdr-1.jsonl"]
    assert (ssh.root / "cdr-1.jsonl").read_bytes() == path.read_bytes()


async def test_send_never_overwrites(ssh: Ssh, tmp_path: Path) -> None:
    path, about = written(tmp_path / "cdr-1.jsonl", b"new")
    async with remote(ssh) as there:
        (ssh.root / "cdr-1.jsonl").write_bytes(b"old")
        with pytest.raises(RemoteError, match="another content"):
            await there.send(path, **about)
    assert (ssh.root / "cdr-1.jsonl").read_bytes() == b"old"


async def test_send_that_arrives_changed_gets_no_name(ssh: Ssh, tmp_path: Path) -> None:
    path, about = written(tmp_path / "cdr-1.jsonl", b"abc")
    ssh.faults["write"] = lambda data: b"X" * len(data)
    async with remote(ssh) as there:
        with pytest.raises(RemoteError, match="did not arrive"):
            await there.send(path, **about)
        assert not (ssh.root / "cdr-1.jsonl").exists()
        ssh.faults.clear()
        ssh.faults["rename"] = True
        with pytest.raises(RemoteError, match=r"cdr-1\.jsonl: no"):
            await there.send(path, **about)
        ssh.faults.clear()
        await there.send(path, **about)
    assert (ssh.root / "cdr-1.jsonl").read_bytes() == b"abc"


async def test_connect_with_an_unknown_host_key_is_refused(ssh: Ssh, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    for hosts in (f"[127.0.0.1]:{ssh.target.port} {other}", "other.example " + other):
        (tmp_path / "wrong").write_text(hosts)
        with pytest.raises(RemoteError, match="host key"):
            async with remote(ssh, known_hosts=str(tmp_path / "wrong")):
                pass


async def test_connect_password_works_and_is_in_no_log_or_error(ssh: Ssh, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with remote(ssh, keys=(), password=SECRET, known_hosts=ssh.known_hosts):
        pass
    with pytest.raises(RemoteError) as caught:
        async with remote(ssh, keys=(), password=SECRET + "x"):
            pass
    assert SECRET not in caplog.text + str(caught.value)


async def test_connect_nobody_listens_is_told(ssh: Ssh) -> None:
    with pytest.raises(RemoteError, match=r"sftp://billing@127\.0\.0\.1:1/in/cdr"):
        async with Remote(ssh.target._replace(port=1), keys=(ssh.key,), known_hosts=ssh.known_hosts):
            pass


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"sftp://u:{SECRET}@h/d", "no password"),
        ("ftp://u@h/d", "not sftp"),
        ("sftp://h/d", "not sftp"),
        ("sftp://u@h:port/d", "not sftp"),
    ],
)
def test_parse_target_bad_address_is_told_without_it(url: str, says: str) -> None:
    with pytest.raises(RemoteError, match=says) as caught:
        parse_target(url)
    assert SECRET not in str(caught.value)


def test_parse_target_parts() -> None:
    assert parse_target("sftp://a%40b@h.example:2222/in/cdr") == Target("h.example", 2222, "a@b", "/in/cdr")
    assert parse_target("sftp://u@h") == Target("h", 22, "u", ".")


def test_remote_without_asyncssh_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(RemoteError, match=r"pip install 'sipproxy\[sftp\]'"):
        Remote(Target("h", 22, "u", "."))
