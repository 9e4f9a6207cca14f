"""How far behind those are who read the stream, for the metrics of a node.

Every few seconds one script tells, for each consumer group, how many entries it has not acknowledged, how old the oldest of
them is and when a pull for it was complete; and how many dead letters lie there. All by the store's clock, over a connection
of its own, so that nobody else waits for the answer. What is not known is not shown: the last answer goes when the next one
does not come. Left out: consumers by name, which come and go (`sipproxy cdr groups` lists them).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import InvalidResponse, RedisError

from cdr.dead import dead_key
from cdr.groups import POSITIONS
from cdr.lease import pulls_key
from cdr.wire import Link, Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["MAX_GROUPS", "Backlog", "Readers", "Seen", "look"]

EVERY_S = 10.0
TIMEOUT_S = 5.0
MAX_GROUPS = 100  # told by name: those that are furthest behind; others are counted
MAX_NAME = 80  # characters; a group may have any name

# Returns {letters, groups}, and for each group that is told its name, entries (-1: the store cannot tell), the age of the
# oldest in ms, and how long ago a pull was complete in ms (-1: none was).
_LOOK = Script(
    POSITIONS
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local groups = positions(KEYS[1])
table.sort(groups, function(a, b) return before(a.first, b.first) end)
local reply = {redis.call('XLEN', KEYS[2]), #groups}
for i = 1, math.min(#groups, tonumber(ARGV[1])) do
  local group, since = groups[i], now
  if group.is_pending then
    since = group.first[1]
  else
    local unread = redis.call('XRANGE', KEYS[1], text_of(group.first), '+', 'COUNT', 1)
    if unread[1] then
      since = id_of(unread[1][1])[1]
    end
  end
  local pulled = tonumber(redis.call('HGET', KEYS[3], group.name) or '')
  reply[#reply + 1] = group.name
  reply[#reply + 1] = group.unread and group.unread + group.pending or -1
  reply[#reply + 1] = math.max(0, now - since)
  reply[#reply + 1] = pulled and math.max(0, now - pulled) or -1
end
return reply
"""
)


class Backlog(NamedTuple):
    """One group: entries that it has not acknowledged (None: the store cannot tell since some were deleted), for how long the
    oldest of them has been there, and how long ago a pull for it was complete (None: none was)."""

    entries: int | None
    oldest_s: float
    pulled_s: float | None


class Seen(NamedTuple):
    """Dead letters, the groups that are furthest behind, and how many more there are."""

    letters: int
    groups: dict[str, Backlog]
    untold: int


async def look(link: Link, stream: str) -> Seen:
    """What the store tells now. Raises RedisError and OSError as `Link.call` does."""
    reply = await _LOOK.run(link, (stream, dead_key(stream), pulls_key(stream)), MAX_GROUPS)
    if not (isinstance(reply, list) and len(reply) % 4 == 2):
        raise InvalidResponse(f"no backlogs: {reply!r:.80}")
    letters, known, *rest = reply
    groups: dict[str, Backlog] = {}
    for name, entries, oldest_ms, pulled_ms in zip(*(iter(rest),) * 4, strict=True):
        backlog = Backlog(entries if entries >= 0 else None, oldest_ms / 1000, pulled_ms / 1000 if pulled_ms >= 0 else None)
        groups.setdefault(name.decode("utf-8", "replace")[:MAX_NAME], backlog)  # of two that look alike the one further behind
    return Seen(letters, groups, known - len(groups))


class Readers:
    """`seen` is what the store told last, None while it does not answer. `run` is the task that asks."""

    def __init__(self, client: Redis, stream: str, *, every_s: float = EVERY_S, timeout_s: float = TIMEOUT_S) -> None:
        self.seen: Seen | None = None
        self._link = Link(client, timeout_s=timeout_s)
        self._stream = stream
        self._every_s = every_s

    async def run(self) -> None:
        """Ask until cancelled. Raises nothing of the store's."""
        try:
            while True:
                try:
                    self.seen = await look(self._link, self._stream)
                except (RedisError, OSError):
                    self.seen = None
                await asyncio.sleep(self._every_s)
        finally:
            await self._link.drop()
