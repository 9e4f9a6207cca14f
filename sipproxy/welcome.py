"""What a node that has started says: the addresses, for programs, and for a person how to register and call."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from sipproxy.config_file import split_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.model import Snapshot
    from sipproxy.config import Config

__all__ = ["Bound", "shown", "welcome"]

SHOWN_ACCOUNTS = 2

Bound = tuple[str, str, int]  # transport, IP, port


def shown(bound: Sequence[Bound]) -> list[str]:
    """The addresses for logs and programs."""
    return [f"{transport.lower()} {host}:{port}" for transport, host, port in bound]


def welcome(config: Config, bound: Sequence[Bound], snapshot: Snapshot) -> str:
    """For a person who started a node by hand: where it listens, how to register and call."""
    rows = [f"sipproxy {config.node.id} is up ({time.strftime('%H:%M:%S')}). Stop it with Ctrl-C."]
    for listen, (transport, host, port) in zip(config.listen, bound, strict=True):
        wanted = split_address(listen.address)[1]
        moved = f"   (port {wanted} was busy)" if wanted not in (0, port) else ""
        rows.append(f"  listening  {transport.lower()} {host}:{port}{moved}")
    accounts = sorted(
        (account for account in snapshot.accounts.values() if account.numbers and not account.numbers[0].endswith("*")),
        key=lambda account: account.user,
    )[:SHOWN_ACCOUNTS]
    if accounts and bound:
        files = ", ".join(os.path.relpath(name) for name in config.policy.lines) or "your line import"
        rows.append(f"  register   server {bound[0][1]}:{bound[0][2]}, domain {config.registrar.realm}")
        rows += [f"             user {account.user}, number {account.numbers[0]}" for account in accounts]
        rows.append(f"             passwords: {files}")
        callee = accounts[-1].numbers[0]
        rows.append(f"  call       0{callee.removeprefix('+49')} from the first; 09001234567 is refused")
    rows.append("  look       sipproxy registrations, sipproxy calls, sipproxy cdr tail (each with -c and the same file)")
    return "\n".join(rows) + "\n"
