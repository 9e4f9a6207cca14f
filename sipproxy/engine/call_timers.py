"""What a call's timers do when they are due. Pure; when each is set is in call.py and recover.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine.causes import NORMAL_UNSPECIFIED, TIMER_EXPIRY
from sipproxy.engine.ending import hang_up
from sipproxy.engine.recover import say_bye_again

if TYPE_CHECKING:
    from sipproxy.engine.call import Call

__all__ = ["bound_reached"]


def bound_reached(call: Call, kind: str) -> None:
    """The timer of this kind is due. Late and repeated calls are harmless."""
    if kind == "edge":
        call.edge_silent()
    elif kind == "route":
        call.route_overdue()
    elif kind in ("setup", "ring"):
        call.give_up("no_answer")
    elif kind == "maximum":
        hang_up(call, "maximum", cause=NORMAL_UNSPECIFIED)
    elif kind == "stop":
        assert call.gave_up is not None
        hang_up(call, call.gave_up, cause=NORMAL_UNSPECIFIED)
    elif kind in ("reap", "lost"):
        hang_up(call, "session_expired", cause=TIMER_EXPIRY, certain=False)
    elif kind == "bye":
        say_bye_again(call)
