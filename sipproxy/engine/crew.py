"""What the workers of a node tell each other so that they judge as one: wrong passwords, credentials that were used, starts of
calls, who is never dropped, and who is gone.

Limits count what all workers see: the budgets of guesses, the set-up guard of a line, and what a source, a line and all
strangers may send (`engine.spending`). What is heard of some milliseconds late lets through as much more as came meanwhile.
How many REGISTERs there is time for (`engine.pace`) is each worker's own. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.actions import Action, Now
    from sipproxy.engine.authenticate import Authenticator
    from sipproxy.engine.flows import Flows
    from sipproxy.engine.setup import Setup
    from sipproxy.engine.shed import Shedder
    from sipproxy.engine.state import Desk

__all__ = ["Crew", "Dropped", "Gone", "Guessed", "Helped", "Spared", "Started", "Told", "Took", "Used", "Word"]


class Guessed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A response to a challenge, right or wrong; see `engine.guesses`."""

    user: str
    source: str
    known: str
    right: bool


class Used(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Credentials with this nonce and count were taken; 0 without a count."""

    nonce: bytes
    count: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A line started a call."""

    line: str


class Took(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """So many messages were taken off the budget of a source, of a line, or of all strangers."""

    kind: str
    whose: str
    count: int


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A worker has died, and its connections with it."""

    worker: int


class Helped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A source called for help; see `engine.drops`."""

    source: str


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A source is dropped from now on, by the node or an operator."""

    source: str
    by: str


class Spared(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A source is not to be dropped."""

    source: str
    why: str


Told = Guessed | Used | Started | Took | Helped | Dropped | Spared
"""What workers say themselves; that one is gone is the supervisor's word."""

Word = Told | Gone


class Crew:
    """See the module. `tell` is what brings a word to the other workers; alone there is nobody to tell."""

    def __init__(
        self, desk: Desk, auth: Authenticator, setup: Setup, flows: Flows, shedder: Shedder, *, act: Callable[[], list[Action]]
    ) -> None:
        """`act` gives the actions that an event caused."""
        self.tell: Callable[[Word], None] = lambda word: None  # noqa: ARG005
        self._desk, self._auth, self._setup, self._flows, self._act = desk, auth, setup, flows, act
        self._shedder = shedder
        if desk.settings.worker:
            shedder.spending.tell = lambda kind, whose, count: self.tell(Took(kind, whose, count))
            auth.tell_used = lambda nonce, count: self.tell(Used(nonce, count))
        guesses = self._guesses = auth.guesses
        guesses.tell_wrong = lambda user, source, known: self.tell(Guessed(user, source, known, right=False))
        guesses.tell_right = lambda user, source: self.tell(Guessed(user, source, "", right=True))
        drops = desk.drops
        drops.tell_helped = lambda source: self.tell(Helped(source))
        drops.tell_dropped = lambda source, by: self.tell(Dropped(source, by))
        drops.tell_spared = lambda source, why: self.tell(Spared(source, why))
        setup.tell_started = lambda line: self.tell(Started(line))

    def hear(self, word: Word, now: Now) -> list[Action]:
        """A word of another worker, or of who starts them."""
        desk = self._desk
        desk.now = now
        if isinstance(word, Started):
            self._setup.started_elsewhere(word.line)
        elif isinstance(word, Took):
            self._shedder.spent_elsewhere(word.kind, word.whose, word.count)
        elif isinstance(word, Used):
            self._auth.used_elsewhere(word.nonce, word.count)
        elif isinstance(word, Helped):
            desk.drops.helped_elsewhere(word.source)
        elif isinstance(word, Dropped):
            desk.drops.dropped_elsewhere(word.source, word.by)
        elif isinstance(word, Spared):
            desk.drops.spared_elsewhere(word.source, word.why)
        elif isinstance(word, Gone):
            for flow in desk.transactions.connections():
                if flow.worker == word.worker:
                    self._flows.closed(flow)
        elif word.right:
            self._guesses.right_elsewhere(word.user, word.source, now.mono)
        else:
            self._guesses.wrong_elsewhere(word.user, word.source, now.mono, word.known)
        return self._act()
