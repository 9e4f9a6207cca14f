"""Reads a configuration file: TOML to `Config`, with all faults told at once, each with file, line, key and what to do.

The values are checked one by one against the structs of config.py, then against each other. TOML parsers keep no
positions, so the lines of the keys are found by a scan of their own. Paths become absolute, as seen from the file's
folder. Leaves out: whether an address can be bound or a store be reached, which only a start can tell.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from policy.model import DestinationClass
from sipproxy.config import Calls, Config, Dns, Listen, Section, Trunk

__all__ = ["ConfigError", "Fault", "Reader", "key_lines", "load", "name_server", "read_tables", "split_address"]

MAX_FILE_BYTES = 1_000_000
# RFC 3261 §8.1.1, §16.6, §20: what is taken from customers' messages may not be called like one of these.
NEEDED_HEADERS = (
    " accept alert-info allow authorization call-id call-info contact content- cseq event expires from join max-forwards min-se"
    " p-asserted-identity privacy proxy- rack reason record-route refer-to replaces require route rseq session-expires subject"
    " supported timestamp to unsupported user-agent via warning "
)

ROUTE = re.compile(r"sips?:(?:[A-Za-z0-9._-]+@)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?(?:;[^\s<>?,]*)?;lr")
STATIC = re.compile(r"[^\s]+ sip:(?:[^@\s;?]+@)?(\[[0-9A-Fa-f:.]+\]|[0-9.]+)(?::[0-9]{1,5})?(?:;transport=([A-Za-z]+))?")

Key = tuple[str | int, ...]


class Fault(NamedTuple):
    """One thing that is wrong: `key` as dotted text ("" for the file as a whole), `line` from 1 or 0 when unknown."""

    file: str
    line: int
    key: str
    detail: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.detail}" if self.key else f"{place}: {self.detail}"


class ConfigError(Exception):
    """A configuration that cannot be used. `faults` holds every fault found, in the order of the file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def load(path: Path) -> Config:
    """The configuration in `path`, its paths absolute. Raises ConfigError."""
    data, reader = read_tables(path, "name a file with -c FILE, or start from config.example.toml")
    config = reader.config(data)
    _check(config, reader)
    reader.raise_faults()
    return _absolute(config, reader.folder)


def read_tables(path: Path, advice: str) -> tuple[dict[str, object], Reader]:
    """The tables of a TOML file, and what turns them into structs and knows their lines. Raises ConfigError, with
    `advice` where the file cannot be read."""
    text = _read(path, advice)
    try:
        return tomllib.loads(text), Reader(path, key_lines(text))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        detail = re.sub(r" \(at .*\)$", "", str(error))
        fault = Fault(
            str(path), int(line[1]) if line else text.count("\n") + 1, "", f"not TOML: {detail[:1].lower()}{detail[1:]}"
        )
        raise ConfigError([fault]) from None


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6]:port`, without brackets; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:5060")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets: [{host}]:{port}")
    return host, int(port)


def name_server(text: str) -> tuple[str, int]:
    """Address and port of `IP` or `IP:port`; ValueError says what is wrong."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        host, port = split_address(text)
        return str(ipaddress.ip_address(host)), port


def _read(path: Path, advice: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError([Fault(str(path), 0, "", f"cannot be read ({error.strerror or error}); {advice}")]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(
            [Fault(str(path), 0, "", f"larger than {MAX_FILE_BYTES} bytes; lines and lists belong into CSV files")]
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Fault(str(path), line, "", "not UTF-8; save the file in that encoding")]) from None


# ---------------------------------------------------------------------------------------------- where the keys stand

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]#]+)\]\]?")
_ASSIGNMENT = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_STRING = re.compile(r"'''.*?'''|\"\"\".*?\"\"\"|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|#[^\n]*", re.DOTALL)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _without_texts(text: str) -> str:
    """`text` with as many lines, where comments and texts of several lines are blank and others hold no bracket."""

    def plain(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith(("#", "'''", '"""')):
            return re.sub(r"[^\n]", " ", found)
        return re.sub(r"[\[\]{}=]", "_", found)

    return _STRING.sub(plain, text)


def key_lines(text: str) -> dict[Key, int]:
    """The line (from 1) of every key and table of a valid TOML text; array tables are counted from 0."""
    found: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    depth = 0  # open brackets of a value that spans lines
    for number, line in enumerate(_without_texts(text).split("\n"), start=1):
        value = line
        if depth == 0 and (header := _HEADER.match(line)):
            table = ()
            parts = _parts(header[2])
            for position, part in enumerate(parts, start=1):
                table = (*table, part)
                found.setdefault(table, number)
                if header[1] == "[[" and position == len(parts):
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
                    found.setdefault(table, number)
            continue
        if depth == 0 and (assignment := _ASSIGNMENT.match(line)):
            key: Key = table
            for part in _parts(assignment[1]):
                key = (*key, part)
                found.setdefault(key, number)
            value = line[assignment.end() :]
        depth = max(0, depth + sum(map(value.count, "[{")) - sum(map(value.count, "]}")))
    return found


def _dotted(key: Key) -> str:
    """`[[trunk]]` 1, `uri` is spelled `trunk[1].uri`, counted from 1 as a person counts."""
    text = ""
    for part in key:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# ----------------------------------------------------------------------------------------------- values, one by one


class Reader:
    """Converts tables to structs and keeps every fault instead of stopping at the first."""

    def __init__(self, path: Path, lines: dict[Key, int]) -> None:
        self._path = path
        self._lines = lines
        self.folder = path.resolve().parent
        self.faults: list[Fault] = []

    def fault(self, key: Key, detail: str) -> None:
        known = key
        while known and known not in self._lines:
            known = known[:-1]
        self.faults.append(Fault(str(self._path), self._lines.get(known, 0), _dotted(key), detail))

    def raise_faults(self) -> None:
        """Raise ConfigError with all faults in the order of the file, if there are any."""
        if self.faults:
            raise ConfigError(sorted(self.faults, key=lambda fault: fault.line))

    def config(self, data: dict[str, object]) -> Config:
        """The whole file; faulty sections have their defaults, faulty entries of a list are None."""
        return Config(**{name: value for name, value in self._fields(Config, data, ()).items() if value is not None})

    def section(self, kind: type[Section], data: object, key: Key) -> Any:
        """An instance of `kind`, or None after telling what is wrong."""
        if not isinstance(data, dict):
            self.fault(key, f"is a table: write [{_dotted(key)}] on a line of its own and its keys below")
            return None
        faults_before = len(self.faults)
        values = self._fields(kind, data, key)
        return kind(**values) if len(self.faults) == faults_before else None

    def _fields(self, kind: type[Section], data: dict[str, object], key: Key) -> dict[str, Any]:
        types = get_type_hints(kind, include_extras=True)
        for name in data.keys() - types.keys():
            close = difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(types)}"
            self.fault((*key, name), f"unknown {'key' if key else 'section'}; {hint}")
        values = {}
        for field in msgspec.structs.fields(kind):
            if field.name in data:
                values[field.name] = self._value(types[field.name], data[field.name], (*key, field.name))
            elif field.required:
                self.fault(key, f"{field.name!r} is missing")
        return values

    def _value(self, kind: Any, value: object, key: Key) -> Any:
        if isinstance(kind, type) and issubclass(kind, Section):
            return self.section(kind, value, key)
        item = _section_of_array(kind)
        if item is not None:
            if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                self.fault(key, f"is a list of tables: write [[{_dotted(key)}]] above each")
                return None
            entries = tuple(self.section(item, entry, (*key, index)) for index, entry in enumerate(value))
            limits = next(meta for meta in get_args(kind)[1:] if isinstance(meta, msgspec.Meta))
            if not (limits.min_length or 0) <= len(entries) <= (limits.max_length or len(entries)):
                self.fault(key, f"{len(entries)} entries; {limits.min_length or 0} to {limits.max_length} are possible")
            return entries
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.fault(key, "is a text of at most 255 characters" if key[-1] == "password" else _reason(error, kind, value))
            return None


def _reason(error: msgspec.ValidationError, kind: Any, value: object) -> str:
    """What msgspec says, in our words where it does not say what to write instead."""
    choices = _choices(kind) if get_origin(kind) is Literal or "enum" in str(error) else ()
    detail = f"one of {', '.join(map(repr, choices))}" if choices else str(error).replace("`", "")
    detail = re.sub(r" - at \$\[(\d+)\]$", lambda match: f" in entry {int(match[1]) + 1}", detail)
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    return f"{detail[:1].lower()}{detail[1:]}" + ("" if ", got" in detail else f", got {shown}")


def _choices(kind: Any) -> tuple[object, ...]:
    """The values of the Literal within an annotation, or ()."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for inner in get_args(kind) if (found := _choices(inner))), ())


def _section_of_array(kind: Any) -> type[Section] | None:
    """The struct of a `tuple[Struct, ...]` annotation, or None."""
    inner = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if get_origin(inner) is tuple:
        item = get_args(inner)[0]
        if isinstance(item, type) and issubclass(item, Section):
            return item
    return None


# ------------------------------------------------------------------------------------- values against each other


def _check(config: Config, reader: Reader) -> None:
    _check_listen(config.listen, reader)
    _check_tls(config, reader)
    _check_trunks(config.trunk, reader)
    _check_registrar(config, reader)
    _check_dns(config.dns, reader)
    store = config.store
    if store.url and urlsplit(store.url).scheme not in ("redis", "rediss", "unix"):
        reader.fault(("store", "url"), 'begins with redis://, rediss:// or unix://; leave it "" for the embedded store')
    if store.refresh_s * 2 > store.lease_s:
        detail = f"at most half of lease_s = {store.lease_s}, so that one refresh may be lost"
        reader.fault(("store", "refresh_s"), detail)
    for section, address in (("metrics", config.metrics.address), ("hep", config.hep.address)):
        if address:
            with _told(reader, (section, "address")):
                split_address(address)
    if config.hep.address:
        with _told(reader, ("hep", "address")):
            ipaddress.ip_address(split_address(config.hep.address)[0])
    for key, networks in (
        (("emergency", "access_networks"), config.emergency.access_networks),
        (("kernel", "drop_allow"), config.kernel.drop_allow),
    ):
        for index, network in enumerate(networks):
            with _told(reader, (*key, index)):
                ipaddress.ip_network(network)
    if config.calls.route_s > config.calls.setup_s:
        reader.fault(("calls", "route_s"), f"at most setup_s, which is {config.calls.setup_s}")
    _check_bounds(config.calls, reader)
    _check_unbilled(config.cdr.unbilled, reader)
    for name in ("lines", "psap", "blocks"):
        for index, file in enumerate(getattr(config.policy, name)):
            if not (reader.folder / file).is_file():
                reader.fault(("policy", name, index), f"there is no file {str(reader.folder / file)!r}")


def _check_bounds(calls: Calls, reader: Reader) -> None:
    """The bounds of answered calls: a call is not reaped before its parties had the time to prove that they are there."""
    if 0 < calls.session_expires_s < calls.min_se_s:
        reader.fault(("calls", "session_expires_s"), f"0, or at least min_se_s, which is {calls.min_se_s}")
    longest = max(calls.session_expires_s, calls.probe_s)
    if calls.reap_s <= longest:
        reader.fault(("calls", "reap_s"), f"above session_expires_s and probe_s, so above {longest}")


def _check_unbilled(entries: tuple[str, ...], reader: Reader) -> None:
    """Classes, or profile:class. One that is misspelt would have the wrong records kept, or deleted, without a word."""
    from policy import profiles  # noqa: PLC0415  most commands never ask

    classes = {"internal", *DestinationClass}
    for index, entry in enumerate(entries):
        profile, colon, name = entry.rpartition(":")
        if name not in classes:
            known = f"known are {', '.join(sorted(classes))}"
            reader.fault(("cdr", "unbilled", index), f"{name[:40]!r} is no destination class; {known}")
        if colon and profile not in (products := profiles.load()):
            reader.fault(("cdr", "unbilled", index), f"{profile[:40]!r} is no profile; known are {', '.join(products)}")


@contextlib.contextmanager
def _told(reader: Reader, key: Key) -> Iterator[None]:
    """A ValueError of the body becomes a fault at `key`."""
    try:
        yield
    except ValueError as error:
        reader.fault(key, str(error))


def _check_dns(dns: Dns, reader: Reader) -> None:
    for index, server in enumerate(dns.servers):
        with _told(reader, ("dns", "servers", index)):
            name_server(server)


def _check_listen(listens: tuple[Listen | None, ...], reader: Reader) -> None:
    seen: dict[tuple[str, str, int], int] = {}
    for index, listen in enumerate(listens):
        if listen is None:
            continue
        with _told(reader, ("listen", index, "address")):
            host, port = split_address(listen.address)
            try:
                ip = ipaddress.ip_address(host)
            except ValueError:
                raise ValueError(f"{host!r} is not an IP address; a name may stand in 'advertised'") from None
            if ip.is_unspecified and not listen.advertised:
                reader.fault(
                    ("listen", index), f"{listen.address} is every address: say in 'advertised' under which one peers reach it"
                )
            twin = seen.setdefault((listen.transport, str(ip), port), index)
            if twin != index and port:
                raise ValueError(f"the same as listen[{twin + 1}]")
        if listen.advertised and not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", listen.advertised):
            reader.fault(("listen", index, "advertised"), f"{listen.advertised!r} is not host or host:port")


def _check_tls(config: Config, reader: Reader) -> None:
    secure = [index for index, listen in enumerate(config.listen) if listen is not None and listen.transport == "tls"]
    if secure and not config.tls.certificate:
        reader.fault(("listen", secure[0], "transport"), "tls needs 'certificate' in [tls]")
    for name in ("certificate", "key", "ca"):
        file = getattr(config.tls, name)
        if file and not (reader.folder / file).is_file():
            reader.fault(("tls", name), f"there is no file {str(reader.folder / file)!r}")
    listens = {listen.transport for listen in config.listen if listen is not None}
    trunks: tuple[Trunk | None, ...] = config.trunk
    for index, trunk in enumerate(trunks):
        if trunk is None:
            continue
        if trunk.names and config.tls.clients == "none":
            reader.fault(("trunk", index, "names"), 'needs clients = "optional" or "required" in [tls]')
        found = re.search(r";transport=([A-Za-z]+)", trunk.uri)
        transport = found[1].lower() if found is not None else "udp"
        places = {listen.address for listen in config.listen if listen is not None and listen.transport == transport}
        if listens and not places:
            reader.fault(("trunk", index, "uri"), f'needs a [[listen]] with transport = "{transport}"')
        elif trunk.listen and trunk.listen not in places:
            reader.fault(
                ("trunk", index, "listen"), f"is the address of no {transport} [[listen]]: {', '.join(sorted(places))}"
            )


def _check_trunks(trunks: tuple[Trunk | None, ...], reader: Reader) -> None:
    names: set[str] = set()
    for index, trunk in enumerate(trunks):
        if trunk is None:
            continue
        if trunk.name in names:
            reader.fault(("trunk", index, "name"), f"{trunk.name!r} is taken by a trunk above")
        names.add(trunk.name)
        if not re.fullmatch(r"sip:([^@\s]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(;[^\s?]*)?", trunk.uri):
            reader.fault(
                ("trunk", index, "uri"), f"{trunk.uri[:80]!r} is not a next hop such as sip:192.0.2.10:5060;transport=udp"
            )
        _check_trunk_user(index, trunk, reader)
        for position, address in enumerate(trunk.addresses):
            with _told(reader, ("trunk", index, "addresses", position)):
                _check_source(address)


def _check_trunk_user(index: int, trunk: Trunk, reader: Reader) -> None:
    """What a route's credentials and its registration need of each other. A password is never shown."""
    if trunk.user and not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=%-]+", trunk.user):
        reader.fault(("trunk", index, "user"), "not the user part of a SIP URI: letters, digits and -._~!$&'()*+,;=%")
    if trunk.user and not trunk.password:
        reader.fault(("trunk", index, "user"), "needs 'password' beside it")
    for name in ("password", "realm", "register", "domain"):
        if getattr(trunk, name) and not trunk.user:
            reader.fault(("trunk", index, name), "needs 'user' beside it")
    if trunk.domain and not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", trunk.domain):
        reader.fault(("trunk", index, "domain"), f"{trunk.domain!r} is not host or host:port")


def _check_source(text: str) -> None:
    """IP, IP:port or network; ValueError otherwise."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_network(text)
        return
    host, _ = split_address(text)
    ipaddress.ip_address(host)


def _check_registrar(config: Config, reader: Reader) -> None:
    registrar = config.registrar
    if not registrar.min_expires_s <= registrar.default_expires_s <= registrar.max_expires_s:
        detail = f"lies between min_expires_s = {registrar.min_expires_s} and max_expires_s = {registrar.max_expires_s}"
        reader.fault(("registrar", "default_expires_s"), detail)
    if re.search(r'["\\\x00-\x1f\x7f]', registrar.realm):
        reader.fault(("registrar", "realm"), "holds a quote, a backslash or a control character")
    if len(set(registrar.algorithms)) != len(registrar.algorithms):
        reader.fault(("registrar", "algorithms"), "names an algorithm twice")
    for name in ("contact_networks", "path_sources"):
        for index, network in enumerate(getattr(registrar, name)):
            with _told(reader, ("registrar", name, index)):
                ipaddress.ip_network(network)
    _check_routes(config, reader)
    for index, name in enumerate(registrar.carrier_headers):
        if not re.fullmatch(r"[A-Za-z0-9.!%*_+`'~-]+", name):
            reader.fault(("registrar", "carrier_headers", index), f"{name!r} is no beginning of a header name")
        elif f" {name.lower()}" in NEEDED_HEADERS:
            reader.fault(("registrar", "carrier_headers", index), f"{name!r} would take headers that every message needs")


def _check_routes(config: Config, reader: Reader) -> None:
    """What routers are told to send calls by, and where PBXs are that do not register."""
    registrar = config.registrar
    for index, uri in enumerate(registrar.service_routes):
        if not re.fullmatch(
            r"sips?:([A-Za-z0-9._-]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(;[^\s<>?,]*)?;lr", uri
        ):
            reader.fault(("registrar", "service_routes", index), f"{uri[:80]!r} is not a route such as sip:192.0.2.1:5060;lr")
    transports = {listen.transport for listen in config.listen if listen is not None}
    for index, text in enumerate(registrar.static):
        found = STATIC.fullmatch(text)
        if found is None:
            detail = f"{text[:80]!r} is not an account and a contact with an IP address, such as 'pbx1 sip:192.0.2.20:5060'"
            reader.fault(("registrar", "static", index), detail)
        elif (found[2] or "udp").lower() not in transports:
            reader.fault(("registrar", "static", index), f'needs a [[listen]] with transport = "{(found[2] or "udp").lower()}"')
        else:
            with _told(reader, ("registrar", "static", index)):
                ipaddress.ip_address(found[1].strip("[]"))


def _absolute(config: Config, folder: Path) -> Config:
    files = {name: tuple(str(folder / file) for file in getattr(config.policy, name)) for name in ("lines", "psap", "blocks")}
    secrets = {name: getattr(config.tls, name) for name in ("certificate", "key", "ca")}
    return msgspec.structs.replace(
        config,
        node=msgspec.structs.replace(config.node, data_dir=str(folder / config.node.data_dir)),
        policy=msgspec.structs.replace(config.policy, **files),
        tls=msgspec.structs.replace(config.tls, **{name: str(folder / file) for name, file in secrets.items() if file}),
    )
