"""The kernel's drop list: an nftables table of this node's own, with a set of IPv4 addresses and one of IPv6 /64s.

What comes from them to the ports of our listeners is dropped before any socket sees it; each entry ends by the kernel's own
timer, also when the node is killed. All of it runs in a thread of its own: netlink is waited for, and its library does not run
on every event loop. The table is made by one transaction of the program `nft`, entries are written by netlink.

Without the right to do so (CAP_NET_ADMIN), or without nft, that is said once and nothing is dropped. A table that somebody
removed or emptied, as a firewall that is loaded anew does, is made again within `LOOK_S`, with all that was in it. Leaves out:
whom to drop (engine.drops).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import queue
import re
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["KernelDrops", "table_name"]

MAX_JOBS = 20_000  # entries and removals that wait for the thread
NFT_S = 10.0  # that nft may take
CLOSE_S = 5.0
LOOK_S = 5.0  # between two looks whether the rules are still there, each under 1 ms
INET = 1  # NFPROTO_INET of <linux/netfilter.h>
PRIORITY = -10  # before the filters that a firewall usually has
_SBIN = "/usr/sbin:/sbin"

_Job = tuple[str, int]  # source, seconds; 0: let it through again


def table_name(node: str) -> str:
    """The table of a node: nft takes letters, digits and underscores, so that two nodes of one machine have two names."""
    return "sipproxy_" + re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}_", node)


class KernelDrops:
    """See the module. `on_problem(text)` is called on the event loop that `start` ran on, once: why nothing is dropped.

    `counters` holds plain integers: `written`, `removed`, `errors`, `queue_full`, `restored`.
    """

    def __init__(self, node: str, ports: Sequence[tuple[str, int]], *, entries: int, on_problem: Callable[[str], None]) -> None:
        """`ports` are ("udp" or "tcp", port) of the listeners; `entries` the size of each set."""
        self.table = table_name(node)
        self.counters = {"written": 0, "removed": 0, "errors": 0, "queue_full": 0, "restored": 0}
        self._ports, self._entries = sorted(set(ports)), entries
        self._rules = [rule for transport in ("udp", "tcp") for rule in self._rules_of(transport)]
        self._on_problem = on_problem
        self._jobs: queue.Queue[_Job | None] = queue.Queue(MAX_JOBS)
        self._kept: dict[str, float] = {}  # source -> until when, monotonic; of the thread alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="drop-list", daemon=True)

    def start(self) -> None:
        """Make the table, empty, in the thread; entries may be put at once."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def put(self, source: str, for_s: int) -> None:
        """Drop an IPv4 address or an IPv6 /64 for so many seconds; 0 lets it through again."""
        try:
            self._jobs.put_nowait((source, for_s))
        except queue.Full:
            self.counters["queue_full"] += 1

    async def close(self) -> None:
        """Remove the table: a node that does not run drops nothing."""
        if self._thread.ident is not None:
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        try:
            self._jobs.put(None, timeout=CLOSE_S)
        except queue.Full:
            return  # the thread hangs in netlink; entries end by themselves
        self._thread.join(CLOSE_S)

    # In the thread

    def _run(self) -> None:
        problem = self._make()
        netlink: Any = None
        if not problem:
            try:
                from pyroute2.nftables.main import NFTables  # noqa: PLC0415  half a second, for those alone who drop

                netlink = NFTables(nfgen_family=INET)
            except (ImportError, OSError) as error:
                problem = f"netlink: {error}"
        if problem:
            self._tell(problem)
            return
        try:
            self._work(netlink)
        finally:
            netlink.close()
            self._nft(f"delete table inet {self.table}\n")

    def _work(self, netlink: Any) -> None:
        """Write what is put, and look after the table, until the end."""
        look_at = time.monotonic() + LOOK_S
        while True:
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=max(0.0, look_at - time.monotonic()))
                if job is None:
                    return
                self._write(netlink, *job)
            if time.monotonic() >= look_at:
                self._look(netlink)
                look_at = time.monotonic() + LOOK_S

    def _look(self, netlink: Any) -> None:
        """Make the table again when its rules are gone."""
        try:
            if self._count(netlink) < len(self._rules):
                self._restore(netlink)
        except OSError:
            self.counters["errors"] += 1

    def _count(self, netlink: Any) -> int:
        """How many rules of ours the kernel has. Raises OSError."""
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415
        from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETRULE, nft_rule_msg  # noqa: PLC0415

        ours = nft_rule_msg()
        ours["attrs"] = [("NFTA_RULE_TABLE", self.table), ("NFTA_RULE_CHAIN", "input")]
        try:
            return len(netlink.request_get(ours, NFT_MSG_GETRULE))
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error

    def _restore(self, netlink: Any) -> None:
        """Make the table again, with all entries that are not over. Raises OSError."""
        problem, now = self._make(), time.monotonic()
        if problem:
            raise OSError(errno.EIO, problem)
        self.counters["restored"] += 1
        self._forget(now)
        for kept, until in self._kept.items():
            self._element(netlink, "add", kept, max(1, round(until - now)))

    def _rules_of(self, transport: str) -> list[str]:
        ports = ", ".join(str(port) for kind, port in self._ports if kind == transport)
        to = f"{transport} dport {{ {ports} }}"
        found = (f"{to} ip saddr @drop4 counter drop", f"{to} ip6 saddr & ffff:ffff:ffff:ffff:: @drop6 counter drop")
        return list(found) if ports else []

    def _tell(self, problem: str) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._on_problem, problem)
        except RuntimeError:
            return  # the loop is closed: the node has left

    def _make(self) -> str:
        """Make the table anew and empty; why that cannot be done."""
        lines = [
            f"table inet {self.table} {{ }}",  # so that there is one to delete
            f"delete table inet {self.table}",
            f"table inet {self.table} {{",
            f"  set drop4 {{ type ipv4_addr; flags timeout; size {self._entries}; }}",
            f"  set drop6 {{ type ipv6_addr; flags timeout; size {self._entries}; }}",
            "  chain input {",
            f"    type filter hook input priority {PRIORITY}; policy accept;",
            *(f"    {rule}" for rule in self._rules),
            "  }",
            "}",
        ]
        return self._nft("\n".join(lines) + "\n")

    def _nft(self, script: str) -> str:
        """Run nft; what it has against it, "" for nothing."""
        program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
        if program is None:
            return "the program nft is not installed (package nftables)"
        try:
            done = subprocess.run(  # noqa: S603  our own script
                [program, "-f", "-"], input=script, capture_output=True, text=True, timeout=NFT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"nft: {error}"[:200]
        return (done.stderr.strip().splitlines() or ["nft failed"])[0][:200] if done.returncode else ""

    def _write(self, netlink: Any, source: str, for_s: int) -> None:
        now = time.monotonic()
        if for_s:
            self._kept[source] = now + for_s
        else:
            self._kept.pop(source, None)
        try:
            self._element(netlink, "del", source)  # an entry that is there keeps its time when it is added again
            if for_s:
                self._element(netlink, "add", source, for_s)
            self.counters["written" if for_s else "removed"] += 1
        except OSError as error:
            self._failed(netlink, error)
        if len(self._kept) > 2 * self._entries:
            self._forget(now)

    def _failed(self, netlink: Any, error: OSError) -> None:
        """An entry could not be written: without a table there is to be one again, with that entry in it."""
        try:
            if error.errno != errno.ENOENT:
                raise error
            self._restore(netlink)
        except OSError:
            self.counters["errors"] += 1

    def _forget(self, now: float) -> None:
        self._kept = {source: until for source, until in self._kept.items() if until > now}

    def _element(self, netlink: Any, command: str, source: str, for_s: int = 0) -> None:
        """Add or remove one element. Removing what is not there is no fault. Raises OSError."""
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415
        from pyroute2.nftables.main import NFTSet, NFTSetElem  # noqa: PLC0415

        address = ipaddress.ip_network(source)
        kind, name = ("ipv4_addr", "drop4") if address.version == 4 else ("ipv6_addr", "drop6")
        element = NFTSetElem(value=str(address.network_address), timeout=1000 * for_s or None)
        try:
            netlink.set_elems(command, set=NFTSet(table=self.table, name=name, key_type=kind), elements=[element])
        except NetlinkError as error:
            if command != "del" or error.code != errno.ENOENT:
                raise OSError(error.code, str(error)) from error
