"""Commands on PSAP routes: set, check, export. The check is for people and for cron."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from policy.change import Change
from policy.emergency import ANY_LOCATION, routes_of
from policy.export import psap_cells, write_psap
from policy.model import LineStatus
from policy.parse_rules import PSAP_COLUMNS, read_psap
from policy.review import SERVICES, has_route
from policy.table import Fault, PolicyError
from sipproxy.commands.changing import change_data, export_text
from sipproxy.commands.output import REFUSED, USAGE, CommandError, Output
from sipproxy.commands.policy_data import load_snapshot, refused
from sipproxy.config import Config, load
from sipproxy.engine.forward import parse_hop
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    from policy.model import Line, PsapRoute, Snapshot

__all__ = ["Problem", "check", "export", "list_routes", "problems_of", "set_routes"]

NAMED = 10  # lines that one warning names
LEAST_ROUTES = 2  # an emergency call is tried over at least two ways


class Problem(NamedTuple):
    """`severity` is "error", which the exit status tells, or "warning"; `what` is the line, location or route."""

    severity: str
    code: str
    what: str
    detail: str


def set_routes(
    path: Path,
    output: Output,
    location: str,
    service: str,
    uris: Sequence[str],
    *,
    name: str,
    day: str,
    none: bool,
    why: str,
    dry_run: bool,
) -> int:
    """Set the routes of a location and service, in the order given, or none at all."""
    if bool(uris) == none:
        raise CommandError("give the routes' URIs in their order, or --none", code=USAGE)
    rows = [[location, service, str(index), uri, name, day] for index, uri in enumerate(uris, 1)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([PSAP_COLUMNS, *rows])
    try:
        routes = read_psap(text.getvalue(), file="the options") if rows else ()
    except PolicyError as error:
        faults = tuple(Fault(f"{location} {service}", 0, fault.column, fault.reason) for fault in error.faults)
        raise refused(PolicyError(faults)) from None

    def make(snapshot: Snapshot) -> Change:
        if not none:
            return Change(psap=routes)
        if (location, service) not in snapshot.psap:
            raise CommandError(f"{location} has no route for {service[:80]}; nothing was removed")
        return Change(remove_psap=((location, service),))

    done = f"{location} {service}: {len(routes)} routes"
    return change_data(path, output, make, why=why or done, dry_run=dry_run, done=done)


def export(path: Path, output: Output, *, form: str, file: Path | None) -> int:
    """PSAP routes as a file that `psap import` takes."""
    return export_text(path, output, file, lambda snapshot: write_psap(_in_order(snapshot), form=form))


def _in_order(snapshot: Snapshot) -> list[PsapRoute]:
    return [route for key in sorted(snapshot.psap) for route in snapshot.psap[key]]


def list_routes(path: Path, output: Output) -> int:
    """All PSAP routes."""
    rows = [psap_cells(route) for route in _in_order(load_snapshot(path))]
    output.value(rows)
    empty = "no PSAP routes: 110 and 112 reach nobody; `sipproxy psap import FILE.csv` adds some"
    output.table(PSAP_COLUMNS, ([row[key] for key in PSAP_COLUMNS] for row in rows), empty=empty)
    return 0


def check(path: Path, output: Output) -> int:
    """Tell what would keep an emergency call from its centre; 1 when there is an error."""
    config = load(path)
    snapshot = load_snapshot(path)
    found = problems_of(snapshot, config, time.time_ns() // 1_000_000)
    errors = sum(problem.severity == "error" for problem in found)
    rows: list[dict[str, Any]] = [problem._asdict() for problem in found]
    if errors:
        output.table(Problem._fields, found, empty="")
        raise CommandError(f"{errors} errors: emergency calls may reach nobody, or the wrong centre", code=REFUSED, faults=rows)
    output.value({"ok": True, "problems": rows, "lines": len(snapshot.lines), "version": snapshot.version})
    output.table(Problem._fields, found, empty=f"{len(snapshot.lines)} lines: every one has its routes")
    return 0


def problems_of(snapshot: Snapshot, config: Config, now_at_ms: int) -> list[Problem]:
    """Errors first, then warnings."""
    lines = [line for line in snapshot.lines.values() if line.status is not LineStatus.TERMINATED]
    found = [*_without_routes(snapshot, lines), *_foreign_codes(snapshot, lines), *_out_of_reach(snapshot, config)]
    found += _thin(snapshot, lines, now_at_ms)
    return sorted(found)


def _without_routes(snapshot: Snapshot, lines: Sequence[Line]) -> Iterator[Problem]:
    for line in lines:
        missing = [service for service in SERVICES if not has_route(snapshot, line.location, service)]
        if missing:
            detail = f"location {line.location!r} has no route for {' and '.join(missing)}"
            yield Problem("error", "no_route", f"line {line.id}", detail)


def _foreign_codes(snapshot: Snapshot, lines: Sequence[Line]) -> Iterator[Problem]:
    """Lines whose area code is none of the product's, or not that of most lines at the same place."""
    codes: dict[str, Counter[str]] = {}
    for line in lines:
        codes.setdefault(line.location, Counter())[line.area_code] += 1
    for line in lines:
        profile = snapshot.profiles.get(line.profile)
        if profile is not None and profile.area_codes and line.area_code not in profile.area_codes:
            detail = f"area code {line.area_code} is none of {line.profile}'s: {' '.join(profile.area_codes)}"
            yield Problem("error", "area_code", f"line {line.id}", detail)
    for location, counts in sorted(codes.items()):
        common, most = counts.most_common(1)[0]
        for code, count in sorted(counts.items()):
            if count < most:
                named = sorted(line.id for line in lines if (line.location, line.area_code) == (location, code))
                shown = " ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
                detail = f"area code {code} where {most} lines have {common}: are they there? {shown}"
                yield Problem("warning", "area_code", location, detail)


def _out_of_reach(snapshot: Snapshot, config: Config) -> Iterator[Problem]:
    """Routes over a transport that no listener of this node has."""
    transports = {listen.transport.upper() for listen in config.listen}
    families = {":" in listen.address.rpartition(":")[0] for listen in config.listen}
    for route in _in_order(snapshot):
        what = f"route {route.location} {route.service} {route.uri}"
        try:
            hop = parse_hop(route.uri.encode())
        except ParseError as error:
            yield Problem("error", "unreachable", what, f"not a next hop: {error}")
            continue
        if hop.transport.upper() not in transports:
            detail = f"needs {hop.transport}, and no [[listen]] of this node has it"
            yield Problem("error", "unreachable", what, detail)
        elif ":" in hop.host and True not in families:
            yield Problem("error", "unreachable", what, "an IPv6 address, and no [[listen]] of this node has one")


def _thin(snapshot: Snapshot, lines: Sequence[Line], now_at_ms: int) -> Iterator[Problem]:
    """What works, but with nothing in reserve, or with a table whose day has not come."""
    for location in sorted({line.location for line in lines}):
        for service in SERVICES:
            routes = routes_of(snapshot, location, service, now_at_ms)
            what = f"{location} {service}"
            if 0 < len(routes) < LEAST_ROUTES:
                yield Problem("warning", "single_route", what, "one route only: nothing is tried when it fails but the trunks")
            if routes and all((route.valid_from_ms or 0) > now_at_ms for route in routes):
                yield Problem("warning", "future_table", what, "no table is valid yet: the first one to come is used")
    used = {line.location for line in lines} | {ANY_LOCATION}
    for location in sorted({location for location, _ in snapshot.psap} - used):
        yield Problem("warning", "unused", location, "no line is there")
