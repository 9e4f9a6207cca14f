"""Quality figures from final records: how many attempts succeed, how fast they ring, how long people talk.

Pure. Only final records count, each attempt once, by the day of its set-up in Germany, its trunk route and its profile;
emergency calls are a group apart. An attempt that our policy refused is no seizure: it never reached a route.

- ASR, answer-seizure ratio (ITU-T E.411, E.425): answered seizures of all seizures.
- NER, network effectiveness ratio (ITU-T E.425): seizures for which the network did its part, of all seizures: answered
  ones, and those that ended by a user's doing: busy, declined, temporarily unavailable (480, 486, 600, 603, as in the
  SEER of RFC 6076 §4.7), given up or timed out while it rang. Promised pass rates are measured against it.
- ACD, average call duration: talking time per answered call.
- Post-dial delay (ITU-T E.431, post-selection delay; SRD of RFC 6076 §4.3): from the INVITE to the first 18x, or to the answer
  where nothing rang. A difference of stamps, in steps of 10 ms; one that a set clock made negative or longer than five minutes
  is left out. p50 and p95 are nearest-rank percentiles.

Figures add up: those of parts, merged, are those of the whole. As texts and counts (`write`, `read`) they hold no number, line
or account, and may be kept when the records have to go.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cdr.facts import Record

__all__ = ["Figures", "Key", "Outcome", "RunningFigures", "grouped", "key_of", "outcome", "post_dial_delay", "read", "write"]

Outcome = Literal["answered", "effective", "failed", "refused"]
BERLIN = ZoneInfo("Europe/Berlin")
USER = frozenset({480, 486, 600, 603})
STEP_MS = 10
LONGEST_MS = 300_000
SEPARATOR = "\x1f"


class Key(NamedTuple):
    """What an attempt is counted under. `day` is 2026-01-31, `route` "" where no trunk was used."""

    day: str
    route: str
    profile: str
    emergency: bool


@dataclass
class Figures:
    """Counts that add up, and what follows from them. Ratios are 0 to 1, None where there is nothing to divide by."""

    answered: int = 0
    effective: int = 0  # not answered by a user's doing
    failed: int = 0
    refused: int = 0
    talk_ms: int = 0
    uncertain: int = 0  # answered calls whose end nobody observed
    delays: Counter[int] = field(default_factory=Counter)  # post-dial delay in ms, in steps of STEP_MS
    rules: Counter[str] = field(default_factory=Counter)  # refusals by rule

    def add(self, record: Record) -> None:
        """Count one final record."""
        kind = outcome(record)
        setattr(self, kind, getattr(self, kind) + 1)
        if kind == "refused":
            self.rules[record.rule or "-"] += 1
            return
        if kind == "answered":
            self.talk_ms += record.billable_ms
            self.uncertain += not record.duration_certain
        delay = post_dial_delay(record)
        if delay is not None:
            self.delays[delay // STEP_MS * STEP_MS] += 1

    def merge(self, other: Figures) -> None:
        """Count what the other has counted."""
        for name in ("answered", "effective", "failed", "refused", "talk_ms", "uncertain"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.delays.update(other.delays)
        self.rules.update(other.rules)

    @property
    def seizures(self) -> int:
        return self.answered + self.effective + self.failed

    @property
    def attempts(self) -> int:
        return self.seizures + self.refused

    @property
    def asr(self) -> float | None:
        return self.answered / self.seizures if self.seizures else None

    @property
    def ner(self) -> float | None:
        return (self.answered + self.effective) / self.seizures if self.seizures else None

    @property
    def acd_ms(self) -> float | None:
        return self.talk_ms / self.answered if self.answered else None

    def delay_ms(self, percent: int) -> int | None:
        """The smallest delay that so many percent of the attempts do not exceed (nearest rank); None without any."""
        rank = -(-percent * self.delays.total() // 100)
        for delay in sorted(self.delays):
            rank -= self.delays[delay]
            if rank <= 0:
                return delay
        return None


class RunningFigures:
    """What a running node counts of the records that it makes: by route and profile, emergency calls under their own name."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, ...]] = Counter()  # route, profile, outcome
        self.talk_ms: Counter[tuple[str, ...]] = Counter()
        self.delays: Counter[tuple[str, ...]] = Counter()  # calls with a post-dial delay
        self.delay_ms: Counter[tuple[str, ...]] = Counter()

    def add(self, record: Record) -> None:
        """Count one final record."""
        group = (record.trunk, "emergency" if record.verdict == "emergency" else record.profile)
        kind = outcome(record)
        self.calls[*group, kind] += 1
        if kind == "refused":
            return
        self.talk_ms[group] += record.billable_ms
        delay = post_dial_delay(record)
        if delay is not None:
            self.delays[group] += 1
            self.delay_ms[group] += delay


def outcome(record: Record) -> Outcome:
    """What became of an attempt."""
    if record.answer_at_ms is not None:
        return "answered"
    if record.verdict == "deny" or record.end_reason == "refused":
        return "refused"
    gave_up = record.ringing_at_ms is not None and (
        record.end_reason in ("cancelled", "no_answer") or record.status in (408, 487)
    )
    return "effective" if gave_up or record.status in USER else "failed"


def post_dial_delay(record: Record) -> int | None:
    """Milliseconds until the caller heard something; None where nothing rang, or a clock was set in between."""
    heard = record.ringing_at_ms if record.ringing_at_ms is not None else record.answer_at_ms
    if heard is None or not 0 <= heard - record.setup_at_ms <= LONGEST_MS:
        return None
    return heard - record.setup_at_ms


def key_of(record: Record) -> Key:
    """What the record is counted under. A stamp that no calendar holds has the day "-"."""
    try:
        day = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=record.setup_at_ms)).astimezone(BERLIN)
        text = day.strftime("%Y-%m-%d")
    except (OverflowError, ValueError):
        text = "-"
    return Key(text, record.trunk, record.profile, record.verdict == "emergency")


def grouped(records: Iterable[Record]) -> dict[Key, Figures]:
    """Figures of the final records among `records`."""
    found: dict[Key, Figures] = {}
    for record in records:
        if record.type == "final":
            found.setdefault(key_of(record), Figures()).add(record)
    return found


def write(key: Key, figures: Figures) -> dict[str, int]:
    """Counts by name, for a hash of the key's day: adding them up, name by name, merges figures. Zeros are left out."""
    head = SEPARATOR.join((key.route, key.profile, "emergency" if key.emergency else ""))
    counts = {name: getattr(figures, name) for name in ("answered", "effective", "failed", "refused", "talk_ms", "uncertain")}
    counts |= {f"delay:{delay}": number for delay, number in figures.delays.items()}
    for rule, number in figures.rules.items():
        name = f"rule:{_family(rule)}"
        counts[name] = counts.get(name, 0) + number
    return {f"{head}{SEPARATOR}{name}": number for name, number in counts.items() if number}


def _family(rule: str) -> str:
    """A rule without its own id, which may name the line that it belongs to."""
    return next((head for head in ("block.rule", "allow.rule") if rule.startswith(head)), rule)


def read(day: str, counts: Mapping[str, int]) -> dict[Key, Figures]:
    """Inverse of `write`, for all keys of a day. Names that no version wrote are left out."""
    found: dict[Key, Figures] = {}
    for text, number in counts.items():
        parts = text.split(SEPARATOR)
        if len(parts) != 4:
            continue
        figures = found.setdefault(Key(day, parts[0], parts[1], parts[2] == "emergency"), Figures())
        kind, colon, rest = parts[3].partition(":")
        if kind == "delay" and rest.isdigit():
            figures.delays[int(rest)] += number
        elif kind == "rule" and colon:
            figures.rules[rest] += number
        elif kind in ("answered", "effective", "failed", "refused", "talk_ms", "uncertain"):
            setattr(figures, kind, getattr(figures, kind) + number)
    return found
