"""What a node shows: its metrics, and the answers to `sipproxy calls` and `sipproxy registrations`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from cdr import pruning
from cdr.journal import JournalError
from sipproxy.admin.control import ControlError
from sipproxy.caches import Filled, caches, filled
from sipproxy.engine.location import STATIC
from sipproxy.engine.shed import Load
from sipproxy.shell import instant
from sipproxy.sip.text import text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cdr.journal import Journal
    from cdr.publisher import Publisher
    from cdr.quality import RunningFigures
    from cdr.readers import Backlog, Readers
    from sipproxy.admin.control import Handler
    from sipproxy.engine.core import Engine
    from sipproxy.engine.trunks import RouteHealth
    from sipproxy.metrics import Metrics
    from sipproxy.neighbours import Neighbours
    from sipproxy.net.transports import Transports
    from sipproxy.shell import Shell
    from sipproxy.store.bindings import Bindings
    from sipproxy.store.connection import Store
    from sipproxy.store.slots import Slots
    from sipproxy.store.traces import Traces

__all__ = ["handlers", "register", "register_readers"]

MAX_DROP_S = 7 * 86_400  # that an operator may drop a source for

Row = dict[str, Any]


def register(
    metrics: Metrics,
    *,
    engine: Engine,
    shell: Shell,
    transports: Transports,
    journal: Journal,
    publisher: Publisher,
    readers: Readers,
    store: Store,
    slots: Slots,
    bindings: Bindings,
    traces: Traces,
    neighbours: Neighbours,
) -> None:
    """Announce every metric of a node. What is read here is read on the event loop, at scrape time."""
    _engine_metrics(metrics, engine)
    _trunk_metrics(metrics, engine)
    _cdr_metrics(metrics, journal, publisher, shell)
    register_readers(metrics, readers)
    _cache_metrics(metrics, transports)

    def state() -> dict[tuple[str, ...], float]:
        return {(store.state.value, store.reason): 1.0}

    metrics.gauge("sipproxy_store_up", "1 when the store answers in time", lambda: float(store.state.value == "up"))
    metrics.gauge(
        "sipproxy_store_state",
        "1 for the store's state and its reason",
        state,
        ("state", "reason"),
    )
    metrics.gauge("sipproxy_store_pending", "commands queued and in flight", lambda: store.pending)
    metrics.counter("sipproxy_store_errors", "commands without a result", lambda: store.stats.errors, ("error",))
    metrics.gauge("sipproxy_store_latency_seconds", "of the last pipeline", lambda: store.stats.latency_ms / 1000)
    metrics.counter("sipproxy_slot_timeouts", "slots not answered for within the deadline", lambda: slots.timeouts)
    metrics.gauge("sipproxy_slots_owed", "releases and refreshes that the store has not confirmed", lambda: slots.owed)
    metrics.counter(
        "sipproxy_slots_unrepeatable",
        "releases that would not be repeated to a store that falls back to an old copy, for lack of room",
        lambda: slots.unrepeatable,
    )
    metrics.gauge(
        "sipproxy_traces_unwritten", "records of malicious calls that the store has not confirmed", lambda: traces.unwritten
    )
    metrics.counter("sipproxy_traces_dropped", "records of malicious calls that were lost", lambda: traces.dropped, ("reason",))
    metrics.counter(
        "sipproxy_drop_kernel",
        "entries written and removed in the kernel, and what went wrong",
        lambda: shell.kernel.counters if shell.kernel is not None else {},
        ("what",),
    )
    _binding_metrics(metrics, engine, bindings, neighbours)
    metrics.gauge("sipproxy_bindings_unwritten", "bindings that the store has not confirmed", lambda: bindings.unwritten)
    metrics.counter("sipproxy_transport", "what the listeners counted", transports.counters, ("transport", "what"))
    metrics.gauge("sipproxy_listeners_away", "listeners whose address is gone from this machine", lambda: len(transports.away))
    metrics.counter("sipproxy_send_failures", "messages that could not be sent", lambda: transports.failures, ("reason",))
    resolver = transports.resolver
    metrics.counter("sipproxy_dns_queries", "questions to name servers", lambda: resolver.counters["queries"])
    metrics.counter("sipproxy_dns_failures", "look-ups of names that led nowhere", lambda: resolver.failures, ("reason",))


def _engine_metrics(metrics: Metrics, engine: Engine) -> None:
    counters = engine.desk.counters
    families: dict[str, tuple[str, tuple[str, ...]]] = {
        "requests": ("requests received, without retransmissions and ACK to a non-2xx", ("method",)),
        "unanswered": (
            "requests of strangers that got no answer, which would have been longer than what they sent",
            ("method",),
        ),
        "responses": ("final responses sent upstream", ("method", "status")),
        "decisions": ("policy decisions", ("verdict", "rule")),
        "malformed": ("messages that could not be read", ("what",)),
        "auth_failures": ("requests without valid credentials", ("why",)),
        "guesses_limited": ("requests whose credentials were not looked at, by the budget that was used up", ("budget",)),
        "registers_refused": ("registrations for somebody else, by the header that says so", ("header",)),
        "contacts_refused": ("contacts that name what no router is reached at", ("why",)),
        "requests_refused": ("requests refused before policy", ("reason",)),
        "responses_dropped": ("responses that belong to nothing", ("reason",)),
        "responses_elsewhere": ("responses from elsewhere than where their request went", ("outcome",)),
        "branch_failures": ("forwarded INVITEs without a final response", ("reason",)),
        "pbx_failures": ("failures of PBXs with a fixed address", ("pbx", "reason")),
        "pbx_passed_over": ("calls that did not try a PBX that is down", ("account",)),
        "trunk_failures": ("failures of trunk routes", ("trunk", "reason")),
        "trunk_full": ("calls that a trunk route had no place for", ("trunk",)),
        "trunk_challenges": ("digest challenges of trunk routes", ("trunk", "outcome")),
        "challenges_kept": ("challenges of others that did not go upstream", ("why",)),
        "forwardings": ("redirections by customers' devices, and what became of them", ("outcome",)),
        "redirections_refused": ("redirections that are not followed", ("target",)),
        "late_2xx": ("answers to calls that were over, which were acknowledged and ended", ("target",)),
        "calls_ended": ("ended call attempts", ("reason",)),
        "drops": ("sources put on the drop list, by what they did", ("why",)),
        "drops_spared": ("sources that would have been, and are never dropped", ("why",)),
        "drops_ended": ("sources taken off the drop list", ("why",)),
        "drops_refused": ("sources that the drop list had no room for", ("why",)),
        "drops_forgotten": ("suspect sources forgotten for lack of room", ("why",)),
        "long_requests": ("requests too long for a datagram, and how they left or why over UDP after all", ("way",)),
        "places_forgotten": ("places forgotten that were known to take TCP, or not to", ("why",)),
        "setups_forgotten": ("lines whose started calls the guard against automatic dialling had no room for", ("reason",)),
        "stun": ("STUN messages on the SIP port, and what became of them", ("outcome",)),
        "flows_lost": ("bindings whose connection ended", ("transport",)),
        "responses_lost": ("responses to INVITEs that no way led back for, as the connection had ended", ()),
        "addresses_failed_over": ("requests that went on to another address of the same next hop", ()),
        "address_failures": ("failures of addresses of next hops", ("reason",)),
        "addresses_forgotten": ("dead addresses that there was no room to remember", ("reason",)),
        "flows_failed_over": ("INVITEs that went on by another flow of the same device", ()),
        "edge_requests": ("requests that passed through for another node's call", ("direction",)),
        "edge_refused": ("requests with another node's token that were not taken as such", ("reason",)),
        "edge_unreachable": ("bindings of other nodes that could not be tried", ("reason",)),
        "names_forgotten": ("names of next hops that there was no room for", ("reason",)),
        "bindings_refused": ("bindings of other nodes that were not taken", ("reason",)),
        "probes": ("parties of live calls that were asked whether they are there", ("side",)),
        "parties_lost": ("parties found gone, and sessions that expired", ("how",)),
        "records_dropped": ("records of refused attempts that found no room while they waited for the disk", ("rule",)),
        "refusals_forgotten": ("refused INVITEs whose repetition would be taken for another attempt", ("reason",)),
        "byes_again": ("parties told again after a restart that their call was over", ("side",)),
        "slots_undecided": ("slots decided without the store", ("way",)),
        "slots_forgotten": ("slots granted by a store that counted fewer than this node holds", ("kind",)),
        "soft_limit": ("calls that went beyond the soft limit of their line", ("profile",)),
        "slots_refused": (
            "slots refused, by what was full (line, account, trunk), or store, where none is given without it",
            ("why",),
        ),
    }

    def of(name: str) -> dict[tuple[str, ...], float]:
        return {key[1:]: value for key, value in counters.items() if key[0] == name}

    for name, (words, labels) in families.items():
        metrics.counter(f"sipproxy_{name}", words, partial(of, name), labels)
    _load_metrics(metrics, engine)
    guesses = engine.auth.guesses
    metrics.gauge("sipproxy_guess_entries", "names, sources and pairs whose guesses are counted", guesses.sizes, ("table",))
    metrics.counter("sipproxy_guesses_forgotten", "of them, those that there was no room for", lambda: guesses.forgotten)
    transactions = engine.desk.transactions
    metrics.gauge("sipproxy_calls_live", "calls between INVITE and end", lambda: engine.calls.live)
    metrics.gauge(
        "sipproxy_calls_known", "calls in the table, ended ones of the last 32 s included", lambda: len(engine.calls.by_id)
    )
    metrics.gauge("sipproxy_tasks", "tasks of the event loop", lambda: len(asyncio.all_tasks()))
    metrics.gauge(
        "sipproxy_transactions_live",
        "transactions by side",
        lambda: {"server": len(transactions.servers), "client": len(transactions.clients)},
        ("side",),
    )
    metrics.gauge("sipproxy_slots_held", "slots of this node's live calls", engine.channels.count, ("kind",))
    metrics.gauge("sipproxy_policy_version", "version of the snapshot in use", lambda: engine.desk.snapshot.version)
    metrics.gauge("sipproxy_lines", "lines in the snapshot", lambda: len(engine.desk.snapshot.lines))


def _cache_metrics(metrics: Metrics, transports: Transports) -> None:
    known: dict[str, Callable[[], Filled]] = {**caches(), "net.transports.ways": lambda: filled(transports.ways)}
    metrics.gauge(
        "sipproxy_cache_entries",
        "values that are kept of what was read before",
        lambda: {name: tell().entries for name, tell in known.items()},
        ("cache",),
    )
    metrics.counter(
        "sipproxy_cache_forgotten",
        "values that were read and are not kept any more, or never were as they were faults",
        lambda: {name: tell().forgotten for name, tell in known.items()},
        ("cache",),
    )


def _load_metrics(metrics: Metrics, engine: Engine) -> None:
    shedder, drops = engine.shedder, engine.desk.drops
    metrics.gauge("sipproxy_drop_entries", "sources on the drop list", lambda: len(drops))
    metrics.gauge("sipproxy_drop_suspects", "strangers whose offences are counted", lambda: drops.suspects)
    metrics.gauge("sipproxy_drop_unavailable", "1: the kernel drops nothing although it should", lambda: bool(drops.problem))
    metrics.counter(
        "sipproxy_shed",
        "messages not taken, by whose budget or what was full",
        lambda: _floats(shedder.counts),
        ("reason", "kind"),
    )
    metrics.gauge("sipproxy_registers_per_second", "REGISTERs of customers that are taken", lambda: shedder.pace.per_s)
    metrics.gauge(
        "sipproxy_registers_waiting",
        "routers that were told to register again at a later time",
        lambda: shedder.pace.calendar.waiting,
    )
    metrics.gauge(
        "sipproxy_load",
        "1 for the node's state: calm, or up to what is refused: scanners, options, register, invite; queue: new calls wait",
        lambda: {load.name.lower(): float(shedder.load is load) for load in Load} | {"queue": float(shedder.has_queue)},
        ("state",),
    )
    metrics.counter("sipproxy_load_changes", "times that a state was entered", lambda: dict(shedder.changes), ("state",))
    metrics.gauge(
        "sipproxy_buckets",
        "sources and lines whose messages are counted, and what parts of calls are counted by",
        lambda: {"source": len(shedder.sources), "line": len(shedder.lines), "parts": len(shedder.parts.budgets)},
        ("of",),
    )
    metrics.counter(
        "sipproxy_buckets_forgotten",
        "what messages are counted by, calls that were turned away and what workers are to be told, forgotten for lack of room",
        lambda: {
            "source": shedder.sources.evicted,
            "line": shedder.lines.evicted,
            "parts": shedder.parts.budgets.evicted,
            "turned_away": shedder.turned_away.evicted,
            "untold": shedder.spending.forgotten,
        },
        ("of",),
    )


def _binding_metrics(metrics: Metrics, engine: Engine, bindings: Bindings, neighbours: Neighbours) -> None:
    location, follower = engine.desk.location, neighbours.follower
    metrics.gauge(
        "sipproxy_registrations", "unexpired bindings over this node's flows", lambda: location.count - location.elsewhere
    )
    metrics.gauge("sipproxy_flows_left", "flows that bindings left, remembered for calls", lambda: location.left)
    metrics.gauge("sipproxy_registrations_elsewhere", "unexpired bindings of other nodes", lambda: location.elsewhere)
    metrics.gauge("sipproxy_bindings_followed", "1 while the log of bindings is followed", lambda: float(follower.is_following))
    metrics.gauge("sipproxy_bindings_behind_seconds", "since the log was read last", lambda: follower.behind_s)
    metrics.gauge(
        "sipproxy_bindings_lag_seconds", "from another node's write to our reading it", lambda: follower.lag_ms / 1000
    )
    metrics.counter("sipproxy_bindings_applied", "changes taken from other nodes", lambda: follower.applied)
    metrics.counter(
        "sipproxy_bindings_undecodable",
        "bindings and log entries that could not be read",
        lambda: bindings.undecodable + follower.undecodable,
    )
    metrics.counter(
        "sipproxy_bindings_rereads",
        "times that all bindings were read",
        lambda: dict(follower.rereads),
        ("reason",),
    )
    metrics.gauge("sipproxy_nodes", "nodes with a sign of life, this one included", lambda: len(neighbours.watch.nodes))


def _trunk_metrics(metrics: Metrics, engine: Engine) -> None:
    trunks = engine.desk.trunks

    def of(read: Callable[[RouteHealth], float | None]) -> dict[tuple[str, ...], float]:
        return {(health.route.name,): value for health in trunks if (value := read(health)) is not None}

    def registered(health: RouteHealth) -> float | None:
        return None if health.registration is None else float(health.registration.is_valid)

    def ping(health: RouteHealth) -> float | None:
        return None if health.ping_ms is None else health.ping_ms / 1000

    def addresses(health: RouteHealth, *, dead: bool) -> float:
        return sum(row["dead"] is dead for row in engine.desk.addresses.view(health.route.hop))

    label = ("trunk",)
    metrics.gauge(
        "sipproxy_trunk_addresses", "addresses of the route that live", lambda: of(lambda h: addresses(h, dead=False)), label
    )
    metrics.gauge(
        "sipproxy_trunk_addresses_dead", "those that failed lately", lambda: of(lambda h: addresses(h, dead=True)), label
    )
    proxies = "proxies in the Path of bindings, of which 200 are looked up ahead"
    metrics.gauge("sipproxy_path_proxies", proxies, lambda: len(engine.desk.location.proxies))
    metrics.gauge("sipproxy_addresses_dead", "addresses of any next hop that failed lately", lambda: engine.desk.addresses.dead)

    def pbxs() -> dict[tuple[str, ...], float]:
        return {(pbx.name,): float(pbx.state != "down") for pbx in engine.desk.statics if pbx.is_asked}

    metrics.gauge("sipproxy_pbx_up", "0 while a PBX with a fixed address is down", pbxs, ("pbx",))
    metrics.gauge("sipproxy_trunk_up", "0 while the route is down", lambda: of(lambda h: float(h.state != "down")), label)
    metrics.gauge("sipproxy_trunk_calls", "calls on the route", lambda: of(lambda h: trunks.calls(h.route.name)), label)
    metrics.gauge("sipproxy_trunk_limit", "calls that it may have; 0 for no limit", lambda: of(lambda h: h.route.calls), label)
    metrics.gauge("sipproxy_trunk_registered", "1 while the carrier holds our binding", lambda: of(registered), label)
    metrics.gauge("sipproxy_trunk_ping_seconds", "round trip of the last answered OPTIONS", lambda: of(ping), label)


def _floats(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], float]:
    return {key: float(number) for key, number in counts.items()}


def _quality_metrics(metrics: Metrics, quality: RunningFigures) -> None:
    """As `cdr quality` counts them: ASR is answered of all but refused, NER answered and effective of these."""

    def seconds(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], float]:
        return {group: ms / 1000 for group, ms in counts.items()}

    group = ("route", "profile")
    text = "attempts by outcome: answered, effective (ended by a user's doing), failed, refused by policy"
    metrics.counter("sipproxy_quality_calls", text, lambda: _floats(quality.calls), (*group, "outcome"))
    metrics.counter("sipproxy_quality_talk_seconds", "talking time", lambda: seconds(quality.talk_ms), group)
    metrics.counter("sipproxy_quality_ringing", "attempts that rang or were answered", lambda: _floats(quality.delays), group)
    metrics.counter(
        "sipproxy_quality_post_dial_delay_seconds", "sum of their post-dial delays", lambda: seconds(quality.delay_ms), group
    )


def _cdr_metrics(metrics: Metrics, journal: Journal, publisher: Publisher, shell: Shell) -> None:
    def journal_values() -> Mapping[str, float]:
        stats = journal.stats
        return {name: float(getattr(stats, name)) for name in stats._fields if name != "failure"}

    metrics.gauge("sipproxy_journal", "the CDR journal: sizes in bytes, times in ms", journal_values, ("what",))
    metrics.gauge("sipproxy_journal_failing", "1 while the disk refuses", lambda: float(bool(journal.stats.failure)))
    metrics.gauge(
        "sipproxy_journal_disk",
        "1 for the state of the journal's disk: ok, filling (80 % and more), full (95 %: no new calls but emergencies)",
        lambda: {state: float(shell.disk == state) for state in ("ok", "filling", "full")},
        ("state",),
    )
    waiting = "records of refused attempts that wait for the disk"
    metrics.gauge("sipproxy_records_held", waiting, lambda: shell.engine.refusals.held)
    metrics.gauge("sipproxy_journal_owed", "facts in memory because the disk refuses them", lambda: shell.facts_owed)
    metrics.counter("sipproxy_journal_lost", "facts lost because the disk refused too long", lambda: shell.facts_lost)
    _quality_metrics(metrics, shell.quality)
    metrics.gauge("sipproxy_cdr_backlog", "records not yet safe in the stream", lambda: publisher.stats.backlog)
    metrics.gauge("sipproxy_cdr_behind_ms", "for how long there has been a backlog", lambda: publisher.stats.behind_ms)
    metrics.counter("sipproxy_cdr_published", "records appended to the stream", lambda: publisher.stats.published)
    metrics.gauge("sipproxy_cdr_unconfirmed", "records that the journal keeps", lambda: publisher.stats.unconfirmed)
    metrics.gauge(
        "sipproxy_cdr_unconfirmed_ms", "age of the oldest a sink has not acknowledged", lambda: publisher.stats.unconfirmed_ms
    )
    metrics.gauge("sipproxy_cdr_sinks_missing", "1: a sink has no group", lambda: float(publisher.stats.sinks_missing))
    metrics.counter("sipproxy_cdr_resent", "times that the store had lost records", lambda: publisher.stats.resent)
    metrics.counter("sipproxy_cdr_interims", "start and interim records appended", lambda: publisher.stats.interims)
    metrics.counter("sipproxy_cdr_facts_forgotten", "start records from disk", lambda: publisher.stats.facts_forgotten)
    metrics.gauge("sipproxy_cdr_stream_entries", "in the stream when last looked at", lambda: publisher.stats.entries)
    metrics.counter("sipproxy_cdr_trimmed", "entries that this node removed from the stream", lambda: publisher.stats.trimmed)
    metrics.counter("sipproxy_cdr_errors", "of the publisher", lambda: publisher.stats.errors, ("error",))
    metrics.gauge(
        "sipproxy_cdr_publisher_state", "1 for the publisher's state", lambda: {publisher.stats.state: 1.0}, ("state",)
    )


def register_readers(metrics: Metrics, readers: Readers) -> None:
    """Nothing while the store does not answer: an old figure would look like a reader that works."""

    def one(name: str) -> dict[tuple[str, ...], float]:
        return {} if readers.seen is None else {(): float(getattr(readers.seen, name))}

    def of(read: Callable[[Backlog], float | None]) -> dict[tuple[str, ...], float]:
        groups = {} if readers.seen is None else readers.seen.groups
        return {(name,): value for name, backlog in groups.items() if (value := read(backlog)) is not None}

    label = ("group",)
    metrics.gauge("sipproxy_cdr_dead_letters", "entries that a group could not take", lambda: one("letters"))
    metrics.gauge("sipproxy_cdr_groups_untold", "consumer groups that are less behind than those told", lambda: one("untold"))
    metrics.gauge(
        "sipproxy_cdr_group_entries", "records that a group has not acknowledged", lambda: of(lambda b: b.entries), label
    )
    metrics.gauge("sipproxy_cdr_group_seconds", "age of the oldest of them", lambda: of(lambda b: b.oldest_s), label)
    metrics.gauge("sipproxy_cdr_pull_seconds", "since a pull for a group was complete", lambda: of(lambda b: b.pulled_s), label)


def handlers(
    engine: Engine, shell: Shell, store: Store, publisher: Publisher, neighbours: Neighbours, *, journal: Journal
) -> dict[str, Handler]:
    """What the control socket answers."""

    def calls(_: Row) -> Row:
        return {"calls": engine.calls.view(instant())}

    def registrations(_: Row) -> Row:
        desk = engine.desk
        now_ms = instant().utc_ms
        rows = [
            {
                "account": user,
                "line": desk.snapshot.accounts[user].line if user in desk.snapshot.accounts else "",
                "contact": text(binding.contact.encode("latin-1")),
                "node": binding.node or desk.settings.node,
                "flow": str(binding.flow),
                "reg_id": binding.reg_id,
                "path": [text(value.encode("latin-1")) for value in binding.path],
                "configured": binding.key.startswith(STATIC),
                "state": str(pbx.state) if pbx is not None and pbx.is_asked else "",
                "state_since_ms": pbx.since_ms if pbx is not None else None,
                "last_failure": pbx.failure if pbx is not None else "",
                "expires_at_ms": None if binding.key.startswith(STATIC) else binding.expires_at_ms,
                "user_agent": binding.user_agent,
            }
            for user, binding in desk.location.items()
            for pbx in (desk.statics.of(user, binding.flow),)
            if binding.expires_at_ms > now_ms
        ]
        rows.sort(key=lambda row: (row["account"], row["contact"]))
        return {"registrations": rows, "store": {"state": store.state.value, "reason": store.reason}}

    def nodes(_: Row) -> Row:
        return neighbours.view()

    def status(_: Row) -> Row:
        stats = publisher.stats
        return {
            "node": engine.desk.settings.node,
            "calls": engine.calls.live,
            "registrations": engine.desk.location.count - engine.desk.location.elsewhere,
            "policy_version": engine.desk.snapshot.version,
            "store": {"state": store.state.value, "reason": store.reason},
            "cdr": {"state": stats.state, "backlog": stats.backlog, "behind_ms": stats.behind_ms},
        }

    def trunks(_: Row) -> Row:
        return {"trunks": engine.desk.trunks.view()}

    def end(request: Row) -> Row:
        call, emergency = request.get("call"), request.get("emergency") is True
        state = shell.end_call(call, emergency_too=emergency) if isinstance(call, str) else "unknown"
        if state == "unknown":
            raise ControlError(f"there is no live call {str(call)[:80]!r} on this node")
        if state == "emergency":
            raise ControlError(f"{call} is an emergency call; --emergency ends it all the same")
        return {"id": call, "state": state}

    async def prune(request: Row) -> Row:
        before_ms = request.get("before_ms")
        if not isinstance(before_ms, int):
            raise ControlError("before_ms: expected a time in ms")
        try:
            await pruning.prune(journal, before_ms)
        except JournalError as error:
            raise ControlError(str(error)) from None
        return {}

    return {
        "calls": calls,
        "end": end,
        "nodes": nodes,
        "prune": prune,
        "registrations": registrations,
        "status": status,
        "trunks": trunks,
        **_drop_handlers(engine, shell),
    }


def _drop_handlers(engine: Engine, shell: Shell) -> dict[str, Handler]:
    """Those of the drop list."""

    def drops(_: Row) -> Row:
        return engine.desk.drops.view()

    def drop(request: Row) -> Row:
        address, for_s, who, why = (request.get(name) for name in ("address", "for_s", "who", "why"))
        if not (isinstance(address, str) and isinstance(for_s, int) and 0 < for_s <= MAX_DROP_S):
            raise ControlError(f"expected an address and for_s of 1 to {MAX_DROP_S} seconds")
        refusal = shell.change_drops(lambda list_: list_.add(address, for_s, why=str(why)[:200], by=str(who)[:80]))
        if refusal:
            raise ControlError(refusal)
        return engine.desk.drops.view()

    def spare(request: Row) -> Row:
        address, who = str(request.get("address")), str(request.get("who"))[:80]
        refusal = shell.change_drops(lambda list_: list_.remove(address, by=who))
        if refusal:
            raise ControlError(refusal)
        return engine.desk.drops.view()

    return {"drop": drop, "drops": drops, "spare": spare}
