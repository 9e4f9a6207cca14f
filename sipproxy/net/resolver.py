"""Where a SIP host is: RFC 3263 §4 (NAPTR, SRV, A and AAAA), with a bounded cache that outlives the name server.

The transport is the caller's, or, where the URI leaves it open, the one that NAPTR prefers among those that there are. A record
is kept for its TTL within bounds; when it has run out and the name servers do not answer, the old one is used on (RFC 8767).
Look-ups of the same record at the same time are one. Nothing here raises for what a peer wrote or a name server said: what
cannot be found is an empty list, counted under its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from sipproxy.sip.flow import is_literal
from sipproxy.sip.places import Place, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ["Resolver"]

MAX_RECORDS = 16  # of one answer that are used: services, SRV targets, or addresses of a name
MAX_READ = 64  # of one answer that are looked at: a domain's NAPTR records may be of many kinds
MAX_ADDRESSES = 32  # of one result
MAX_HOSTS_BYTES = 256 * 1024  # of the hosts file that are read

_Key = tuple[str, str]  # name, record type
_Record = tuple[int, int, int, str]  # SRV: priority, weight, port, target; NAPTR: order, preference, index of transport, name
_SERVICES = {"UDP": "_sip._udp", "TCP": "_sip._tcp", "TLS": "_sips._tcp"}  # RFC 3263 §4.1
_TRANSPORTS = tuple(_SERVICES)
_NAPTR = {b"sip+d2u": 0, b"sip+d2t": 1, b"sips+d2t": 2}  # service field -> index of its transport
_BY_RANK = 1 << 16  # SRV priorities that one NAPTR record has room for


@dataclass(slots=True)
class _Entry:
    """What is known of one record, and until when (monotonic seconds)."""

    records: tuple[_Record, ...]
    expires_at: float
    stale_until: float
    reason: str = ""  # why there are no records; "" when there are, or when the name exists without any


class _When(NamedTuple):
    """Until when an answer is waited for (monotonic seconds), and how long before its time a record is asked for anew (s)."""

    deadline: float
    ahead_s: float


class Resolver:
    """Resolves hosts on the running event loop. `counters` and `failures` hold plain integers, the latter by reason."""

    def __init__(
        self,
        *,
        nameservers: Sequence[tuple[str, int]] = (),
        timeout_s: float = 2.0,
        patience_s: float = 0.3,
        retry_s: float = 5.0,
        min_ttl_s: float = 5.0,
        max_ttl_s: float = 3600.0,
        negative_ttl_s: float = 30.0,
        stale_s: float = 86400.0,
        max_entries: int = 10_000,
        max_pending: int = 500,
        families: Sequence[int] = (4, 6),
        hosts_file: Path | None = Path("/etc/hosts"),
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`nameservers` are IP and port each; none takes those of the system.

        `timeout_s` bounds a whole `resolve`. `patience_s` is how long a stale record's renewal is waited for before the stale
        one is used, `retry_s` the pause after a failed look-up, `stale_s` how long a record is usable after its time.
        `families` are the IP versions to use, the preferred one first.
        """
        self.counters = {"queries": 0, "hits": 0, "joined": 0, "stale": 0, "evicted": 0}
        self.failures = {
            "bad_name": 0, "nxdomain": 0, "no_address": 0, "no_service": 0, "timeout": 0, "server_failure": 0,
            "busy": 0,
        }  # fmt: skip
        self._timeout_s, self._patience_s, self._retry_s = timeout_s, patience_s, retry_s
        self._min_ttl_s, self._max_ttl_s, self._negative_ttl_s = min_ttl_s, max_ttl_s, negative_ttl_s
        self._stale_s, self._max_entries, self._max_pending = stale_s, max_entries, max_pending
        self._types = tuple("AAAA" if version == 6 else "A" for version in families)
        self._clock = clock
        self._rng = rng or random.Random()
        self._cache: dict[_Key, _Entry] = {}  # least recently used first
        self._pending: dict[_Key, asyncio.Task[_Entry]] = {}
        self._hosts = _read_hosts(hosts_file, self._types)
        self._dns = _dns_resolver(nameservers, timeout_s)

    def __len__(self) -> int:
        return len(self._cache)

    @staticmethod
    def literal(host: str, port: int, transport: str) -> Place | None:
        """The address that `host` itself is, with the transport's default port for port 0; None when it is a name."""
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        return Place(transport, host, port or _default_port(transport), "address") if is_literal(host) else None

    async def resolve(
        self, host: str, port: int, transport: str, *, among: Collection[str] = (), ahead_s: float = 0.0
    ) -> list[Place]:
        """Addresses to try, in order; [] when there are none, at the latest after `timeout_s`.

        Port 0 means that the URI had none: SRV is asked first (RFC 3263 §4.2). `among` are the transports that there are to
        choose from, where the URI left that open as well: NAPTR is asked before (§4.1). Records whose time runs out within
        `ahead_s` are asked for already: who asks so often enough always finds them known.
        """
        found = self.literal(host, port, transport)
        if found is not None:
            return [found]
        name = _canonical(host)
        if name is None:
            return self._fail("bad_name")
        if name in self._hosts:
            known = [Place(transport, address, port or _default_port(transport), "hosts file") for address in self._hosts[name]]
            return known or self._fail("no_address")
        when = _When(self._clock() + self._timeout_s, ahead_s)
        places, reason = await self._locate(name, port, transport, among, when)
        return in_order(places, lambda most: self._rng.randint(0, most))[:MAX_ADDRESSES] or self._fail(reason)

    async def close(self) -> None:
        """End the look-ups that are under way."""
        tasks = list(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fail(self, reason: str) -> list[Place]:
        self.failures[reason] += 1
        return []

    async def _locate(
        self, name: str, port: int, transport: str, among: Collection[str], when: _When
    ) -> tuple[list[Place], str]:
        """The places of a name that DNS knows, and the reason when there are none."""
        if not port and among:
            places = await self._by_naptr(name, among, when)
            if places:
                return places, ""  # else as if there were no such record (§4.1)
        reason = ""
        # §4.1: without NAPTR the services of each transport that we have, of those that the URI's scheme allows.
        others = [other for other in ("UDP", "TCP") if other in among and "TLS" != transport != other]
        transport, *others = [one for one in (transport, *others) if one in among] or [transport]
        for asked in [] if port else [transport, *others]:
            srv = await self._lookup((f"{_SERVICES[asked]}.{name}", "SRV"), when)
            places, why = await self._of_srv(asked, srv, f"SRV {_SERVICES[asked]}.{name}", 0, when)
            if places:
                return places, ""
            if srv.reason == "timeout":
                return [], "timeout"  # Whether there is a service is unknown: RFC 3263 has A asked only if there is none.
            reason = reason or why
        if reason:
            return [], reason
        addresses, reason = await self._addresses(name, when)
        return [
            Place(transport, address, port or _default_port(transport), f"{_kind(address)} {name}") for address in addresses
        ], reason

    async def _by_naptr(self, name: str, among: Collection[str], when: _When) -> list[Place]:
        """What the NAPTR records lead to; [] also where that is nowhere."""
        # A name server that does not know the type, and is silent, must leave time for the others.
        half = min(when.deadline, self._clock() + self._timeout_s / 2)
        entry = await self._lookup((name, "NAPTR"), when._replace(deadline=half))
        usable = sorted(record for record in entry.records if _TRANSPORTS[record[2]] in among)
        # RFC 3403 §4.1: once a record fits, those of a higher order are not looked at. So nobody who can do TLS, and whom the
        # domain prefers to reach by it, is brought to do without.
        usable = [record for record in usable if record[0] == usable[0][0]]
        found = await asyncio.gather(*(self._lookup((record[3], "SRV"), when) for record in usable))
        places: list[Place] = []
        for index, ((_, _, transport, service), srv) in enumerate(zip(usable, found, strict=True)):
            records = f"NAPTR {name}, SRV {service}"
            more, _ = await self._of_srv(_TRANSPORTS[transport], srv, records, index * _BY_RANK, when)
            places += more
        return places

    async def _of_srv(self, transport: str, srv: _Entry, how: str, rank: int, when: _When) -> tuple[list[Place], str]:
        """The places that an SRV answer names, and the reason when it names some and none is to be had."""
        records = [record for record in srv.records if record[3] != "."]
        if not records:
            return [], "no_service" if srv.records else ""  # RFC 2782: "." as target: decidedly not available at this domain.
        # Looked up all at once, so that a target that cannot be found does not cost the others their time.
        answers = await asyncio.gather(*(self._addresses(target, when) for _, _, _, target in records))
        places = [
            Place(transport, address, port, f"{how}, {_kind(address)} {target}", rank + priority, weight, entry)
            for entry, ((priority, weight, port, target), (found, _)) in enumerate(zip(records, answers, strict=True))
            for address in found
        ]
        return places, "" if places else answers[0][1]

    async def _addresses(self, name: str, when: _When) -> tuple[Sequence[str], str]:
        """Addresses of a name, preferred family first, and the reason when there are none."""
        if name in self._hosts:
            return self._hosts[name], ""
        tasks = [asyncio.create_task(self._lookup((name, kind), when)) for kind in self._types]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            known = any(task.result().records for task in tasks if task.done())
            # A server that is silent about one family must not hold up what it said about the other.
            await asyncio.wait(tasks, timeout=self._patience_s if known else None)
            entries = [task.result() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
        addresses = [record[3] for entry in entries for record in entry.records]
        return addresses, next((entry.reason for entry in entries if entry.reason), "no_address")

    async def _lookup(self, key: _Key, when: _When) -> _Entry:
        """The entry of one record: from the cache, from the name server, or the stale one when that does not answer."""
        now = self._clock()
        entry = self._cache.pop(key, None)
        if entry is not None:
            self._cache[key] = entry  # the most recently used one now
            if now + when.ahead_s < entry.expires_at:
                self.counters["hits"] += 1
                return entry
        stale = entry if entry is not None and _is_usable(entry, now) else None
        task = self._pending.get(key)
        if task is not None:
            self.counters["joined"] += 1
        elif len(self._pending) >= self._max_pending:
            return stale or _Entry((), now, now, "busy")
        else:
            # Not a child of the caller: others may wait for it too, and it goes on when this caller's patience ends.
            # It ends by itself within `timeout_s`, and with `close`.
            task = self._pending[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda _: self._pending.pop(key, None))
        left = max(0.0, when.deadline - now)
        await asyncio.wait({task}, timeout=min(left, self._patience_s) if stale else left)
        if task.done() and not task.cancelled():
            return task.result()
        if stale is not None:
            self.counters["stale"] += 1
            return stale
        return _Entry((), now, now, "timeout")

    async def _ask(self, key: _Key) -> _Entry:
        """Ask the name server and keep what it says. Does not raise but when cancelled."""
        self.counters["queries"] += 1
        records, ttl, reason = await self._query(key)
        now = self._clock()
        if reason in ("timeout", "server_failure"):
            old = self._cache.get(key)
            if old is not None and _is_usable(old, now):
                old.expires_at = now + self._retry_s  # Used on; asked for again only after a pause.
                self.counters["stale"] += 1
                return old
            entry = _Entry((), now + self._retry_s, now, reason)
        else:
            ttl = min(max(ttl, self._min_ttl_s), self._max_ttl_s if records else self._negative_ttl_s)
            entry = _Entry(records, now + ttl, now + ttl + self._stale_s, reason)
        self._cache.pop(key, None)
        while len(self._cache) >= self._max_entries:
            del self._cache[next(iter(self._cache))]
            self.counters["evicted"] += 1
        self._cache[key] = entry
        return entry

    async def _query(self, key: _Key) -> tuple[tuple[_Record, ...], float, str]:
        """Records, TTL in seconds and, without records, the reason."""
        name, kind = key
        try:
            async with asyncio.timeout(self._timeout_s * 0.95):  # The library's own bound leaves out its pauses.
                answer = await self._dns.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            return (), self._negative_ttl_s, "nxdomain"
        except (TimeoutError, dns.exception.Timeout):
            return (), 0.0, "timeout"
        except (dns.exception.DNSException, OSError, EOFError):
            return (), 0.0, "server_failure"
        return _records(answer, kind), float(answer.chaining_result.minimum_ttl), ""


def _default_port(transport: str) -> int:
    return 5061 if transport.upper() == "TLS" else 5060


def _kind(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _canonical(host: str) -> str | None:
    """The name as the cache knows it: lower case, no final dot; None when it cannot be a host name."""
    name = host.removesuffix(".").lower()
    if not name or len(name) > 253 or not name.isascii():
        return None
    if any(not 0 < len(part) < 64 or not part.replace("-", "").replace("_", "").isalnum() for part in name.split(".")):
        return None
    return name


def _records(answer: dns.resolver.Answer, kind: str) -> tuple[_Record, ...]:
    """What of an answer is used; see `_Record`, for addresses the first three are zero."""
    found: list[_Record] = []
    data: Any
    for data in list(answer.rrset or ())[:MAX_READ]:
        if kind == "NAPTR":
            # RFC 3263 §4.1: flag "s", no regular expression, and a service that is SIP over a transport that there is.
            service = _NAPTR.get(data.service.lower())
            name = _canonical(data.replacement.to_text(omit_final_dot=True))
            if data.flags.lower() == b"s" and not data.regexp and service is not None and name is not None:
                found.append((data.order, data.preference, service, name))
        elif kind != "SRV":
            found.append((0, 0, 0, data.address))
        elif data.target == dns.name.root:
            found.append((data.priority, data.weight, data.port, "."))
        else:
            target = _canonical(data.target.to_text(omit_final_dot=True))
            if target is not None and data.port:
                found.append((data.priority, data.weight, data.port, target))
    return tuple(found[:MAX_RECORDS])


def _is_usable(entry: _Entry, now: float) -> bool:
    return bool(entry.records) and now < entry.stale_until


def _dns_resolver(nameservers: Sequence[tuple[str, int]], timeout_s: float) -> dns.asyncresolver.Resolver:
    """The library's resolver; with no server at all, every look-up of it is a server failure."""
    try:
        resolver = dns.asyncresolver.Resolver(configure=not nameservers)
    except dns.resolver.NoResolverConfiguration:
        resolver = dns.asyncresolver.Resolver(configure=False)
    if nameservers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*address) for address in nameservers]
    resolver.lifetime = timeout_s * 0.9  # Before the caller's own bound, so that the outcome is known and kept.
    resolver.timeout = timeout_s * 0.35  # A lost datagram is repeated within the time there is.
    return resolver


def _read_hosts(path: Path | None, types: Sequence[str]) -> dict[str, list[str]]:
    """Names of the hosts file with their addresses, preferred family first; `localhost` is always known (RFC 6761 §6.3)."""
    hosts: dict[str, list[str]] = {}
    text = ""
    if path is not None:
        with contextlib.suppress(OSError), path.open("rb") as file:
            text = file.read(MAX_HOSTS_BYTES).decode("utf-8", "replace")
    for line in text.split("\n"):
        address, *names = line.partition("#")[0].split() or [""]
        if names and is_literal(address):
            for name in names:
                hosts.setdefault(name.lower(), []).append(address)
    hosts.setdefault("localhost", ["127.0.0.1", "::1"])
    return {name: _ordered(addresses, types) for name, addresses in hosts.items()}


def _ordered(addresses: Sequence[str], types: Sequence[str]) -> list[str]:
    return [address for kind in types for address in dict.fromkeys(addresses) if (":" in address) == (kind == "AAAA")]
