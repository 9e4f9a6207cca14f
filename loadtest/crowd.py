"""Many sources from one process: what strangers send to a node, or one customer, and the routers of a whole town after a power
cut.

Run by `flood` and `storm` as a process of its own, so that what it does is not charged to the simulated parties:
`python -m loadtest.crowd` reads its task as JSON from standard input and writes what it did to standard output.
One socket sends from any number of addresses of 127/8 (IP_PKTINFO, Linux). Leaves out: TCP, other than MD5 digests.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

__all__ = ["source_host"]

_PKTINFO = struct.Struct("=I4s4s")  # ip(7): interface, local address, destination
_IP_PKTINFO = 8  # <linux/in.h>; not in Python's socket module before 3.12
BUFFER = 8 * 1024 * 1024
READ_AT_ONCE = 64
T1, T2, TRIES_S = 0.5, 4.0, 32.0  # RFC 3261 §17.1.2.2
AGAIN_S = 30.0  # a router whose REGISTER was not answered tries again
NONCE = re.compile(rb'nonce="([^"]+)"')
REALM = re.compile(rb'realm="([^"]+)"')
RETRY = re.compile(rb"\r\nRetry-After: *([0-9]+)")
PARTS = (b"BYE", b"ACK", b"INFO", b"INVITE", b"UPDATE", b"OPTIONS", b"CANCEL")
USER_AGENTS = (b"friendly-scanner", b"Linksys/SPA942", b"AVM FRITZ!Box 7590")


def source_host(number: int) -> str:
    """The address of source `number`, counted from 0, on the loopback interface."""
    return f"127.{16 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


class Wire:
    """A UDP socket that sends from, and hears for, all of 127/8."""

    def __init__(self, node: tuple[str, int]) -> None:
        self._node = node
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._socket.bind(("0.0.0.0", 0))
        self._socket.settimeout(0)
        self.port: int = self._socket.getsockname()[1]
        self.sent = self.sent_bytes = self.heard = self.heard_bytes = self.blocked = 0

    def send(self, data: bytes, source: bytes) -> None:
        """Send from this address (four bytes)."""
        info = _PKTINFO.pack(0, source, b"\0\0\0\0")
        try:
            self._socket.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, self._node)
        except BlockingIOError:
            self.blocked += 1
            return
        self.sent += 1
        self.sent_bytes += len(data)

    def read(self, wait_s: float) -> list[tuple[bytes, bytes]]:
        """What came, with the address that it came to; waits so long for the first."""
        found: list[tuple[bytes, bytes]] = []
        if wait_s > 0:
            select.select([self._socket], [], [], wait_s)
        for _ in range(READ_AT_ONCE):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65_535, 64)
            except BlockingIOError:
                break
            self.heard += 1
            self.heard_bytes += len(data)
            found.append((data, _PKTINFO.unpack_from(ancillary[0][2])[1] if ancillary else b""))
        return found


# -- strangers


def spray(task: dict[str, object]) -> dict[str, object]:
    """Send `rate` messages a second for `seconds`: OPTIONS, REGISTER, INVITE and what is no SIP from `sources` addresses; for a
    task with an account, what looks like parts of calls from the address where its router is registered."""
    rate, seconds = float(str(task["rate"])), float(str(task["seconds"]))
    is_customer = "accounts" in task
    sources = 1 if is_customer else int(str(task["sources"]))
    wire = _registered(task) if is_customer else Wire((str(task["host"]), int(str(task["port"]))))
    message = customer_message if is_customer else stranger_message
    hosts = [source_host(number) for number in range(sources)]
    packed = [socket.inet_aton(host) for host in hosts]
    got = [0] * sources
    gave = [0] * sources
    place = {address: number for number, address in enumerate(packed)}
    began, before = time.monotonic(), wire.sent
    number = 0
    over = 0  # sources that at some time had got more bytes than they had sent
    while (now := time.monotonic()) - began < seconds:
        due = int((now - began) * rate)
        while number < due:
            source = number % sources
            data = message(number, hosts[source], wire.port)
            wire.send(data, packed[source])
            gave[source] += len(data)
            number += 1
        for data, address in wire.read(0.002):
            at = place[address]
            got[at] += len(data)
            over += got[at] > gave[at]
    took, sent = time.monotonic() - began, wire.sent - before
    return {
        "sent": sent, "per_second": sent / took, "blocked": wire.blocked, "sent_bytes": wire.sent_bytes,
        "heard": wire.heard, "heard_bytes": wire.heard_bytes, "over": over, "cpu_s": time.process_time(),
    }  # fmt: skip


def stranger_message(number: int, host: str, port: int) -> bytes:
    """The message with this number: one in ten is no SIP, the others are of three kinds in turn."""
    if number % 10 == 9:
        return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"%d" % number
    method = (b"OPTIONS", b"REGISTER", b"INVITE")[number % 3]
    place = b"%b:%d" % (host.encode(), port)
    uri = b"sip:0900%d@sip.example" % number if method == b"INVITE" else b"sip:sip.example"
    return (
        b"%b %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bKs%d;rport\r\nMax-Forwards: 70\r\n"
        b"From: <sip:%d@sip.example>;tag=s%d\r\nTo: <%b>\r\nCall-ID: s%d\r\nCSeq: 1 %b\r\nContact: <sip:%d@%b>\r\n"
        b"User-Agent: %b\r\nContent-Length: 0\r\n\r\n"
    ) % (method, uri, place, number, number, number, uri, number, method, number, place, USER_AGENTS[number % 3])


def customer_message(number: int, host: str, port: int) -> bytes:
    """The message with this number: a part of a call that nobody knows, a request or a response."""
    place = b"%b:%d" % (host.encode(), port)
    method = PARTS[number % len(PARTS)]
    rest = (
        b"Via: SIP/2.0/UDP %b;branch=z9hG4bKp%d;rport\r\nMax-Forwards: 70\r\nFrom: <sip:a@sip.example>;tag=a%d\r\n"
        b"To: <sip:b@sip.example>;tag=b%d\r\nCall-ID: p%d\r\nCSeq: 1 %b\r\nContact: <sip:a@%b>\r\nContent-Length: 0\r\n\r\n"
    ) % (place, number, number, number, number, method, place)
    return (b"SIP/2.0 200 OK\r\n" if number % 10 == 9 else b"%b sip:b@sip.example SIP/2.0\r\n" % method) + rest


def _registered(task: dict[str, object]) -> Wire:
    """The socket of a router that is registered. Raises RuntimeError when it could not be."""
    town = Town(task)
    if town.register_all(0.0, run="flood", limit_s=TRIES_S)["registered"] != 1:
        raise RuntimeError(f"the customer is not registered: {town.answers}")
    return town.wire


# -- routers


@dataclass(slots=True)
class Box:
    """One router with one account: where it is in its registration. Times are monotonic seconds."""

    number: int
    user: bytes
    password: bytes
    host: str
    packed: bytes
    call_id: bytes = b""
    cseq: int = 0
    authorization: bytes = b""
    interval: float = T1
    began_at: float = 0.0  # of this attempt
    first_at: float = 0.0  # when it wanted to register
    waiting: bool = False
    done_at: float = 0.0
    statuses: list[int] = field(default_factory=list)


class Town:
    """Routers that register, wait when told so, and repeat what is not answered."""

    def __init__(self, task: dict[str, object]) -> None:
        self.domain = str(task["domain"]).encode()
        self.wire = Wire((str(task["host"]), int(str(task["port"]))))
        accounts = task["accounts"]
        assert isinstance(accounts, list)
        self.boxes = []
        for number, (user, password) in enumerate(accounts):
            host = source_host(number)
            self.boxes.append(Box(number, user.encode(), password.encode(), host, socket.inet_aton(host)))
        self.by_address = {box.packed: box for box in self.boxes}
        self._timers: list[tuple[float, int, int]] = []  # when, router, its CSeq (-1: a new attempt)
        self.repeats = 0
        self.answers: dict[int, int] = {}

    def register_all(self, over_s: float, *, run: str, limit_s: float) -> dict[str, object]:
        """Every router begins anew within `over_s` seconds; ends when all are registered, or after `limit_s`."""
        began = time.monotonic()
        self._timers = [(began + over_s * index / len(self.boxes), index, -1) for index in range(len(self.boxes))]
        heapq.heapify(self._timers)
        self.repeats, self.answers = 0, {}
        sent_before, left = self.wire.sent, len(self.boxes)
        for box in self.boxes:
            box.call_id, box.cseq, box.authorization = b"%b-%b" % (run.encode(), box.user), 0, b""
            box.first_at = box.done_at = 0.0
        first_sent = 0.0
        while left and (now := time.monotonic()) - began < limit_s:
            while self._timers and self._timers[0][0] <= now:
                _, index, cseq = heapq.heappop(self._timers)
                self._due(self.boxes[index], cseq, now)
                if index == len(self.boxes) - 1 and cseq == -1 and not first_sent:
                    first_sent = time.monotonic() - began  # the last router has begun: what the generator made of `over_s`
            wait = min(0.005, max(0.0, self._timers[0][0] - now)) if self._timers else 0.005
            for data, address in self.wire.read(wait):
                left -= self._answer(self.by_address[address], data)
        took = [box.done_at - box.first_at for box in self.boxes if box.done_at]
        return {
            "registered": len(took), "seconds": time.monotonic() - began, "began_within_s": first_sent, "took_s": took,
            "sent": self.wire.sent - sent_before, "repeats": self.repeats, "answers": self.answers,
        }  # fmt: skip

    def _due(self, box: Box, cseq: int, now: float) -> None:
        if box.done_at or (cseq not in (-1, box.cseq)) or (cseq >= 0 and not box.waiting):
            return
        if cseq == -1:
            box.first_at = box.first_at or now
            self._send_new(box, now)
        elif now - box.began_at >= TRIES_S:
            heapq.heappush(self._timers, (now + AGAIN_S, box.number, -1))  # Timer F
        else:
            self.repeats += 1
            self._send(box, now)

    def _send_new(self, box: Box, now: float) -> None:
        box.cseq += 1
        box.interval, box.began_at, box.waiting = T1, now, True
        self._send(box, now)

    def _send(self, box: Box, now: float) -> None:
        place = b"%b:%d" % (box.host.encode(), self.wire.port)
        aor = b"<sip:%b@%b>" % (box.user, self.domain)
        data = (
            b"REGISTER sip:%b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bK%b-%d;rport\r\nMax-Forwards: 70\r\n"
            b"From: %b;tag=%b\r\nTo: %b\r\nCall-ID: %b\r\nCSeq: %d REGISTER\r\nContact: <sip:%b@%b>\r\nExpires: 3600\r\n"
            b"User-Agent: AVM FRITZ!Box 7590 154.07.57\r\nSupported: 100rel,replaces,timer\r\n"
            b"Allow: INVITE,ACK,OPTIONS,CANCEL,BYE,UPDATE,PRACK,INFO,SUBSCRIBE,NOTIFY,REFER,MESSAGE\r\n"
            b"Allow-Events: telephone-event,refer,reg\r\n%bContent-Length: 0\r\n\r\n"
        ) % (
            self.domain, place, box.call_id, box.cseq, aor, box.user, aor, box.call_id, box.cseq, box.user, place,
            box.authorization,
        )  # fmt: skip
        self.wire.send(data, box.packed)
        heapq.heappush(self._timers, (now + box.interval, box.number, box.cseq))
        box.interval = min(2 * box.interval, T2)

    def _answer(self, box: Box, data: bytes) -> int:
        """Take a response; 1 when it says that the router is registered."""
        if box.done_at or not box.waiting or b"\r\nCSeq: %d " % box.cseq not in data or not data.startswith(b"SIP/2.0 "):
            return 0
        status = int(data[8:11])
        now = time.monotonic()
        self.answers[status] = self.answers.get(status, 0) + 1
        box.waiting = False
        if status == 401:
            self._challenged(box, data)
            self._send_new(box, now)
        elif status == 200:
            box.done_at = now
            return 1
        else:
            wait = RETRY.search(data)
            box.authorization = b""
            heapq.heappush(self._timers, (now + (float(wait[1]) if wait else AGAIN_S), box.number, -1))
        return 0

    def _challenged(self, box: Box, data: bytes) -> None:
        nonce, realm = NONCE.search(data), REALM.search(data)
        assert nonce is not None
        assert realm is not None
        uri = b"sip:" + self.domain
        secret = _md5(b"%b:%b:%b" % (box.user, realm[1], box.password))
        response = _md5(b"%b:%b:00000001:c:auth:%b" % (secret, nonce[1], _md5(b"REGISTER:" + uri)))
        box.authorization = (
            b'Authorization: Digest username="%b", realm="%b", nonce="%b", uri="%b", response="%b", algorithm=MD5, '
            b'qop=auth, nc=00000001, cnonce="c"\r\n'
        ) % (box.user, realm[1], nonce[1], uri, response)


def _md5(text: bytes) -> bytes:
    return hashlib.md5(text, usedforsecurity=False).hexdigest().encode()


def _town(task: dict[str, object]) -> None:
    """Register everybody slowly, say so, and when told to begin, everybody within `over_s` seconds."""
    town = Town(task)
    limit_s = float(str(task["limit_s"]))
    _tell(town.register_all(float(str(task["calm_s"])), run="calm", limit_s=limit_s))
    if sys.stdin.readline():
        _tell({**town.register_all(float(str(task["over_s"])), run="storm", limit_s=limit_s), "cpu_s": time.process_time()})


def _tell(result: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read the task, do it, tell what was done."""
    task = json.loads(sys.stdin.readline())
    if task["what"] == "spray":
        _tell(spray(task))
    else:
        _town(task)


if __name__ == "__main__":
    main()
