"""What the supervisor of a node gives a worker at its start, and tells it later. Imported by both: light."""

from __future__ import annotations

import msgspec

from sipproxy.config import Config, Limits, Log  # noqa: TC001  msgspec needs them to decode

__all__ = ["Live", "Orders", "Spec", "State"]


class Spec(msgspec.Struct, frozen=True):
    """What the supervisor gives a worker: which one it is, and its descriptors.

    `udp` are by listener, each with one socket for each worker; `streams` the listening socket of each listener or -1. `lock`
    is held by all processes of the node as long as they live.
    """

    worker: int
    names: list[str]  # of all workers, in order
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


class State(msgspec.Struct, frozen=True, tag=True):
    """What the supervisor tells: which workers there are, and whose datagrams this one reads for them."""

    alive: list[int]
    read: list[int] = []


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
