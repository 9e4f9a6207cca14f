"""What a submitted command can come back with instead of a reply, by name.

Two kinds: the server answered with an error (`ReplyError`, named by its first word), or there is no answer. Then the name
says what is known: `AWAY`, `FULL`, `SUPERSEDED`: the command never left, it was certainly not executed; `LOST`: it left
and its reply did not come back, it may or may not have been executed.
"""

from __future__ import annotations

__all__ = ["SERVER_STATES", "UNUSABLE", "ReplyError", "StoreError", "next_of", "unusable_mode"]

# Errors that tell the state of the server and not of the one command: all commands would fare alike until it changes.
SERVER_STATES = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    }
)

# What a server says of itself that no store can be, by the name under which it is refused, and what to do.
UNUSABLE = {
    "CLUSTER": "it is a server of a Redis Cluster, where the keys of one script may lie on several servers; name a standalone"
    ' one, with replicas where wanted (docs/operation.md, "Which store")',
    "SENTINEL": "it is a Sentinel, which holds no data; name the server that it watches, or an address that follows it"
    ' (docs/operation.md, "Which store")',
}


def unusable_mode(info: bytes) -> str:
    """The name in UNUSABLE of a server whose `INFO server` this is, "" for one that can be used or does not say."""
    for line in info.splitlines():
        name, _, mode = line.decode("ascii", "replace").partition(":")
        if name in {"redis_mode", "server_mode"} and mode.upper() in UNUSABLE:  # as Redis and Valkey call it
            return mode.upper()
    return ""


class StoreError(Exception):
    """A command without a result; `name` says why in one upper-case word."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name = name


class ReplyError(StoreError):
    """An error reply of the server."""

    def __init__(self, text: str) -> None:
        super().__init__(_name_of(text), text[:200])

    @property
    def is_server_state(self) -> bool:
        return self.name in SERVER_STATES


def next_of(replies: list[object]) -> object:
    """Take the first of the replies. Raises it where it is a StoreError, which then nobody else has: with a frame in which it
    is, each would keep the other until the collector looks, on a busy node once a day."""
    reply = replies.pop(0)
    if isinstance(reply, StoreError):
        try:
            raise reply
        finally:
            del reply
    return reply


def _name_of(text: str) -> str:
    """Return the error's name; Redis before 7 hides the one of a command called by a script behind `ERR ...: -OOM ...`."""
    first = text.split(" ", 1)[0].rstrip(":")
    if first == "ERR":
        for word in text.split():
            if word.startswith("-") and word[1:] in SERVER_STATES:
                return word[1:]
    return first if first.isascii() and first.isupper() and len(first) <= 20 else "ERR"
