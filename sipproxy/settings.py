"""The engine's settings from the configuration and the ports that were taken."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from sipproxy.config_file import split_address
from sipproxy.engine.forward import parse_hop
from sipproxy.engine.guesses import GuessLimits
from sipproxy.engine.settings import DropRules, Listener, Rates, Settings, TrunkRoute
from sipproxy.sip.flow import is_literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sipproxy.config import Config, Limits, Trunk
    from sipproxy.orders import Spec

__all__ = ["engine_settings"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Bound = tuple[str, str, int]  # transport, IP, port


def engine_settings(config: Config, bound: Sequence[Bound], *, boot: str = "", siblings: Spec | None = None) -> Settings:
    """Settings for listeners bound as given, in the order of the configuration. The configuration has been checked.

    `boot` names the boot of the machine, "" when it is not known; `siblings` says which worker of the node this is.
    """
    registrar, calls, limits = config.registrar, config.calls, config.limits
    domains = frozenset(name.lower() for name in (registrar.realm, *registrar.domains))
    listeners = tuple(
        _listener(index, listen.advertised, place, domains)
        for index, (listen, place) in enumerate(zip(config.listen, bound, strict=True))
    )
    return Settings(
        node=config.node.id,
        realm=registrar.realm,
        domains=domains,
        listeners=listeners,
        trunks=tuple(_trunk(t, config) for t in sorted(config.trunk, key=lambda t: t.priority)),
        algorithms=registrar.algorithms,
        access_networks=tuple(ipaddress.ip_network(n, strict=False) for n in config.emergency.access_networks),
        default_expires_s=registrar.default_expires_s,
        min_expires_s=registrar.min_expires_s,
        max_expires_s=registrar.max_expires_s,
        max_contacts=registrar.max_contacts,
        path_sources=tuple(ipaddress.ip_network(n) for n in registrar.path_sources),
        service_routes=tuple(f"<{uri}>".encode() for uri in registrar.service_routes),
        static=tuple((user, uri.encode()) for user, _, uri in (text.partition(" ") for text in registrar.static)),
        static_ping_s=registrar.static_ping_s,
        flow_timer_s=registrar.flow_timer_s,
        setup_s=calls.setup_s,
        route_s=calls.route_s,
        dead_s=config.dns.dead_s,
        ring_s=calls.ring_s,
        maximum_s=calls.maximum_s,
        reap_s=calls.reap_s,
        recovered_reap_s=calls.recovered_reap_s,
        boot=boot,
        session_expires_s=calls.session_expires_s,
        min_se_s=calls.min_se_s,
        probe_s=calls.probe_s,
        slots=config.store.slots,
        store_wait_s=config.store.deadline_ms / 1000,
        udp_bytes=limits.udp_bytes,
        max_headers=limits.headers,
        max_transactions=limits.transactions,
        max_calls=limits.calls,
        max_bindings=limits.bindings,
        rates=rates_of(limits),
        guesses=GuessLimits(
            pair=limits.guesses_pair,
            user=limits.guesses_user,
            source=limits.guesses_source,
            answered=limits.guesses_answered,
            window_s=limits.guess_window_s,
            entries=limits.guess_entries,
        ),
        drops=DropRules(
            mode=config.kernel.drop,
            offences=config.kernel.drop_offences,
            window_s=config.kernel.drop_window_s,
            drop_s=config.kernel.drop_s,
            entries=config.kernel.drop_entries,
            allow=tuple(ipaddress.ip_network(n) for n in config.kernel.drop_allow),
        ),
        clients_proven=config.tls.clients != "none",
        contact_networks=tuple(ipaddress.ip_network(n) for n in registrar.contact_networks),
        carrier_headers=tuple(name.lower().encode() for name in registrar.carrier_headers),
        worker=siblings.worker if siblings is not None else 0,
        siblings=frozenset(siblings.names) if siblings is not None else frozenset(),
    )


def rates_of(limits: Limits) -> Rates:
    """What sources, lines, strangers and routers may send."""
    return Rates(
        source_per_s=limits.source_per_s,
        source_burst=limits.source_burst,
        line_per_s=limits.line_per_s,
        line_burst=limits.line_burst,
        strangers_per_s=limits.strangers_per_s,
        strangers_burst=limits.strangers_burst,
        registers_per_s=limits.registers_per_s,
        registers_burst=limits.registers_burst,
        credit_bytes=limits.credit_bytes,
        sources=limits.sources,
        lag_s=limits.lag_ms / 1000,
    )


def _listener(index: int, advertised: str, bound: Bound, domains: frozenset[str]) -> Listener:
    transport, host, port = bound
    shown, shown_port = host, port
    if advertised:
        name, _, digits = advertised.rpartition(":") if not advertised.endswith("]") else (advertised, "", "")
        shown, shown_port = (name, int(digits)) if name and digits.isdigit() else (advertised, port)
    shown = shown.strip("[]")
    literal = f"[{shown}]" if ":" in shown else shown
    hosts = {(host, port), (shown.lower(), shown_port), *((domain, port) for domain in domains)}
    version = ipaddress.ip_address(host).version
    return Listener(index, transport, f"{literal}:{shown_port}".encode(), frozenset(hosts), version)


def _trunk(trunk: Trunk, config: Config) -> TrunkRoute:
    hop = parse_hop(trunk.uri.encode())
    places = [(listen.transport.upper(), listen.address) for listen in config.listen]
    if trunk.listen:
        hop = hop._replace(listener=places.index((hop.transport, trunk.listen)), is_open=False)
    sources = trunk.addresses or ((hop.host,) if is_literal(hop.host) else ())
    return TrunkRoute(
        trunk.name,
        hop,
        tuple(_source(source) for source in sources),
        trunk.priority,
        trunk.weight,
        names=tuple(name.lower().removesuffix(".") for name in trunk.names),
        foreign=trunk.foreign,
        ping_s=trunk.ping_s,
        calls=trunk.calls,
        user=trunk.user,
        password=trunk.password,
        realm=trunk.realm,
        register=trunk.register,
        domain=trunk.domain,
        expires_s=trunk.expires_s,
    )


def _source(text: str) -> tuple[Network, int]:
    """A source of incoming calls: IP, IP:port or network; port 0 for any."""
    try:
        return ipaddress.ip_network(text, strict=False), 0
    except ValueError:
        host, port = split_address(text)
        return ipaddress.ip_network(host), port
