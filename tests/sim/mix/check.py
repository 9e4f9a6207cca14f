"""What must hold: at every quiet point slots and calls agree with the truth; in the end each call has its one honest record.

A difference is a text; its call's ladder is printed with it. Durations are compared in milliseconds.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from tests.sim.world import EPOCH_MS, owner_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.facts import Record
    from sipproxy.engine.actions import Holder, Slot
    from tests.sim.mix.truth import Attempt, Story
    from tests.sim.mix.world import MixWorld
    from tests.sim.world import Address

__all__ = ["Checker", "Difference", "census"]

EXACT_MS = 50
SAID_AGAIN_S = 7.0
STAMP_MS = 2  # rounding
MAX_RUNGS = 120  # of a ladder that is printed


@dataclass(slots=True)
class Difference:
    seed: int
    what: str
    call_id: bytes = b""
    ladder: str = ""


@dataclass
class Checker:
    """Collects what is wrong in one world, and how well the durations were met."""

    world: MixWorld
    seed: int
    limits: dict[str, int]  # of lines, of accounts by their users, and of trunk routes
    differences: list[Difference] = field(default_factory=list)
    errors_ms: list[float] = field(default_factory=list)
    certain: int = 0
    uncertain: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    _said: set[str] = field(default_factory=set)

    def differ(self, what: str, story: Story | None = None) -> None:
        key = what.partition(":")[0] + (story.call_id.decode() if story is not None else "")
        if key in self._said:
            return
        self._said.add(key)
        ladder = ladder_of(story) if story is not None else ""
        where = f"[seed {self.seed}, {self.world.now:.3f}] "
        if story is not None:
            where += f"{story.plan.name} ({story.plan.kind}): "
        self.differences.append(Difference(self.seed, where + what, story.call_id if story is not None else b"", ladder))

    # Quiet points

    def quiet(self) -> None:
        """No datagram is under way and no slot is asked for: what the node and the store hold is what the calls need."""
        world = self.world
        world.quiet_points += 1
        stories, calls = world.ledger.stories, world.engine.calls
        taken = world.engine.channels.leases()
        leases = [(owner_of(slot), slot.member) for slot, _ in taken]
        held = set(leases)
        if len(held) != len(leases):
            self.differ(f"a slot is held twice: {leases}")
        self._accounts(taken)
        doubted = {call_id for call_id in self._doubted(held) if call_id}
        have = collections.Counter((owner, self._whose(member)) for owner, member in held)
        least: collections.Counter[tuple[str, bytes]] = collections.Counter()
        most: collections.Counter[tuple[str, bytes]] = collections.Counter()
        parts = 0
        for call_id, attempt in world.ledger.live.items():
            if attempt.lives:
                parts += len(attempt.passed)
                few, many = owners(stories[call_id], attempt, world.ledger.routes, self.limits)
                least.update((owner, call_id) for owner in few)
                most.update((owner, call_id) for owner in many)
        for owner, call_id in have.keys() | most.keys():
            key = owner, call_id
            if call_id not in doubted and not least[key] <= have[key] <= most[key]:
                verb = "is held and not needed" if have[key] > most[key] else "is needed and not held"
                self.differ(f"slot of {owner} {verb}", stories.get(call_id))
        doubts = 0
        for story in stories.values():
            if (now := story.current) is not None and now.doubtful:
                doubts += 1 + len(story.plan.forwards)
        live = len(world.ledger.live) + parts
        if not live <= calls.live <= live + doubts:
            self.differ(f"live calls: {calls.live}, truth {live} and {doubts} doubtful")
        self._store(held)

    def _whose(self, member: str) -> bytes:
        return self.world.call_ids.get(member.partition(":")[0], b"?")

    def _is_let_by(self, member: str) -> bool:
        """A route refuses neither what came by it and is there already, nor a call for help."""
        story = self.world.ledger.stories.get(self._whose(member))
        return member.endswith(":in") or (story is not None and story.plan.kind == "emergency")

    def _accounts(self, taken: Sequence[tuple[Slot, Holder]]) -> None:
        used = collections.Counter(holder.account for slot, holder in taken if slot.kind == "line")
        for user, count in used.items():
            if count > self.limits.get(user, count):
                self.differ(f"over the limit: {count} of {self.limits[user]} channels of the account {user}")

    def _doubted(self, held: set[tuple[str, str]]) -> set[bytes]:
        stories = self.world.ledger.stories
        ids = {self._whose(member) for _, member in held} | set(self.world.ledger.live)
        return {c for c in ids if c in stories and any(attempt.doubtful for attempt in stories[c].all)}

    def _store(self, held: set[tuple[str, str]]) -> None:
        world = self.world
        used = collections.Counter(owner for owner, member in held if not self._is_let_by(member))
        for line, count in used.items():
            if count > self.limits[line]:
                self.differ(f"over the limit: {count} of {self.limits[line]} channels of {line}")
        if world.server.stopped is not None or world.link.away:
            return
        kept = world.server.all()
        for line, call in held - kept:
            self.differ(f"the store lacks a slot of {line}", world.ledger.stories.get(self._whose(call)))
        for line, call in kept - held:
            # A node that dies between a slot and the admission leaves a lease that nobody knows of: it expires.
            if self._whose(call) != b"?" or not world.kills:
                self.differ(f"the store has a slot of {line} too many", world.ledger.stories.get(self._whose(call)))

    # The end

    def final(self, before: dict[str, int]) -> None:
        """All calls are over: one record each, no slot, nothing left in any table."""
        world = self.world
        world.publish()
        records = world.published
        if [record.seq for record in records] != list(range(1, len(records) + 1)):
            self.differ(f"sequence numbers: {[record.seq for record in records]}")
        if len({record.id for record in records}) != len(records):
            self.differ("a record was published twice")
        if world.journal.stats.live or world.journal.stats.gaps or world.journal.stats.damaged:
            self.differ(f"journal: {world.journal.stats}")
        if world.server.all() or world.engine.channels.leases():
            self.differ(f"slots left: {world.server.all()}, {world.engine.channels.leases()}")
        for name, size in census(world.engine).items():
            if size > before.get(name, 0):
                self.differ(f"left in {name}: {size} entries, {before.get(name, 0)} at the start")
        by_call: dict[bytes, list[Record]] = collections.defaultdict(list)
        for record in records:
            by_call[record.call_id.encode()].append(record)
        for call_id in by_call.keys() - world.ledger.stories.keys():
            self.differ(f"records of no call: {by_call[call_id]}")
        for call_id, story in world.ledger.stories.items():
            self._story(story, by_call.get(call_id, []))

    def _story(self, story: Story, records: list[Record]) -> None:
        left = [record for record in records if not record.forwarded_from]
        parts = {record.id: record for record in records if record.forwarded_from}
        for attempt in story.all:
            own = [r for r in left if abs(r.setup_at_ms - EPOCH_MS - 1000 * attempt.setup_at) <= STAMP_MS]
            left = [r for r in left if r not in own]
            if len(own) > 1:
                self.differ(f"{len(own)} records of one call: {own}", story)
            elif own:
                self._attempt(story, attempt, own[0])
                self._parts(story, attempt, own[0], parts)
                self._told(story, attempt)
            elif not attempt.doubtful and (attempt.forwarded_at is not None or attempt.final):
                self.differ("no record of the call", story)
            elif not attempt.doubtful and not attempt.kills:
                self.differ("an INVITE that came to nothing", story)
        if left and not any(attempt.doubtful for attempt in story.all):
            self.differ(f"records of no attempt: {left}", story)
        if parts and not any(attempt.doubtful for attempt in story.all):
            self.differ(f"records of parts of nothing: {parts}", story)

    def _parts(self, story: Story, attempt: Attempt, head: Record, parts: dict[str, Record]) -> None:
        """The parts of a forwarded call, each the part of the one before it: one record each, which ends as the call does."""
        before, depth, answered = head, 0, 0
        while before.forwarded_to:
            own = [parts.pop(call) for call in before.forwarded_to if call in parts]
            if len(before.forwarded_to) != 1 or (len(own) != 1 and not attempt.kills):
                self.differ(f"{len(own)} records of the part of {before}", story)
            if not own:
                break
            before, depth = own[0], depth + 1
            answered += before.answer_at_ms is not None
            if attempt.doubtful:
                continue
            if before.answer_at_ms is None and before.billable_ms:
                self.differ(f"a part that is billed without an answer: {before}", story)
            same = [
                (before.answer_at_ms or 0, head.answer_at_ms or 0),
                (before.end_at_ms, head.end_at_ms),
                (before.billable_ms, head.billable_ms),
            ]
            if head.answer_at_ms is not None and any(abs(one - other) > EXACT_MS for one, other in same):
                self.differ(f"a part that is not as its call: {before}, {head}", story)
            if head.answer_at_ms is not None and before.duration_certain != head.duration_certain:
                self.differ(f"a part is as certain as its call: {before}, {head}", story)
        if not attempt.doubtful and attempt.answered and answered != max(attempt.passed, default=0):
            self.differ(f"{answered} parts were answered, and {attempt.passed} reached: {head}", story)

    def _attempt(self, story: Story, attempt: Attempt, record: Record) -> None:
        self.reasons[record.end_reason] += 1
        self.certain += record.duration_certain
        self.uncertain += not record.duration_certain
        if record.duration_ms < 0 or record.billable_ms < 0 or record.billable_ms > record.duration_ms + 1:
            self.differ(f"impossible durations: {record}", story)
        if attempt.doubtful:
            if attempt.answered and story.plan.kind != "emergency":  # which goes on while one of its parties is there
                self._bounded(story, attempt, record)
            return
        if story.plan.kind == "emergency" and record.verdict != "emergency":
            self.differ(f"an emergency call that was not taken for one: {record}", story)
        if attempt.answered:
            self._answered(story, attempt, record)
        else:
            self._unanswered(story, attempt, record)

    def _told(self, story: Story, attempt: Attempt) -> None:
        """Nobody is left in a dialog of a call that is over: a BYE goes to both sides.

        A restart says those of the last moments again that may have been lost with their transactions, where the journal still
        has the call's facts. Not asked of those before that, of what two kills took, and of calls that ended with the node.
        """
        over_at, world = attempt.over_at, self.world
        if over_at is None or attempt.cut:
            return
        kills = [at for at in world.killed_at if over_at <= at < over_at + 33]
        if world.loss and (len(kills) > 1 or any(at > over_at + SAID_AGAIN_S or not world.keeps_ended for at in kills)):
            return
        for side, parts in (("caller", story.plan.caller_parts), ("callee", story.plan.callee_parts)):
            for tag in attempt.answered.keys() & parts.keys():
                if not parts[tag].ended:
                    self.differ(f"the {side} was not told that the call is over", story)

    def _unanswered(self, story: Story, attempt: Attempt, record: Record) -> None:
        if record.billable_ms or record.answer_at_ms is not None:
            self.differ(f"billed without an answer: {record}", story)
        if attempt.cut:
            if record.end_reason != "node_restart" or record.duration_certain:
                self.differ(f"the node died with it, and the record says otherwise: {record}", story)
            return
        if record.status != attempt.final or not record.duration_certain:
            self.differ(f"the caller got {attempt.final}: {record}", story)
        if attempt.over_at is not None:
            self._exact(story, record, record.duration_ms, 1000 * (attempt.over_at - attempt.setup_at))

    def _answered(self, story: Story, attempt: Attempt, record: Record) -> None:
        answer_at = attempt.answer_at
        assert answer_at is not None
        if record.answer_at_ms is None or abs(record.answer_at_ms - EPOCH_MS - 1000 * answer_at) > EXACT_MS:
            self.differ(f"answered at {answer_at:.3f}: {record}", story)
            return
        if record.status != 200:
            self.differ(f"the callee said 200: {record}", story)
        if not record.duration_certain:
            if not attempt.kills and record.end_reason != "session_expired":
                self.differ(f"uncertain without a reason: {record}", story)
            self._bounded(story, attempt, record)
            return
        if attempt.over_at is None:
            self.differ(f"an end that nobody has seen is called certain: {record}", story)
            return
        by = max(attempt.ended.values())[1]
        if record.released_by != by:
            self.differ(f"ended by the {by}: {record}", story)
        self._exact(story, record, record.billable_ms, 1000 * (attempt.over_at - answer_at))
        self._exact(story, record, record.duration_ms, 1000 * (attempt.over_at - attempt.setup_at))

    def _exact(self, story: Story, record: Record, ms: int, true_ms: float) -> None:
        self.errors_ms.append(abs(ms - true_ms))
        if self.errors_ms[-1] > EXACT_MS:
            self.differ(f"{ms} ms, and truly {true_ms:.0f}: {record}", story)

    def _bounded(self, story: Story, attempt: Attempt, record: Record) -> None:
        bound = story.bound(attempt)
        if record.end_reason == "maximum" and attempt.over_at is not None:
            bound = attempt.over_at  # that somebody had vanished before could not be known yet
        slack_ms = 1000 * self.world.delay[1] + EXACT_MS  # what the party sent last was still under way
        if bound < inf and attempt.answer_at is not None:
            true_ms = 1000 * (bound - attempt.answer_at) + slack_ms
            if record.billable_ms > true_ms:
                self.differ(f"{record.billable_ms} ms, and not more than {true_ms:.0f}: {record}", story)


def owners(story: Story, attempt: Attempt, routes: dict[Address, str], limits: dict[str, int]) -> tuple[list[str], list[str]]:
    """Whose slots a live call holds at least, and at most: of its lines, its forwarded parts' lines, and the limited routes.

    A route that does not answer is left when its transaction is over: until then nobody outside can say.
    """
    lines = [*story.plan.lines]
    for depth in attempt.passed:
        lines += story.plan.passed[depth]
    came_by = routes.get(story.plan.caller.address, "")
    arrived = [f"trunk:{came_by}"] if came_by and f"trunk:{came_by}" in limits else []
    tried = {f"trunk:{name}" for name in attempt.routes.values()} & limits.keys()
    if attempt.answered:
        sure = {f"trunk:{attempt.route}"} & limits.keys()
    else:
        sure = {f"trunk:{attempt.routes[branch]}" for branch in attempt.rung & attempt.routes.keys()} & limits.keys()
    return [*lines, *arrived, *sure], [*lines, *arrived, *(tried | sure)]


def census(root: object) -> dict[str, int]:
    """How many entries each table of the engine has, by where it is found. Counters and the parts that do not grow are out."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def walk(value: object, name: str) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, dict | list | set | collections.deque) and not isinstance(value, collections.Counter):
            found[name] = len(value)
            items = list(value.values()) if isinstance(value, dict) else list(value)
            if name.endswith("_routes"):
                for item in items:
                    walk(item, f"{name}[]")
            return
        if not type(value).__module__.startswith(("sipproxy.", "policy.fraud")) or type(value).__name__ in SKIPPED:
            return
        slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
        for attribute in [*getattr(value, "__dict__", {}), *slots]:
            if hasattr(value, attribute) and attribute not in ("told", "settings", "snapshot", "counters"):
                walk(getattr(value, attribute), f"{name}.{attribute}")

    walk(root, type(root).__name__)
    return found


SKIPPED = frozenset(["Settings", "Snapshot", "NonceSource", "Location", "SetupGuard", "TimerQueue", "Buckets"])


def ladder_of(story: Story) -> str:
    """The messages of a call, one a line."""
    lines = []
    for at, source, to, data in story.ladder:
        head, _, rest = data.partition(b"\r\n")
        cseq = next((line for line in rest.split(b"\r\n") if line.startswith(b"CSeq:")), b"")
        tag = rest.partition(b"\r\nTo:")[2].partition(b"\r\n")[0].partition(b";tag=")[2][:6]
        ends = [str(end) if isinstance(end, str) else f"{end[0]}:{end[1]}" for end in (source, to)]
        shown = f"{head.decode('latin-1')[:52]:54}{cseq.decode('latin-1'):20}{tag.decode('latin-1')}"
        lines.append(f"  {at:10.3f}  {ends[0]:>18} -> {ends[1]:18} {shown}")
    if len(lines) > MAX_RUNGS:
        lines[MAX_RUNGS // 2 : -MAX_RUNGS // 2] = [f"  ... {len(lines) - MAX_RUNGS} messages left out"]
    return "\n".join(lines)
