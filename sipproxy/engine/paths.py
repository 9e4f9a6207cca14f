"""Registrations that say more than where one device is: a path of proxies to it (RFC 3327), and all numbers of a PBX at once
(`gin`, RFC 6140).

Pure. A Path is believed from sources that the configuration names and refused from any other, since calls go where it says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policy.model import AccountKind
from sipproxy.engine.location import request_uri
from sipproxy.engine.options import has_option
from sipproxy.sip.errors import ParseError
from sipproxy.sip.headers import parse_name_addr

if TYPE_CHECKING:
    from policy.model import Account
    from sipproxy.engine.structs import Binding
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Request

__all__ = ["MAX_PATHS", "bulk_fault", "called_at", "paths_of"]

MAX_PATHS = 8  # proxies between a device and us: more than any network has
MAX_PATH_BYTES = 512  # of one value
BULK = re.compile(rb";bnc(?:=[^;?]*)?(?=[;?]|$)", re.IGNORECASE)


def paths_of(request: Request) -> list[NameAddr]:
    """The Path values, the nearest to us first (RFC 3327 §5.3). Raises ParseError for what no request can be routed by."""
    section = "RFC 3327 §5"
    if not request.has(b"path"):
        return []
    values = request.values(b"path")
    if len(values) > MAX_PATHS or any(len(value) > MAX_PATH_BYTES for value in values):
        raise ParseError(f"more than {MAX_PATHS} Path values, or one above {MAX_PATH_BYTES} bytes", section=section)
    paths = [parse_name_addr(value) for value in values]
    if any(not path.uri.is_sip or not path.uri.host or path.uri.param(b"lr") is None for path in paths):
        raise ParseError("a Path value that is no sip URI with lr", section=section)
    return paths


def bulk_fault(request: Request, contact: NameAddr, account: Account) -> tuple[int, bytes]:
    """Why a contact cannot stand for all numbers of its account, or for one device: status and reason (RFC 6140 §5.2).

    (0, b"") when there is nothing against it. Raises ParseError.
    """
    bulk, asked = contact.uri.param(b"bnc") is not None, has_option(request, b"require", b"gin")
    if bulk != asked:
        return 400, b"Require Gin And Bnc Belong Together"
    if bulk and contact.uri.user is not None:
        return 400, b"Bulk Contact Has No User"
    if bulk and account.kind is not AccountKind.TRUNK:
        return 403, b"No Bulk Registration For This Account"
    return 0, b""


def called_at(binding: Binding, number: str) -> bytes:
    """The Request-URI of a call to a number by a binding: its contact, in a bulk one with the number as user (RFC 6140 §7)."""
    contact = request_uri(binding.contact)
    found = BULK.search(contact)
    if found is None:
        return contact
    scheme, _, rest = (contact[: found.start()] + contact[found.end() :]).partition(b":")
    return b"%s:%s@%s" % (scheme, number.encode(), rest)
