"""The node's end of the stream: scripts that append, look and trim, each whole or not at all (design: §6).

A record is appended by a script that compares its number with the node's mark, a hash at `mark_key`, and moves the mark with
it: a batch that is sent again after a lost reply changes nothing. The mark holds `seq`, the highest number appended, `id`, that
entry's id, and which run of the node wrote it (`run`, `token`):

- a command of an earlier run that reaches the store late (it was stopped, and its socket still held the command) is refused;
- a mark above every number that this journal has given (the journal was lost or is an old copy) hides none of its records;
- a mark below what was sent but not confirmed (the store was emptied or fell back), or one whose entry the stream never had
  (the stream alone was deleted), makes us send it again.

Start and interim records of live calls have no number. They name the highest number that was given when they were made: once
the stream has a higher one, which may be the call's own final record, they are refused. So none ever follows its final record.

In a Cluster both keys must be in one slot: a key with `{...}` in it is placed by what the braces hold. A stream's key that has
braces keeps them in its mark's key, any other is itself put into braces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import InvalidResponse

from cdr.groups import POSITIONS, EntryId, entry_id
from cdr.place import beside, is_tagged
from cdr.wire import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.reading import Entry
    from cdr.wire import Link

__all__ = ["TRIM_ENTRIES", "Mark", "Seen", "Stream", "mark_key", "marked_nodes"]

TRIM_ENTRIES = 10_000  # removed at one look, which bounds the time that the store is busy with it

SCANNED = 1000  # keys that the store looks at for one answer

# `claim` reads the mark: its number as far as it means something to this run; -1 and the run when a later run wrote it.
_CLAIM = """
local node, my_run, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local function last_id()
  local about = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then return about[i + 1] end
  end
end
local function claim()
  local mark = redis.call('HMGET', KEYS[2], 'seq', 'run', 'token', 'id')
  local last, run = tonumber(mark[1] or '0'), tonumber(mark[2] or '0')
  if run > my_run or (run == my_run and mark[3] and mark[3] ~= token) then
    return -1, run
  end
  if mark[3] ~= token then
    last = math.min(last, tonumber(ARGV[4]))
  end
  if last > 0 and redis.call('EXISTS', KEYS[1]) == 0 then
    last = 0
  end
  return last, mark[4]
end
local function keep(last, id)
  redis.call('HSET', KEYS[2], 'seq', string.format('%d', last), 'run', string.format('%d', my_run), 'token', token, 'id', id)
end
"""

# Returns {appended, mark, id}; {-1, run, ''} when a later run has written the mark; {-2, mark, ''} when what was sent is lost.
_APPEND = Script(
    _CLAIM
    + """
local last, id = claim()
if last == -1 then
  return {-1, id, ''}
end
if last < tonumber(ARGV[5]) then
  return {-2, last, ''}
end
local highest, added, failed = tonumber(ARGV[6]), 0, nil
for i = 7, #ARGV, 5 do
  local seq = tonumber(ARGV[i])
  if seq > last or (seq == 0 and last <= highest) then
    local reply = redis.pcall('XADD', KEYS[1], '*', 'id', ARGV[i + 1], 'v', ARGV[i + 2], 'type', ARGV[i + 3],
      'node', node, 'seq', ARGV[i], 'd', ARGV[i + 4])
    if type(reply) == 'table' and reply.err then
      failed = reply
      break
    end
    added = added + 1
    if seq > 0 then
      last, id = seq, reply
    end
  end
end
if not id and redis.call('EXISTS', KEYS[1]) == 1 then
  id = last_id()
end
keep(last, id or '')
return failed or {added, last, id or ''}
"""
)

# Returns {mark, id, acknowledged by all sinks or '', entries, trimmed}; {-1, run} when a later run has written the mark.
_LOOK = Script(
    _CLAIM
    + POSITIONS
    + """
local last, id = claim()
if last == -1 then
  return {-1, id, '', 0, 0}
end
local here = redis.call('EXISTS', KEYS[1]) == 1
local newest = here and last_id() or ''
if last > 0 and (id or '') ~= '' and before(id_of(newest), id_of(id)) then
  last, id = 0, ''
end
if (id or '') == '' then
  id = newest
end
keep(last, id)
local groups, lowest = {}, nil
for _, group in ipairs(positions(KEYS[1])) do
  groups[group.name] = group.first
  if not lowest or before(group.first, lowest) then
    lowest = group.first
  end
end
local sinks, complete = nil, true
for i = 6, #ARGV do
  local first = groups[ARGV[i]]
  if not first then
    complete = false
  elseif not sinks or before(first, sinks) then
    sinks = first
  end
end
local length, trimmed, most = here and redis.call('XLEN', KEYS[1]) or 0, 0, tonumber(ARGV[5])
local cursor = redis.call('GET', KEYS[3])
if most > 0 and length > most and complete and lowest and cursor then
  if before(id_of(cursor), lowest) then
    lowest = id_of(cursor)
  end
  local count = math.min(length - most, """
    + str(TRIM_ENTRIES)
    + """)
  trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '~', text_of(lowest), 'LIMIT', count)
end
return {last, id, complete and sinks and text_of(sinks) or '', length - trimmed, trimmed}
"""
)


class Mark(NamedTuple):
    """What came of an append. `added` is -1 when a later run has the mark, whose number `seq` is then, and -2 when the store
    has lost records that were sent: it has them up to `seq`. Else all up to `seq` stand in the stream, none behind `entry`."""

    added: int
    seq: int
    entry: EntryId | None


class Seen(NamedTuple):
    """What stands in the stream: this node's final records up to `seq`, none behind `entry`; `acknowledged` is the first entry
    that one of the sinks has not acknowledged, None when a sink has no group yet. `seq` -1: a later run has the mark."""

    seq: int
    run: int
    entry: EntryId | None
    acknowledged: EntryId | None
    entries: int
    trimmed: int


def mark_key(stream: str, node: str) -> str:
    """The key of a node's mark, in the stream's slot. Raises ValueError for braces that are no hash tag."""
    return f"{stream}:mark:{node}" if is_tagged(stream) else f"sp:{{{stream}}}:mark:{node}"


async def marked_nodes(link: Link, stream: str) -> set[str]:
    """The nodes that have ever published into the stream, as far as the store knows. Raises RedisError and OSError."""
    head = mark_key(stream, "").encode()
    pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", head) + b"*"
    found: set[str] = set()
    cursor = b"0"
    while True:
        cursor, page = await link.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED)
        found |= {key.removeprefix(head).decode("utf-8", "replace") for key in page}
        if cursor == b"0":
            return found


class Stream:
    """The stream as one node writes it. `run` is raised when a later run than ours is found."""

    def __init__(self, link: Link, key: str, node: str, *, token: str) -> None:
        """Raises ValueError for a key with braces that are no hash tag."""
        self._link = link
        self._keys = (key, mark_key(key, node))
        self._node = node
        self.token = token
        self.run = 1

    async def append(self, entries: Sequence[Entry], *, recovered: int, expected: int, highest: int = 0) -> Mark:
        """Append what is not there yet. `recovered` is the highest number of earlier runs, `expected` the number that the mark
        must have reached, `highest` the highest number given, for entries without one. Raises RedisError and OSError."""
        head = (self._node, self.run, self.token, recovered, expected, highest)
        body = [part for entry in entries for part in (entry.seq, entry.id, entry.schema, entry.type, entry.record)]
        reply = await _APPEND.run(self._link, self._keys, *head, *body)
        if not (isinstance(reply, list) and len(reply) == 3 and all(isinstance(part, int) for part in reply[:2])):
            raise InvalidResponse(f"no mark: {reply!r:.80}")
        return Mark(reply[0], reply[1], _id_in(reply[2]))

    async def look(self, *, recovered: int, keep: int, sinks: Sequence[str]) -> Seen:
        """Take the mark for this run and see what stands there; remove the oldest entries beyond `keep` (0: none) that every
        group has acknowledged and the daily figures have counted, unless a sink has no group. Raises RedisError and OSError."""
        keys = (*self._keys, beside(self._keys[0], "stats:cursor"))
        reply = await _LOOK.run(self._link, keys, self._node, self.run, self.token, recovered, keep, *sinks)
        if not (isinstance(reply, list) and len(reply) == 5 and all(isinstance(reply[at], int) for at in (0, 3, 4))):
            raise InvalidResponse(f"no view of the stream: {reply!r:.80}")
        if reply[0] == -1:
            return Seen(-1, int(reply[1]), None, None, 0, 0)
        return Seen(reply[0], self.run, _id_in(reply[1]), _id_in(reply[2]), reply[3], reply[4])


def _id_in(reply: object) -> EntryId | None:
    """The id in a reply, None for the empty text. Raises InvalidResponse for anything else."""
    if not isinstance(reply, bytes):
        raise InvalidResponse(f"no entry id: {reply!r:.80}")
    try:
        return entry_id(reply) if reply else None
    except ValueError as error:
        raise InvalidResponse(str(error)) from error
