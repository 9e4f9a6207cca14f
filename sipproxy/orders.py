"""What the supervisor of a node gives a worker at its start, and tells it later. Imported by both: light."""

from __future__ import annotations

import msgspec

from sipproxy.config import Config, Limits, Log  # noqa: TC001  msgspec needs them to decode

__all__ = ["Live", "Orders", "Spec", "State"]


class Spec(msgspec.Struct, frozen=True):
    """What the supervisor gives a worker: which one it is, and its descriptors.

    `udp` are by listener, each with one socket for each of the `count` workers that messages are spread over; a worker beyond
    them has none: it ends its calls and leaves. `streams` are the listening socket of each listener or -1. `lock` is held by
    all processes of the node as long as they live; `taken` is the file of `net.taken`.
    """

    worker: int
    count: int
    names: list[str]  # of all workers that there are or were, in order
    shared_dir: str
    bound: list[tuple[str, str, int]]
    udp: list[list[int]]
    streams: list[int]
    inboxes: list[int]
    outboxes: list[int]
    link: int
    lock: int
    config_path: str
    welcome: bool = False
    supervisor: int = 0  # its process
    taken: int = -1

    @property
    def is_leaving(self) -> bool:
        return self.worker > self.count


class State(msgspec.Struct, frozen=True, tag=True):
    """What the supervisor tells: which workers there are, whose datagrams this one reads for them, and which are to leave."""

    alive: list[int]
    read: list[int] = []
    leaving: list[int] = []


class Live(msgspec.Struct, frozen=True, tag=True):
    """What of the configuration changes without a restart; policy files reach the workers by the store."""

    log: Log
    limits: Limits

    @classmethod
    def of(cls, config: Config) -> Live:
        return cls(config.log, config.limits)


class Orders(msgspec.Struct, frozen=True):
    """The configuration as the supervisor read it, so that all workers have the same one; and the descriptors."""

    config: Config
    spec: Spec
