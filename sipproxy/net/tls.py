"""TLS of the node's streams (RFC 3261 §26.2.1): contexts made of files, made again when these change, and the names that a
certificate speaks for (RFC 5922).

A certificate that is renewed on disk is used from the next handshake on. Files that cannot be used leave the former ones in
force. Left out: connections (`connection`, `stream`), and what a proven name allows its peer to do.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Clients", "Tls", "TlsError", "TlsFiles", "name_matches", "names_of"]

Clients = Literal["none", "optional", "required"]
MAX_NAMES = 100  # of one certificate


class TlsError(Exception):
    """A file of the TLS configuration cannot be used; the message names it."""


class TlsFiles(NamedTuple):
    """PEM files. `ca` "" means the system's certificate authorities; `clients` whether a client has to show a certificate."""

    certificate: str
    key: str
    ca: str = ""
    clients: Clients = "none"


class Tls:
    """The contexts of new handshakes: `server` for accepted connections, `client` for those that we open."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError."""
        self.files = files
        self._stamps = self._read_stamps()
        self.server, self.client = _contexts(files)

    def reload(self) -> bool:
        """Use the files anew when they have changed: whether they had. Raises TlsError, and then nothing has changed.

        A faulty state of the files is reported once.
        """
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        self.server, self.client = _contexts(self.files)
        return True

    def _read_stamps(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for name in filter(None, self.files[:3]):
            try:
                state = Path(name).stat()
                found.append((state.st_mtime_ns, state.st_ino, state.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)


def _contexts(files: TlsFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # RFC 5922 §7.2 has rules of its own, which `names_of` and `name_matches` are
    client.verify_mode = ssl.CERT_REQUIRED
    server.verify_mode = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}[files.clients]
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        try:
            # Without a callback the library would ask for a passphrase on the terminal, and wait for it.
            context.load_cert_chain(files.certificate, files.key or None, password="")
        except (OSError, ValueError) as error:
            names = f"certificate {files.certificate}, key {files.key or files.certificate}"
            raise TlsError(f"{names}: {_words(error)}; both are PEM, the key without a passphrase") from None
        try:
            if files.ca:
                context.load_verify_locations(files.ca)
            else:
                context.load_default_certs(ssl.Purpose.SERVER_AUTH if context is client else ssl.Purpose.CLIENT_AUTH)
        except (OSError, ValueError) as error:
            raise TlsError(f"ca {files.ca}: {_words(error)}; it holds PEM certificates") from None
    return server, client


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or getattr(error, "reason", "") or error)


def names_of(certificate: Mapping[str, object] | None) -> tuple[str, ...]:
    """The SIP domains of a verified certificate as `SSLObject.getpeercert` gives it (RFC 5922 §7.1), in lower case.

    Those of its `sip:` URIs, and only when there are none its DNS names; IP addresses as well. The subject's common name does
    not count.
    """
    alternatives = (certificate or {}).get("subjectAltName", ())
    pairs: Sequence[tuple[str, str]] = alternatives if isinstance(alternatives, tuple) else ()
    uris, hosts, addresses = [], [], []
    for kind, value in pairs[:MAX_NAMES]:
        if kind == "URI" and value[:4].lower() == "sip:" and "@" not in value:
            uris.append(value[4:].partition(";")[0].lower())
        elif kind == "DNS":
            hosts.append(value.lower())
        elif kind == "IP Address":
            addresses.append(str(ipaddress.ip_address(value)))
    return (*(uris or hosts), *addresses)


def name_matches(domain: str, names: Sequence[str]) -> bool:
    """Whether one of a certificate's names is `domain` (RFC 5922 §7.2): the whole name, and no wildcard stands for one."""
    try:
        wanted = str(ipaddress.ip_address(domain.strip("[]")))
    except ValueError:
        wanted = domain.lower().removesuffix(".")
    return wanted in names
