"""What a call's timers do when they are due, or what comes before that. Pure; when each is set is in call.py and recover.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine import keep, liveness
from sipproxy.engine.call import Call, Phase
from sipproxy.engine.causes import NORMAL_UNSPECIFIED, TIMER_EXPIRY
from sipproxy.engine.ending import hang_up
from sipproxy.engine.fail_over import edge_silent, is_going_on, overdue
from sipproxy.engine.recover import say_bye_again

if TYPE_CHECKING:
    from sipproxy.engine.transactions import Server

__all__ = ["before_trying", "bound_reached"]


def before_trying(server: Server) -> None:
    """A call that still waits for its slot has one timer, that of its 100: what the caller hears of is in the journal."""
    if isinstance(server.user, Call) and server.user.phase is Phase.ADMITTING:
        keep.admit(server.user)


def bound_reached(call: Call, kind: str) -> None:
    """The timer of this kind is due. Late and repeated calls are harmless."""
    if kind == "edge":
        edge_silent(call)
    elif kind == "route":
        overdue(call)
    elif kind in ("setup", "ring"):
        if kind == "ring" or not is_going_on(call):
            call.give_up("no_answer")
    elif kind == "bound":
        now = call.desk.now.mono
        if call.maximum_at <= min(now, call.reap_at):
            hang_up(call, "maximum", cause=NORMAL_UNSPECIFIED)
        elif call.reap_at <= now:
            hang_up(call, "session_expired", cause=TIMER_EXPIRY, certain=False)
        else:
            for dialog in call.dialogs:
                liveness.check(call, dialog)
            call.await_bound()
    elif kind == "stop":
        assert call.gave_up is not None
        hang_up(call, call.gave_up, cause=NORMAL_UNSPECIFIED)
    elif kind == "lost":
        hang_up(call, "session_expired", cause=TIMER_EXPIRY, certain=False)
    elif kind == "bye":
        say_bye_again(call)
