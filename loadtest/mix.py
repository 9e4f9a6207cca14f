"""A mix of traffic as a TOML file describes it: how many calls when, of which kinds, how long, and who registers.

`read` tells every fault of a file at once, with line, key and what to do; `arrivals` is the clock of the calls, which no answer
of the system under test moves. Leaves out: placing them, which is in generator.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from sipproxy.config import Config, Section
from sipproxy.config_file import ConfigError, Fault, Reader, read_tables

__all__ = [
    "KINDS",
    "MIXES",
    "PATIENCE_S",
    "Accounts",
    "Calls",
    "Hold",
    "Kind",
    "Load",
    "Mix",
    "Shares",
    "Storm",
    "arrivals",
    "read",
]

MIXES = Path(__file__).with_name("mixes")
Kind = Literal["answered", "busy", "cancelled", "lost_bye", "blocked", "over_limit", "emergency", "incoming"]
KINDS: tuple[Kind, ...] = ("answered", "busy", "cancelled", "lost_bye", "blocked", "over_limit", "emergency", "incoming")
Positive = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
SPARE = 6.0  # s that an account rests between two calls at least, so that its last one is over whatever had to be repeated
ROUNDING_S = 1e-6  # sums of many distances
PATIENCE_S = 4.0  # from the first INVITE until the answer: who waits longer has not been served well
LOST_BYE_S = 60.0  # s that the account of a call whose BYE was lost is left alone


class Load(Section, frozen=True):
    """When calls begin: `rate` a second or `steps` of [from this second on, calls a second]; for `seconds` or until `calls`."""

    rate: Positive = 0.0
    steps: list[tuple[Positive, Positive]] = []
    seconds: Positive = 0.0
    calls: Count = 0
    arrivals: Literal["random", "even"] = "random"
    failed_at_most: Share = 0.0


class Accounts(Section, frozen=True):
    """The simulated routers. Each has a line of its own with `channels` channels, and calls on half of them at most."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    channels: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    algorithm: Literal["MD5", "SHA-256"] = "MD5"
    keep_nonce: bool = False
    register_per_s: Annotated[float, msgspec.Meta(gt=0, le=100_000)] = 300.0
    refresh_per_s: Positive = 0.0

    @property
    def calls_at_once(self) -> int:
        """Of one router: half of its channels, so that it never meets its limit by a call that is not quite over."""
        return max(1, self.channels // 2)


class Hold(Section, frozen=True):
    """How long an answered call lasts, in seconds."""

    kind: Literal["fixed", "exponential", "lognormal"] = "exponential"
    mean_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    sigma: Annotated[float, msgspec.Meta(gt=0, le=3)] = 1.0
    at_most_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 3600.0

    def draw(self, rng: random.Random) -> float:
        """One length."""
        if self.kind == "fixed":
            return self.mean_s
        if self.kind == "exponential":
            return min(self.at_most_s, rng.expovariate(1 / self.mean_s) if self.mean_s else 0.0)
        mu = math.log(self.mean_s) - self.sigma**2 / 2 if self.mean_s else -math.inf  # its mean is then mean_s
        return min(self.at_most_s, rng.lognormvariate(mu, self.sigma) if self.mean_s else 0.0)


class Calls(Section, frozen=True):
    """What calls are like: `ring_s` until the answer or, of cancelled ones, the CANCEL; who hangs up."""

    ring_s: Annotated[float, msgspec.Meta(ge=0, le=170)] = 0.0
    ended_by_callee: Share = 0.0


class Shares(Section, frozen=True):
    """The share of each kind; together 1."""

    answered: Share = 0.0
    busy: Share = 0.0
    cancelled: Share = 0.0
    lost_bye: Share = 0.0
    blocked: Share = 0.0
    over_limit: Share = 0.0
    emergency: Share = 0.0
    incoming: Share = 0.0


class Storm(Section, frozen=True):
    """`accounts` routers register anew within `within_s`, beginning at second `at_s`."""

    at_s: Positive
    accounts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 1.0


class Mix(Section, frozen=True):
    """A whole file. `node` are tables of the node's configuration."""

    name: str
    load: Load
    shares: Shares
    seed: int = 1
    accounts: Accounts = Accounts()
    calls: Calls = Calls()
    hold: Hold = Hold()
    storm: Annotated[tuple[Storm, ...], msgspec.Meta(max_length=100)] = ()
    node: dict[str, dict[str, str | int | float | bool]] = {}

    def share(self, kind: Kind) -> float:
        return float(getattr(self.shares, kind))

    def rate_at(self, second: float) -> float:
        """Calls a second at that time."""
        if not self.load.steps:
            return self.load.rate
        return next((rate for start, rate in reversed(self.load.steps) if start <= second), 0.0)


def read(path: Path, instead: Mapping[tuple[str, str], object] | None = None) -> Mix:
    """The mix in a file, or of that name among those that are shipped; `instead` are values in place of the file's, by section
    and key, None for a key that is left out. Raises ConfigError with every fault."""
    if path.name == str(path) and not path.is_file() and (MIXES / f"{path.name}.toml").is_file():
        path = MIXES / f"{path.name}.toml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in MIXES.glob("*.toml")))
        raise ConfigError(
            [Fault(str(path), 0, "", f"there is no such file, and no mix of that name is shipped; those are {known}")]
        )
    data, reader = read_tables(path, "loadtest/mixes/evening.toml explains every key")
    for (section, key), value in (instead or {}).items():
        table = data.setdefault(section, {}) if section else data
        if isinstance(table, dict):
            table.pop(key, None)
            table.update({} if value is None else {key: value})
    mix: Mix | None = reader.section(Mix, data, ())
    if mix is not None and not reader.faults:
        _check(mix, reader)
    reader.raise_faults()
    assert mix is not None
    return mix


def _check(mix: Mix, reader: Reader) -> None:
    load = mix.load
    if bool(load.rate) == bool(load.steps):
        reader.fault(("load",), "give either rate (calls a second) or steps ([[second, calls a second], ...])")
    starts = [start for start, _ in load.steps]
    if load.steps and (starts != sorted(set(starts)) or starts[0] != 0 or not any(rate for _, rate in load.steps)):
        reader.fault(
            ("load", "steps"), "begin with second 0, each later than the one before, one of them above 0 calls a second"
        )
    if bool(load.seconds) == bool(load.calls):
        reader.fault(("load",), "give either seconds (for so long) or calls (until there were so many)")
    if load.calls and load.steps and not load.steps[-1][1]:
        reader.fault(("load", "steps"), "end with a rate above 0 where calls says when it is enough")
    total = sum(mix.share(kind) for kind in KINDS)
    if abs(total - 1) > 1e-6:
        reader.fault(("shares",), f"are {total:g} together; make them 1")
    for index, storm in enumerate(mix.storm):
        if storm.accounts > mix.accounts.count:
            reader.fault(("storm", index, "accounts"), f"at most accounts.count, which is {mix.accounts.count}")
    reader.section(Config, mix.node, ("node",))
    needed = accounts_needed(mix)
    if mix.accounts.count < needed:
        detail = (
            f"{mix.accounts.count} are too few for these calls, which keep about {needed} busy; give more, or shorter calls"
        )
        reader.fault(("accounts", "count"), detail)


def accounts_needed(mix: Mix) -> int:
    """How many routers the calls of the busiest time keep busy on average, with the rest between two calls."""
    busiest = max([mix.load.rate, *(rate for _, rate in mix.load.steps)])
    talking = mix.shares.answered + mix.shares.incoming + mix.shares.emergency
    each = SPARE + mix.calls.ring_s + mix.hold.mean_s * talking + (LOST_BYE_S + mix.hold.mean_s) * mix.shares.lost_bye
    return math.ceil(busiest * each * (1 - mix.shares.over_limit) / mix.accounts.calls_at_once)


def arrivals(mix: Mix, rng: random.Random) -> Iterator[float]:
    """The seconds at which calls begin, counted from the start of the clock.

    Random arrivals are a Poisson process whose rate follows the steps; even ones have the same distance within a step.
    """
    load = mix.load
    edges = [start for start, _ in load.steps] or [0.0]
    ends = [*edges[1:], math.inf]
    at, placed = 0.0, 0
    work = rng.expovariate(1.0) if load.arrivals == "random" else 0.0  # expected calls until the next one
    for start, end in zip(edges, ends, strict=True):
        rate, at = mix.rate_at(start), start
        while True:
            if rate * (end - at) <= work if rate else True:
                work -= rate * (end - at) if rate else 0.0
                break
            at += work / rate
            if (load.seconds and at >= load.seconds - ROUNDING_S) or (load.calls and placed >= load.calls):
                return
            yield at
            placed += 1
            work = rng.expovariate(1.0) if load.arrivals == "random" else 1.0
