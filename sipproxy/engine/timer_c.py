"""Timer C of a request that is forwarded outside a call's set-up (RFC 3261 §16.6 step 11); a call has its deadline "ring"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from sipproxy.engine.edge import Passage
    from sipproxy.engine.relay import Relay

__all__ = ["begin", "finish"]


def begin(user: Passage | Relay) -> None:
    """Begin it from now on: the user cancels its INVITE when it is over."""
    desk = user.desk
    user.bound = user.bound or Alarm(user.cancel)
    desk.queue.set(user.bound, desk.now.mono + desk.settings.ring_s)


def finish(user: Passage | Relay) -> None:
    """The request has its final response, or will have none: there is nothing left to bound."""
    user.done = True
    if user.bound is not None:
        user.desk.queue.cancel(user.bound)
        user.bound = None  # which refers back to it
