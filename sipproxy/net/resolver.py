"""Where a SIP host is: RFC 3263 §4.2 without NAPTR (SRV, then A and AAAA), with a bounded cache that outlives the name server.

The transport is the caller's choice. A record is kept for its TTL within bounds; when it has run out and the name servers do
not answer, the old one is used on (RFC 8767). Look-ups of the same record at the same time are one. Nothing here raises
for what a peer wrote or a name server said: what cannot be found is an empty list, counted under its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from sipproxy.sip.flow import is_literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Resolver"]

MAX_RECORDS = 16  # of one answer that are used: SRV targets, or addresses of a name
MAX_ADDRESSES = 32  # of one result
MAX_HOSTS_BYTES = 256 * 1024  # of the hosts file that are read

Address = tuple[str, int]
_Key = tuple[str, str]  # name, record type
_Record = tuple[int, int, int, str]  # SRV: priority, weight, port, target; else 0, 0, 0, address
_SERVICES = {"UDP": "_sip._udp", "TCP": "_sip._tcp", "TLS": "_sips._tcp"}  # RFC 3263 §4.1


@dataclass(slots=True)
class _Entry:
    """What is known of one record, and until when (monotonic seconds)."""

    records: tuple[_Record, ...]
    expires_at: float
    stale_until: float
    reason: str = ""  # why there are no records; "" when there are, or when the name exists without any


class Resolver:
    """Resolves hosts on the running event loop. `counters` and `failures` hold plain integers, the latter by reason."""

    def __init__(
        self,
        *,
        nameservers: Sequence[str] | None = None,
        nameserver_port: int = 53,
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
        """`nameservers` None takes those of the system.

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
        self._dns = _dns_resolver(nameservers, nameserver_port, timeout_s)

    def __len__(self) -> int:
        return len(self._cache)

    @staticmethod
    def literal(host: str, port: int, transport: str) -> list[Address] | None:
        """The address that `host` itself is, with the transport's default port for port 0; None when it is a name."""
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        return [(host, port or _default_port(transport))] if is_literal(host) else None

    async def resolve(self, host: str, port: int, transport: str, *, ahead_s: float = 0.0) -> list[Address]:
        """Addresses and ports to try, in order; [] when there are none, at the latest after `timeout_s`.

        Port 0 means that the URI had none: SRV is asked first (RFC 3263 §4.2). Records whose time runs out within `ahead_s` are
        asked for already: who asks so often enough always finds them known.
        """
        found = self.literal(host, port, transport)
        if found is not None:
            return found
        name = _canonical(host)
        if name is None:
            return self._fail("bad_name")
        if name in self._hosts:
            return [(address, port or _default_port(transport)) for address in self._hosts[name]] or self._fail("no_address")
        deadline = self._clock() + self._timeout_s
        service = _SERVICES.get(transport.upper())
        if not port and service is not None:
            srv = await self._lookup((f"{service}.{name}", "SRV"), deadline, ahead_s)
            if srv.records:
                return await self._resolve_targets(srv.records, deadline, ahead_s)
            if srv.reason == "timeout":
                return self._fail(
                    "timeout"
                )  # Whether there is a service is unknown: RFC 3263 has A asked only if there is none.
        addresses, reason = await self._addresses(name, deadline, ahead_s)
        return [(address, port or _default_port(transport)) for address in addresses] or self._fail(reason)

    async def close(self) -> None:
        """End the look-ups that are under way."""
        tasks = list(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fail(self, reason: str) -> list[Address]:
        self.failures[reason] += 1
        return []

    async def _resolve_targets(self, records: Sequence[_Record], deadline: float, ahead_s: float) -> list[Address]:
        order = [record for record in self._weighted(records) if record[3] != "."]
        if not order:
            return self._fail("no_service")  # RFC 2782: "." as target: decidedly not available at this domain.
        # Looked up all at once, so that a target that cannot be found does not cost the others their time.
        answers = await asyncio.gather(*(self._addresses(target, deadline, ahead_s) for _, _, _, target in order))
        result = [(address, record[2]) for record, (found, _) in zip(order, answers, strict=True) for address in found]
        return result[:MAX_ADDRESSES] or self._fail(answers[0][1])

    async def _addresses(self, name: str, deadline: float, ahead_s: float) -> tuple[Sequence[str], str]:
        """Addresses of a name, preferred family first, and the reason when there are none."""
        if name in self._hosts:
            return self._hosts[name], ""
        tasks = [asyncio.create_task(self._lookup((name, kind), deadline, ahead_s)) for kind in self._types]
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

    async def _lookup(self, key: _Key, deadline: float, ahead_s: float) -> _Entry:
        """The entry of one record: from the cache, from the name server, or the stale one when that does not answer."""
        now = self._clock()
        entry = self._cache.pop(key, None)
        if entry is not None:
            self._cache[key] = entry  # the most recently used one now
            if now + ahead_s < entry.expires_at:
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
        left = max(0.0, deadline - now)
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

    def _weighted(self, records: Sequence[_Record]) -> list[_Record]:
        """Records in the order of RFC 2782: by priority, within it at random in proportion to the weights."""
        order = []
        for priority in sorted({record[0] for record in records}):
            group = sorted((record for record in records if record[0] == priority), key=lambda record: record[1])
            while group:
                mark, passed = self._rng.randint(0, sum(record[1] for record in group)), 0
                for index, record in enumerate(group):
                    passed += record[1]
                    if passed >= mark:
                        order.append(group.pop(index))
                        break
        return order


def _default_port(transport: str) -> int:
    return 5061 if transport.upper() == "TLS" else 5060


def _canonical(host: str) -> str | None:
    """The name as the cache knows it: lower case, no final dot; None when it cannot be a host name."""
    name = host.removesuffix(".").lower()
    if not name or len(name) > 253 or not name.isascii():
        return None
    if any(not 0 < len(part) < 64 or not part.replace("-", "").replace("_", "").isalnum() for part in name.split(".")):
        return None
    return name


def _records(answer: dns.resolver.Answer, kind: str) -> tuple[_Record, ...]:
    """What of an answer is used: (priority, weight, port, target), the first three zero for addresses."""
    found: list[_Record] = []
    data: Any
    for data in list(answer.rrset or ())[:MAX_RECORDS]:
        if kind != "SRV":
            found.append((0, 0, 0, data.address))
        elif data.target == dns.name.root:
            found.append((data.priority, data.weight, data.port, "."))
        else:
            target = _canonical(data.target.to_text(omit_final_dot=True))
            if target is not None and data.port:
                found.append((data.priority, data.weight, data.port, target))
    return tuple(found)


def _is_usable(entry: _Entry, now: float) -> bool:
    return bool(entry.records) and now < entry.stale_until


def _dns_resolver(nameservers: Sequence[str] | None, port: int, timeout_s: float) -> dns.asyncresolver.Resolver:
    """The library's resolver; with no server at all, every look-up of it is a server failure."""
    try:
        resolver = dns.asyncresolver.Resolver(configure=nameservers is None)
    except dns.resolver.NoResolverConfiguration:
        resolver = dns.asyncresolver.Resolver(configure=False)
    if nameservers is not None:
        resolver.nameservers = list(nameservers)
        resolver.port = port
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
        if names and Resolver.literal(address, 1, "UDP"):
            for name in names:
                hosts.setdefault(name.lower(), []).append(address)
    hosts.setdefault("localhost", ["127.0.0.1", "::1"])
    return {name: _ordered(addresses, types) for name, addresses in hosts.items()}


def _ordered(addresses: Sequence[str], types: Sequence[str]) -> list[str]:
    return [address for kind in types for address in dict.fromkeys(addresses) if (":" in address) == (kind == "AAAA")]
