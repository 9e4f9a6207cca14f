"""Snapshots made from the one before are those that are read whole, over random changes in a real store."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from policy import codec, history, profiles, store
from policy.change import Change, after_plan, plan
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.patch import Values, patched, touched_by
from policy.table import PolicyError

if TYPE_CHECKING:
    import redis.asyncio

PLACES = ("*", "hill", "town")
EVERYWHERE = tuple(PsapRoute("*", service, 1, f"sip:{service}@a") for service in ("110", "112"))


def random_change(draw: random.Random, snapshot: Snapshot) -> Change:
    """Some lines with accounts and numbers of their own, rules and routes set, some removed."""
    lines, accounts = [], []
    for number in draw.sample(range(8), draw.randint(0, 3)):
        users = [f"u{number}-{n}" for n in range(draw.randint(1, 3))]
        status = draw.choice(list(LineStatus))
        lines.append(Line(f"L{number}", "velbert", status, draw.choice([None, 4]), "town", "02051", tuple(users)))
        for n, user in enumerate(users):
            numbers = [f"+49205{number}{n}{k}" for k in draw.sample(range(6), 2)] + [f"+49205{number}{n}{draw.randint(6, 9)}*"]
            accounts.append(
                Account(user, f"L{number}", AccountKind.TRUNK, {"MD5": f"{draw.randint(0, 3):032x}"}, tuple(numbers))
            )
    gone = [key for key in snapshot.lines if key not in {line.id for line in lines} and draw.random() < 0.2]
    rules = [BlockRule(f"r{n}", f"+4{draw.randint(3, 8)}{n}", "x") for n in draw.sample(range(9), draw.randint(0, 3))]
    routes = [
        PsapRoute(
            draw.choice(PLACES), draw.choice(("110", "112")), draw.randint(1, 3), f"sip:1@{n}", "", draw.choice([None, 10**12])
        )
        for n in range(draw.randint(0, 2))
    ]
    return Change(
        lines=tuple(lines),
        accounts=tuple(accounts),
        psap=(*EVERYWHERE, *routes) if draw.random() < 0.5 else EVERYWHERE,
        blocks=tuple(rules),
        remove_lines=tuple(gone),
        remove_blocks=tuple(rule.id for rule in snapshot.blocks if draw.random() < 0.2),
        remove_psap=tuple(key for key in snapshot.psap if key[0] != "*" and draw.random() < 0.2),
    )


def values_of(touched: tuple[tuple[str, ...], ...], snapshot: Snapshot) -> Values:
    lines, accounts, psap, blocks = touched
    rules = {rule.id: rule for rule in snapshot.blocks}
    routes = {codec.psap_field(*key): found for key, found in snapshot.psap.items()}
    return Values(
        {key: snapshot.lines.get(key) for key in lines},
        {key: snapshot.accounts.get(key) for key in accounts},
        {key: routes.get(key) for key in psap},
        {key: rules.get(key) for key in blocks},
    )


def whole_change(version: int, entries: list[history.Entry], now: Snapshot) -> Change | None:
    """The way back to a version, or None when it needs passwords that nobody has any more."""
    try:
        return history.return_to(version, entries, now, everything=True)
    except PolicyError as error:
        if "passwords" not in str(error):
            raise
        return None


async def test_random_changes_read_in_part_or_whole_are_the_same_and_can_all_be_taken_back(client: redis.asyncio.Redis) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    known = profiles.load()
    former = await store.load(client, known=known)
    seen = {0: former}
    for _ in range(60):
        change = random_change(draw, former)
        planned = plan(change, former)
        version = await store.apply(client, change, who="tests", why="random")
        whole = await store.load(client, known=known)
        assert whole.version == version
        entries = await store.log_of(client, after=former.version + 1)
        touched = touched_by(entries)
        assert touched is not None
        assert patched(former, version, values_of(touched, whole)) == whole
        assert after_plan(former, planned).lines == whole.lines
        seen[version] = former = whole
    entries = await store.log_of(client)
    assert history.broken_links(entries) == []
    for version, snapshot in seen.items():
        back = after_plan(former, plan(history.return_to(version, entries, former, everything=False), former))
        assert back.blocks == snapshot.blocks
        assert back.lines == former.lines
        change = whole_change(version, entries, former)
        if change is None:
            continue
        back = after_plan(former, plan(change, former))
        assert (back.lines, back.accounts, back.psap, back.blocks) == (
            snapshot.lines, snapshot.accounts, snapshot.psap, snapshot.blocks,
        )  # fmt: skip
        assert (back.numbers, back.ranges) == (snapshot.numbers, snapshot.ranges)
