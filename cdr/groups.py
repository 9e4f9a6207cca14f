"""How far consumer groups have come in the stream of records (design: §6).

An entry is acknowledged by a group when the group has read it and it is pending no more. What lies before the first entry that
is not acknowledged is safe with whoever reads as that group; trimming and the journal go by that position and by no other.
A group begins at 0 (`XGROUP CREATE stream group 0 MKSTREAM`): one that begins at `$` says of everything before that it was
acknowledged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import InvalidResponse

from cdr.wire import Script

if TYPE_CHECKING:
    from cdr.wire import Link

__all__ = ["POSITIONS", "EntryId", "acknowledged", "entry_id", "positions"]

# For each group of a stream its name and `first`, the id of the first entry that it has not acknowledged: the first pending
# one, or the one behind the last that was delivered. The lower of both, should somebody have set the group back. With it,
# whether that entry is pending, how many are, and how many are unread, nil where the store does not know. For other scripts.
POSITIONS = """
local function before(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end
local function id_of(text)
  local ms, serial = string.match(text, '^(%d+)-(%d+)$')
  return {tonumber(ms), tonumber(serial)}
end
local function text_of(id)
  return string.format('%.0f-%.0f', id[1], id[2])
end
local function positions(stream)
  local found = {}
  if redis.call('EXISTS', stream) == 0 then
    return found
  end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local about = {}
    for i = 1, #group, 2 do
      about[group[i]] = group[i + 1]
    end
    local first, is_pending = id_of(about['last-delivered-id']), false
    first[2] = first[2] + 1
    local pending = redis.call('XPENDING', stream, about['name'])
    if pending[1] > 0 and before(id_of(pending[2]), first) then
      first, is_pending = id_of(pending[2]), true
    end
    found[#found + 1] =
      {name = about['name'], first = first, is_pending = is_pending, pending = pending[1], unread = about['lag'] or nil}
  end
  return found
end
"""
_ASK = Script(
    POSITIONS
    + """
local reply = {}
for _, group in ipairs(positions(KEYS[1])) do
  reply[#reply + 1] = group.name
  reply[#reply + 1] = text_of(group.first)
end
return reply
"""
)


class EntryId(NamedTuple):
    """The id of an entry of a stream; ids compare as the entries stand."""

    ms: int
    serial: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.serial}"


def entry_id(data: bytes | str) -> EntryId:
    """The id in `data`, as in `1790000000000-3`. Raises ValueError for anything else."""
    text = data.decode("ascii", "replace") if isinstance(data, bytes) else data
    ms, dash, serial = text.partition("-")
    if not (dash and text.isascii() and ms.isdigit() and serial.isdigit()):
        raise ValueError(f"no entry id of a stream: {text!r:.60}")
    return EntryId(int(ms), int(serial))


async def positions(link: Link, stream: str) -> dict[str, EntryId]:
    """Each group's first entry that is not acknowledged, which may not exist yet: all before it is. Empty without a stream.

    Raises RedisError and OSError as `Link.call` does.
    """
    reply = await _ASK.run(link, (stream,))
    if not isinstance(reply, list) or len(reply) % 2:
        raise InvalidResponse(f"not pairs of group and position: {reply!r:.80}")
    return {name.decode("utf-8", "replace"): entry_id(first) for name, first in zip(reply[::2], reply[1::2], strict=True)}


async def acknowledged(link: Link, stream: str, group: str) -> EntryId | None:
    """Everything before this entry was acknowledged by the group; None when there is no such group. Raises as `positions`."""
    return (await positions(link, stream)).get(group)
