"""Q.850 causes of SIP final responses (RFC 3398 §8.2.6.1), and what a peer's Reason header says (RFC 3326)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.sip.message import Message

__all__ = [
    "NORMAL_CLEARING",
    "NORMAL_UNSPECIFIED",
    "NO_CHANNEL",
    "SUBSCRIBER_ABSENT",
    "TEMPORARY_FAILURE",
    "TIMER_EXPIRY",
    "cause_of",
]

SUBSCRIBER_ABSENT = 20  # no binding, or none that can be reached
TEMPORARY_FAILURE = 41
NO_CHANNEL = 34  # no circuit or channel available
NORMAL_CLEARING = 16
NORMAL_UNSPECIFIED = 31
TIMER_EXPIRY = 102  # recovery on timer expiry

BY_STATUS = {
    200: NORMAL_CLEARING, 400: 41, 401: 21, 402: 21, 403: 21, 404: 1, 405: 63, 406: 79, 407: 21, 408: 102, 410: 22, 413: 127,
    414: 127, 415: 79, 416: 127, 420: 127, 421: 127, 423: 127, 433: 21, 480: 18, 481: 41, 482: 25, 483: 25, 484: 28, 485: 1,
    486: 17, 487: 16, 488: 65, 500: 41, 501: 79, 502: 38, 503: 41, 504: 102, 505: 127, 513: 127, 580: 47,
    600: 17, 603: 21, 604: 1, 606: 65,
}  # fmt: skip


def cause_of(message: Message | None, status: int) -> int:
    """The Q.850 cause that the message's Reason header names, else the one its status maps to; 127 when unknown."""
    if message is not None and b"reason" in message.first_line:
        for value in message.values(b"reason")[:8]:
            protocol, _, rest = value.partition(b";")
            if protocol.strip().lower() != b"q.850":
                continue
            for param in rest.split(b";")[:16]:
                name, _, number = param.partition(b"=")
                number = number.strip()
                if name.strip().lower() == b"cause" and number.isdigit() and len(number) <= 3 and int(number) < 128:
                    return int(number)
    return BY_STATUS.get(status, 127)
