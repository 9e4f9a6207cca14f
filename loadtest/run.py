"""Measurements against a real node that this program starts: registrations, calls at a rate, outages.

    python -m loadtest mix evening
    python -m loadtest compare --rate 200
    python -m loadtest goodput
    python -m loadtest soak
    python -m loadtest fields --calls 10000
    python -m loadtest kill --calls 50
    python -m loadtest cdrkills --kills 200 --rate 20
    python -m loadtest billing --records 30000 --outage 600
    python -m loadtest cdr --records 50000
    python -m loadtest channels
    python -m loadtest vanish
    python -m loadtest faults --only flushed
    python -m loadtest flood --sources 500
    python -m loadtest storm --routers 20000
    python -m loadtest slow --connections 2000

Every call is compared with its record by Call-ID, and the slots are counted.
Ends with status 1 when something is lost, left over or refused, with 2 when nothing could be measured. Leaves out: a node on
another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loadtest import channels
from loadtest.billing import bill_through_trouble
from loadtest.cdr_cost import backlog_report, consume_report, journal_report, publish_report
from loadtest.compare_command import add_compare
from loadtest.cost import add_cost
from loadtest.ending import each_done, until_ended
from loadtest.faults import Timing, fault_report, run_fault
from loadtest.fields import mixed_calls, report_of
from loadtest.generate import Load, at_rate, percentile
from loadtest.goodput import add_goodput
from loadtest.kill_command import add_cdrkills
from loadtest.memory import add_memory
from loadtest.mix_command import add_mix
from loadtest.mixed import LOAD_SETTINGS
from loadtest.network import Network, many_lines
from loadtest.options import amount, amount_or_0, count
from loadtest.outages import kill_during_calls
from loadtest.overload import Flood, Storm, flood, flood_report, storm, storm_report
from loadtest.postgres import Postgres
from loadtest.report import Report, counted, progress_of, show
from loadtest.slow import add_slow
from loadtest.soak import add_soak
from loadtest.store_faults import FAULTS
from loadtest.valkey import Valkey
from loadtest.vanish import MARGIN_S, WAYS, vanish, way_of
from sipproxy.config_file import ConfigError

if TYPE_CHECKING:
    from loadtest.agents import Router
    from loadtest.node import LineSpec

__all__ = ["main"]

CHANNELS = 2
SETTLE_S = 30.0
KILL_LEASE_S = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = _parser().parse_args(arguments)
    _raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=getattr(options, "loop_factory", None)) as runner:
            reports = runner.run(until_ended(options.run(options)))
    except (ConfigError, RuntimeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except asyncio.CancelledError:
        sys.stderr.write("\nended before there was anything to report\n")
        return 2
    show(reports, as_json=options.json)
    return 0 if all(report.ok for report in reports) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="write JSON instead of tables")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_mix(commands, common)
    add_compare(commands, common)
    add_goodput(commands, common)
    add_soak(commands, common)
    fields = commands.add_parser("fields", parents=[common], help="calls of every kind, each field of their records compared")
    fields.add_argument("--calls", type=count, default=10_000, help="how many (default %(default)s)")
    fields.add_argument("--rate", type=amount, default=40.0, help="a second (default %(default)s)")
    fields.add_argument("--seed", type=int, default=1, help="of their order (default %(default)s)")
    fields.set_defaults(run=_run_fields)
    faults = commands.add_parser("faults", parents=[common], help="the store in trouble, in each known way, under calls")
    faults.add_argument("--only", choices=tuple(FAULTS), action="append", help="this fault; again for several")
    faults.add_argument("--before", type=amount_or_0, default=15.0, help="seconds before (default %(default)s)")
    faults.add_argument("--during", type=amount, default=20.0, help="seconds of each fault (default %(default)s)")
    faults.add_argument("--stop", type=amount, default=60.0, help="seconds that the store is stopped (default %(default)s)")
    faults.add_argument("--after", type=amount_or_0, default=20.0, help="seconds after (default %(default)s)")
    faults.add_argument("--rate", type=amount, default=15.0, help="calls a second (default %(default)s)")
    faults.add_argument("--hold", type=amount_or_0, default=3.0, help="seconds that a call lasts (default %(default)s)")
    faults.add_argument("--registered", type=count, default=7200, help="seconds of a registration (default %(default)s)")
    faults.set_defaults(run=_run_faults)
    kill = commands.add_parser("kill", parents=[common], help="kill the node during live calls and start it again")
    kill.add_argument("--calls", type=count, default=50, help="live calls (default %(default)s)")
    kill.add_argument("--away", type=amount_or_0, default=5.0, help="seconds until it is started again (default %(default)s)")
    kill.set_defaults(run=_run_kill)

    add_cdrkills(commands, common)

    contest = commands.add_parser(
        "channels", parents=[common], help="simultaneous set-ups on one line over two nodes or workers"
    )
    contest.add_argument("--rounds", type=count, default=100, help="rounds (default %(default)s)")
    contest.add_argument("--calls", type=count, default=200, help="set-ups of a round (default %(default)s)")
    contest.add_argument("--channels", type=count, default=2, help="channels that there are (default %(default)s)")
    contest.add_argument("--limit", choices=channels.LIMITS, default="line", help="what has them (default %(default)s)")
    patient = channels.PATIENT_MS
    contest.add_argument("--deadline", type=count, default=patient, help="ms, store.deadline_ms (default %(default)s)")
    text = "of one node, instead of two nodes (default: two nodes)"
    contest.add_argument("--workers", type=count, default=1, metavar="N", help=text)
    contest.set_defaults(run=_run_channels)

    gone = commands.add_parser("vanish", parents=[common], help="answered calls whose parties vanish")
    gone.add_argument("--calls", type=count, default=500, help="answered calls (default %(default)s)")
    gone.add_argument("--by", choices=WAYS, action="append", help="how it is noticed; again for several (default: each)")
    gone.add_argument("--reap", type=count, default=45, help="seconds of silence, calls.reap_s (default %(default)s)")
    gone.add_argument("--probe", type=count, default=5, help="seconds until a party is asked (default %(default)s)")
    gone.set_defaults(run=_run_vanish)

    flooded = commands.add_parser("flood", parents=[common], help="a flood, with live calls and 112 among it")
    flooded.add_argument("--rate", type=amount, default=5000.0, help="messages a second (default %(default)s)")
    flooded.add_argument("--seconds", type=amount, default=60.0, help="for so long (default %(default)s)")
    flooded.add_argument("--sources", type=count, action="append", help="addresses; again for several (default: 1 and 500)")
    text = "instead: what looks like parts of calls, from where a router is registered"
    flooded.add_argument("--customer", action="store_true", help=text)
    flooded.set_defaults(run=_run_flood)
    stormy = commands.add_parser("storm", parents=[common], help="all routers register anew, as after a power cut")
    stormy.add_argument("--routers", type=count, default=20_000, help="how many (default %(default)s)")
    stormy.add_argument("--over", type=amount, default=10.0, help="seconds within which they begin (default %(default)s)")
    stormy.add_argument("--calm", type=amount, default=120.0, help="seconds for the first registration (default %(default)s)")
    stormy.set_defaults(run=_run_storm)
    add_slow(commands, common)
    add_cost(commands, common)
    add_memory(commands, common)

    billing = commands.add_parser("billing", parents=[common], help="kill consumers, take their database away; rates")
    billing.add_argument("--records", type=count, default=30_000, help="records (default %(default)s)")
    billing.add_argument("--outage", type=amount_or_0, default=10.0, help="seconds without database (default %(default)s)")
    billing.set_defaults(run=_run_billing)

    records = commands.add_parser("cdr", parents=[common], help="what records cost; a backlog that drains under live calls")
    records.add_argument("--calls", type=count, default=20_000, help="calls in the journal (default %(default)s)")
    records.add_argument("--waiting", type=count, default=1_000, help="calls that wait for the disk (default %(default)s)")
    records.add_argument("--records", type=count, default=50_000, help="records in the stream (default %(default)s)")
    records.add_argument("--rate", type=amount, default=25.0, help="live calls a second (default %(default)s)")
    records.add_argument("--seconds", type=amount, default=30.0, help="for so long (default %(default)s)")
    records.set_defaults(run=_run_cdr)

    return parser


async def _run_fields(options: argparse.Namespace) -> list[Report]:
    tell = progress_of("fields")
    found = await mixed_calls(
        options.calls, rate=options.rate, seed=options.seed, on_progress=lambda made: tell(f"{made} of {options.calls} calls")
    )
    return [report_of(found)]


async def _run_faults(options: argparse.Namespace) -> list[Report]:
    async def measure(name: str) -> Report:
        during = options.stop if name == "stopped" else options.during
        timing = Timing(options.before, during, options.after, options.rate, options.hold, options.registered)
        return fault_report(await run_fault(name, timing, progress_of(f"faults, {name}")))

    return await each_done(options.only or list(FAULTS), measure)


async def _run_channels(options: argparse.Namespace) -> list[Report]:
    limit = channels.LIMITS[options.limit]
    async with contextlib.AsyncExitStack() as stack:
        network = Network(
            limit.lines(options.rounds, options.channels, options.calls),
            settings=channels.settings(options.deadline),
            route=limit.route(options.channels),
            workers=options.workers,
        )
        await stack.enter_async_context(network)
        other = await stack.enter_async_context(network.another_node()) if options.workers == 1 else None
        found = await channels.contend(
            network,
            other,
            rounds=options.rounds,
            calls=options.calls,
            channels=options.channels,
            kind=options.limit,
            progress=progress_of("channels"),
        )
    return [channels.report_of(found)]


async def _run_vanish(options: argparse.Namespace) -> list[Report]:
    return await each_done(options.by or WAYS, lambda name: _vanish_by(name, options))


async def _vanish_by(name: str, options: argparse.Namespace) -> Report:
    way = way_of(name, reap_s=options.reap, probe_s=options.probe)
    lines = many_lines(-(-options.calls // CHANNELS), channels=CHANNELS)
    async with Network(lines, settings={**LOAD_SETTINGS, "calls": way.calls}) as network:
        routers = await _routers(network, lines, tcp_every=2)
        found = await vanish(network, routers, options.calls, way, progress=progress_of(f"vanish, {name}"))
    report = Report(f"by {name}")
    report.add("calls", "answered calls whose parties vanished", found.calls)
    report.add("transports", "their routers by", counted(found.transports))
    report.add("refreshed", "of them with a sign of life after the answer", found.refreshed)
    report.add("bound_s", "bound from the last proof of life", found.bound_s, "s")
    for share, which in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        report.add(f"bye_{which}_s", f"last proof of life until the BYE, {which}", percentile(found.byes_s, share), "s")
    report.add("without_bye", "sides that had no BYE", sum(found.without.values()))
    report.add("slots_before", "slots before", found.slots_before)
    report.add("slots_left", "slots left", found.slots_left)
    off = [abs(value) for value in found.ends_off_ms]
    report.add("end_off_max_ms", "record's end against the last proof of life, at worst", max(off, default=0.0), "ms")
    report.add("reconciled", "records", str(found.result))
    report.expect(len(found.byes_s) == found.calls, f"{found.calls - len(found.byes_s)} calls were not ended")
    worst = max(found.byes_s, default=0.0)
    report.expect(worst <= found.bound_s + MARGIN_S, f"a call ended {worst:.1f} s after its last proof of life")
    report.expect(not found.without, f"no BYE was sent to {found.without}")
    report.expect(not found.strange, f"BYEs of no dialog: {found.strange[:3]}")
    report.expect(found.slots_before == found.calls, "slots were not those of the calls")
    report.expect(found.slots_left == 0, "slots are left over")
    report.expect(not found.wrong, f"records: {found.wrong[:3]}")
    report.expect(found.result.ok, str(found.result))
    return report


async def _run_kill(options: argparse.Namespace) -> list[Report]:
    lines = many_lines(-(-options.calls // CHANNELS), channels=CHANNELS)
    settings: dict[str, Mapping[str, object]] = {
        **LOAD_SETTINGS,
        "store": {"lease_s": KILL_LEASE_S, "refresh_s": KILL_LEASE_S // 3},
    }
    async with Network(lines, settings=settings) as network:
        routers = await _routers(network, lines)
        found = await kill_during_calls(network, routers, options.calls, away_s=options.away)
    report = Report(f"node killed during {options.calls} live calls and started again after {options.away:g} s")
    report.add("live", "live calls at the kill", found.live)
    report.add("left", "of these hung up before the restart", found.left)
    report.add("slots", "slots at the kill", found.slots_at_kill)
    report.add("restart_s", "restart until OPTIONS was answered", found.restart_s, "s")
    report.add("slots_right_s", "restart until slots were those of the calls that live on", found.slots_right_s, "s")
    report.add("broken", "broken dialogs", len(found.broken))
    report.add("slots_left", "slots left when all calls had ended", found.slots_left)
    report.add("bindings_before", "bindings before", found.bindings_before)
    report.add("bindings_after", "bindings after", found.bindings_after)
    report.add("reached", "routers reached without a new registration", f"{found.reached} of {min(5, len(lines))}")
    report.add(
        "uncertain", "records that say that their end is not certain", sum(not r.duration_certain for r in found.records)
    )
    report.add("reconciled", "records", str(found.result))
    report.expect(found.bindings_before == found.bindings_after == len(lines), "bindings were lost")
    report.expect(found.reached == min(5, len(lines)), "routers were not reached after the restart")
    report.expect(found.slots_right == found.live - found.left, "slots were not those of the calls that live on")
    report.expect(found.slots_left == 0, "slots are left over")
    report.expect(not found.broken, f"dialogs broke: {found.broken[:3]}")
    report.expect(not found.interrupted, "answered calls were cut by the restart")
    report.expect(found.result.ok, str(found.result))
    return [report]


async def _run_flood(options: argparse.Namespace) -> list[Report]:
    many = (0,) if options.customer else options.sources or (1, 500)
    plans = [Flood(options.rate, options.seconds, sources) for sources in many]
    return [flood_report(plan, await flood(plan, progress_of(f"{plan.sources or 'customer'}"))) for plan in plans]


async def _run_storm(options: argparse.Namespace) -> list[Report]:
    plan = Storm(options.routers, options.over, options.calm)
    return [storm_report(plan, await storm(plan, progress_of("storm")))]


async def _run_billing(options: argparse.Namespace) -> list[Report]:
    rates = await consume_report(records=options.records)
    async with Valkey() as store:
        with Postgres() as database:
            found = await bill_through_trouble(
                store.client, store.url, database, records=options.records, outage_s=options.outage, dies_at=20, deaths=5
            )
    report = Report(f"{options.records} records into PostgreSQL, which is away for {options.outage:g} s")
    report.add("rows", "rows", found.rows)
    report.add("kills", "consumers killed between insert and acknowledgement", found.kills)
    report.add("seconds", "until all was acknowledged", found.seconds, "s")
    for name in ("missing", "unexpected", "different"):
        ids = getattr(found, name)
        report.add(name, name, len(ids))
        report.expect(not ids, f"{name}: {ids[:5]}")
    report.add("letters", "dead letters (one entry is no record, one is refused)", len(found.letters))
    report.expect(len(found.letters) == 2, f"dead letters: {[letter.reason for letter in found.letters[:5]]}")
    report.expect(found.pending == 0, f"{found.pending} entries are not acknowledged")
    return [rates, report]


async def _run_cdr(options: argparse.Namespace) -> list[Report]:
    tell = progress_of("cdr")
    load = Load(options.rate, options.seconds)
    tell("journal")
    reports = [await journal_report(calls=options.calls, waiting=options.waiting, rate=options.rate)]
    tell("publish")
    reports.append(await publish_report(records=options.records))
    tell("consume")
    reports.append(await consume_report(records=options.records))
    reports.append(await backlog_report(records=options.records, load=load, before_s=options.seconds / 3, progress=tell))
    return reports


async def _routers(network: Network, lines: Sequence[LineSpec], *, tcp_every: int = 0) -> list[Router]:
    """A router for each line, registered a few at a time; with `tcp_every` each of so many has a connection."""
    routers = [
        await network.router(line.user, register=False, tcp=bool(tcp_every) and number % tcp_every == 0)
        for number, line in enumerate(lines)
    ]

    async def register(number: int) -> None:
        response = await routers[number].register()
        if response.status != 200:
            raise RuntimeError(f"{routers[number].name} was answered {response.status}")

    await at_rate(200, len(routers), register)
    return routers


def _raise_file_limit() -> None:
    """Each simulated router has a socket: take what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
