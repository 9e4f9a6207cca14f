"""Which part of the work a process is at, sampled by a timer of its CPU time: "where the time goes" without slowing calls down.

A sample belongs to the innermost frame whose module or function has a stage; the readers of headers count for who parses or
checks a message, and apart where a rule asks for a header. Interpreted code alone is seen: what a C function does counts for
its caller, and what compiled modules do for whoever called them.
"""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["STAGES", "Sampler"]

EVERY_S = 0.001

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("parse", ("sipproxy.sip.message:parse_message", "sipproxy.sip.message:salvage")),
    ("check", ("sipproxy.sip.message:check_message",)),
    ("build", ("sipproxy.sip.build",)),
    ("match", ("sipproxy.sip.matching", "sipproxy.sip.transaction", "sipproxy.engine.transactions")),
    ("timers", ("sipproxy.sip.timers", "sipproxy.shell:_arm", "sipproxy.shell:_fire")),
    ("auth", ("sipproxy.sip.digest", "sipproxy.engine.authenticate", "sipproxy.engine.guesses")),
    ("shed", ("sipproxy.engine.shed", "sipproxy.engine.kinds", "sipproxy.engine.drops")),
    ("policy", ("policy",)),
    ("slots", ("sipproxy.engine.channels", "sipproxy.store.slots", "sipproxy.store.live_slots")),
    ("journal", ("cdr.journal", "cdr.storage", "cdr.segment", "cdr.syncer", "cdr.codec", "cdr.recovery")),
    ("records", ("cdr",)),
    ("store", ("sipproxy.store", "redis", "hiredis")),
    ("privacy", ("sipproxy.engine.privacy",)),
    ("registrar", ("sipproxy.engine.registrar", "sipproxy.engine.location", "sipproxy.engine.contacts")),
    ("call", ("sipproxy.engine",)),
    ("shell", ("sipproxy.shell",)),
    ("headers", ("sipproxy.sip",)),  # unless it is parse or check that reads them
    ("socket", ("sipproxy.net",)),
)
"""Stages and what they are made of: a module with all below it, or one function of one."""

OTHER = "event loop and what else runs"


class Sampler:
    """Counts samples by stage, only within `running`. A context manager, to be used from the main thread."""

    def __init__(self) -> None:
        self._on = False
        self.counts: Counter[str] = Counter()
        self._stages = {part: stage for stage, parts in STAGES for part in parts}
        self._known: dict[tuple[str, str], str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples within the block."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, _: int, frame: FrameType | None) -> None:
        if not self._on:
            return
        found = OTHER
        while frame is not None:
            stage = self._stage(frame.f_globals.get("__name__", ""), frame.f_code.co_name)
            if stage and (found == OTHER or stage in ("parse", "check")):
                found = stage
            if stage and stage != "headers":
                break
            frame = frame.f_back
        self.counts[found] += 1

    def _stage(self, module: str, function: str) -> str:
        key = (module, function)
        found = self._known.get(key)
        if found is None:
            found = self._stages.get(f"{module}:{function}", "")
            name = module
            while not found and name:
                found = self._stages.get(name, "")
                name = name.rpartition(".")[0]
            self._known[key] = found
        return found
