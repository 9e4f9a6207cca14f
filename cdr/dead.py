"""The dead-letter stream: entries that a group could not take, each with its reason, the group and what stood there.

Moving an entry there and acknowledging it is one script, so that a letter is written exactly once, and always before the entry
is acknowledged. The stream is never trimmed by itself: when it holds `limit` letters no more are taken, and what would go there
stays unacknowledged in its group, which holds up trimming and shows in the group's pending entries. People look at a letter and
then requeue or drop it.

Requeued, it goes to its group alone: an entry that the stream still has becomes pending again, and a copy of any other is
appended with the field `for`, which other groups skip. In a Cluster both keys are in one slot, as with `cdr.publisher`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from cdr.entries import ADDRESSEE, Fields, entry_of, pairs
from cdr.place import beside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cdr.entries import Poison
    from cdr.facts import Record

    Call = Callable[..., Awaitable[Any]]  # what `cdr.wire.Link.call` is

__all__ = ["LIMIT", "Letter", "bury", "dead_key", "drop", "letters", "requeue"]

LIMIT = 100_000  # letters, each as long as its record
PAGE = 200
PREFIX = b"x:"  # of the fields that the entry itself had
IDLE_MS = 86_400_000  # what is requeued counts as abandoned, so that whoever looks next takes it

# Returns 1, 0 when the entry is not pending any more (somebody acknowledged it), -1 when there are too many letters.
BURY = """
local id, group = ARGV[1], ARGV[2]
if ARGV[4] == '0' and #redis.call('XPENDING', KEYS[1], group, id, id, 1) == 0 then
  return 0
end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then
  return -1
end
local reply = redis.pcall('XADD', KEYS[2], '*', unpack(ARGV, 5))
if type(reply) == 'table' and reply.err then
  return reply
end
redis.call('XACK', KEYS[1], group, id)
return 1
"""

# Returns 1, 0 when there is no such letter, -1 when the letter holds no entry that could be given out again.
REQUEUE = """
local found = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])
if #found == 0 then
  return 0
end
local group, id, fields = '', '', {}
local parts = found[1][2]
for i = 1, #parts, 2 do
  if parts[i] == 'group' then
    group = parts[i + 1]
  elseif parts[i] == 'entry' then
    id = parts[i + 1]
  elseif string.sub(parts[i], 1, 2) == 'x:' and parts[i] ~= 'x:for' then
    fields[#fields + 1] = string.sub(parts[i], 3)
    fields[#fields + 1] = parts[i + 1]
  end
end
local reply
if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
  reply = redis.pcall('XCLAIM', KEYS[1], group, 'requeued', 0, id, 'IDLE', ARGV[2], 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
elseif #fields == 0 then
  return -1
else
  fields[#fields + 1] = 'for'
  fields[#fields + 1] = group
  reply = redis.pcall('XADD', KEYS[1], '*', unpack(fields))
end
if type(reply) == 'table' and reply.err then
  return reply
end
redis.call('XDEL', KEYS[2], ARGV[1])
return 1
"""


class Letter(NamedTuple):
    """One dead letter. `id` is its own, `entry_id` that of the entry in the record stream."""

    id: str
    entry_id: str
    group: str
    reason: str
    at_ms: int
    deliveries: int
    fields: Fields  # of the entry as it was, empty when the stream had lost it

    @property
    def content(self) -> Record | Poison:
        return entry_of(self.entry_id.encode(), self.fields)


def dead_key(stream: str) -> str:
    """The key of the letters, in the slot of the record stream. Raises ValueError for braces that are no hash tag."""
    return beside(stream, "dead")


async def bury(call: Call, stream: str, letter: Letter, *, limit: int = LIMIT, gone: bool = False) -> int:
    """Write a letter (its id and stamp are given here) and acknowledge the entry: 1; 0 when it was acknowledged by others, -1
    when there are `limit` letters. `gone` is an entry that the record stream has lost.

    Raises what `call` raises; then nothing was done, or all of it.
    """
    head: list[str | bytes | int] = ["entry", letter.entry_id, "group", letter.group, "reason", letter.reason[:1000]]
    head += ["at_ms", time.time_ns() // 1_000_000, "deliveries", letter.deliveries]
    body = [part for name, value in letter.fields.items() for part in (PREFIX + name, value)]
    keys = (stream, dead_key(stream))
    return int(await call("EVAL", BURY, 2, *keys, letter.entry_id, letter.group, limit, int(gone), *head, *body))


async def letters(call: Call, stream: str, *, start: str = "-", count: int = 0) -> AsyncIterator[Letter]:
    """The letters from the oldest on, at most `count` (0: all)."""
    left = count
    while left > 0 or count == 0:
        page = pairs(await call("XRANGE", dead_key(stream), start, "+", "COUNT", min(left, PAGE) if count else PAGE))
        for letter_id, fields in page:
            yield _letter(letter_id, fields)
        if not page:
            return
        left -= len(page)
        start = "(" + page[-1][0].decode("ascii")


async def requeue(call: Call, stream: str, letter_id: str) -> int:
    """Give the letter's entry to its group again: 1; 0 when there is no such letter, -1 when it holds no entry."""
    return int(await call("EVAL", REQUEUE, 2, stream, dead_key(stream), letter_id, IDLE_MS))


async def drop(call: Call, stream: str, letter_id: str) -> bool:
    """Delete the letter; whether it was there."""
    return bool(await call("XDEL", dead_key(stream), letter_id))


def _letter(letter_id: bytes, fields: Fields) -> Letter:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    def number(name: bytes) -> int:
        value = fields.get(name, b"")
        return int(value) if value.isdigit() else 0

    entry = {name[len(PREFIX) :]: value for name, value in fields.items() if name.startswith(PREFIX)}
    entry.pop(ADDRESSEE, None)
    return Letter(
        letter_id.decode("ascii", "replace"),
        text(b"entry"),
        text(b"group"),
        text(b"reason"),
        number(b"at_ms"),
        number(b"deliveries"),
        entry,
    )
