"""Column profiles: which columns a record becomes for which reader.

Pure. `native` has every field of the record under its own name; the others speak another system's words, as far as a proxy
knows what they ask for. Stamps of foreign profiles are UTC, those of `german-csv` the clock on the wall in Germany.
Left out: how columns are written as bytes (`export`).

- `asterisk`: the columns of cdr_csv with loguniqueid and loguserfield, no header line, times as with usegmtime.
- `kamailio`: acc's columns with the extra columns of the default configuration, and those of its CDR table.
- `cgrates`: the primary fields of a CGRateS CDR; Usage in seconds, Cost -1 for "not rated".
- `german-csv`: for spreadsheets set to German.
"""

from __future__ import annotations

import datetime as dt
import operator
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from cdr.facts import Record

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROFILES", "Column", "Profile", "profile"]

BERLIN = ZoneInfo("Europe/Berlin")
PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    410: "Gone",
    433: "Anonymity Disallowed",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    482: "Loop Detected",
    483: "Too Many Hops",
    484: "Address Incomplete",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    500: "Server Internal Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Server Time-out",
    600: "Busy Everywhere",
    603: "Decline",
}


class Column(NamedTuple):
    """A column's name and its value, which JSON and MessagePack can hold."""

    name: str
    value: Callable[[Record], object]


class Profile(NamedTuple):
    """Columns, and how CSV spells them: the separator, header line, byte-order mark, and whether every text is quoted."""

    name: str
    columns: tuple[Column, ...]
    separator: str = ","
    header: bool = True
    bom: bool = False
    quote_texts: bool = False
    csv_only: bool = False


def profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError, which names those that there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"there is no column profile {name[:40]!r}; known are {', '.join(PROFILES)}") from None


def user_of(uri: str) -> str:
    """The user part of a URI as received, without parameters; the text itself when it is no SIP or tel URI."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme.lower() not in ("sip", "sips", "tel"):
        return uri
    return rest.partition("@")[0].partition(";")[0]


def host_of(uri: str) -> str:
    """The host of a SIP URI as received, "" where there is none."""
    return uri.partition("@")[2].partition(";")[0].partition("?")[0]


def _stamp(at_ms: int | None, pattern: str, zone: dt.tzinfo = dt.UTC) -> str:
    """A stamp, "" where there is none, and the bare number for one that no calendar holds."""
    if not at_ms:
        return ""
    try:
        return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=at_ms)).astimezone(zone).strftime(pattern)
    except (OverflowError, ValueError):
        return str(at_ms)


def _sql(at_ms: int | None) -> str:
    return _stamp(at_ms, "%Y-%m-%d %H:%M:%S")


def _iso(at_ms: int | None) -> str:
    return _stamp(at_ms, "%Y-%m-%dT%H:%M:%SZ")


def _german(at_ms: int | None) -> str:
    return _stamp(at_ms, "%d.%m.%Y %H:%M:%S", BERLIN)


def _comma(duration_ms: int) -> str:
    """Milliseconds as seconds with a decimal comma."""
    sign = "-" if duration_ms < 0 else ""
    return f"{sign}{abs(duration_ms) // 1000},{abs(duration_ms) % 1000:03d}"


def _number(record: Record) -> str:
    """The called number: canonical where it has a canonical form, else what was dialled."""
    return record.canonical if record.canonical not in ("", "-") else user_of(record.dialled)


def _caller(record: Record) -> str:
    return record.calling or user_of(record.presented)


def _disposition(record: Record) -> str:
    """Asterisk's word for the outcome."""
    if record.answer_at_ms is not None:
        return "ANSWERED"
    if record.status in (486, 600):
        return "BUSY"
    if record.status == 503 or record.cause in (34, 42):
        return "CONGESTION"
    if record.end_reason in ("cancelled", "no_answer") or record.status in (408, 480, 487):
        return "NO ANSWER"
    return "FAILED"


def _caller_side(record: Record) -> str:
    return record.trunk if record.direction == "incoming" else record.account or record.line


def _callee_side(record: Record) -> str:
    if record.direction == "incoming":
        return record.account or record.line
    return record.psap or record.callee_account or record.trunk


def _channel(name: str, record: Record) -> str:
    return f"SIP/{name}-{record.id}" if name else ""


_NATIVE = tuple(Column(name, operator.attrgetter(name)) for name in Record.__struct_fields__)

_ASTERISK = (
    Column("accountcode", lambda r: r.line),
    Column("src", _caller),
    Column("dst", _number),
    Column("dcontext", lambda r: r.direction),
    Column("clid", lambda r: r.presented or r.calling),
    Column("channel", lambda r: _channel(_caller_side(r), r)),
    Column("dstchannel", lambda r: _channel(_callee_side(r), r)),
    Column("lastapp", lambda _: "Dial"),
    Column("lastdata", lambda r: r.dialled),
    Column("start", lambda r: _sql(r.setup_at_ms)),
    Column("answer", lambda r: _sql(r.answer_at_ms)),
    Column("end", lambda r: _sql(r.end_at_ms)),
    Column("duration", lambda r: r.duration_ms // 1000),
    Column("billsec", lambda r: r.billable_ms // 1000),
    Column("disposition", _disposition),
    Column("amaflags", lambda _: "DOCUMENTATION"),
    Column("uniqueid", lambda r: r.id),
    Column("userfield", lambda r: r.end_reason),
)

_KAMAILIO = (
    Column("method", lambda _: "INVITE"),
    Column("from_tag", lambda r: r.from_tag),
    Column("to_tag", lambda r: r.to_tag),
    Column("callid", lambda r: r.call_id),
    Column("sip_code", lambda r: str(r.status)),
    Column("sip_reason", lambda r: PHRASES.get(r.status, "")),
    Column("time", lambda r: _sql(r.answer_at_ms or r.end_at_ms or r.setup_at_ms)),
    Column("src_user", _caller),
    Column("src_domain", lambda r: host_of(r.presented)),
    Column("src_ip", lambda r: r.source.rpartition(":")[0]),
    Column("dst_ouser", lambda r: user_of(r.dialled)),
    Column("dst_user", _number),
    Column("dst_domain", lambda r: host_of(r.dialled)),
    Column("start_time", lambda r: _sql(r.answer_at_ms or r.setup_at_ms)),
    Column("end_time", lambda r: _sql(r.end_at_ms)),
    Column("duration", lambda r: f"{r.billable_ms // 1000}.{r.billable_ms % 1000:03d}"),
)

_CGRATES = (
    Column("RunID", lambda _: "*default"),
    Column("OriginHost", lambda r: r.node),
    Column("Source", lambda _: "sipproxy"),
    Column("OriginID", lambda r: r.id),
    Column("ToR", lambda _: "*voice"),
    Column("RequestType", lambda _: "*postpaid"),
    Column("Tenant", lambda r: r.profile),
    Column("Category", lambda _: "call"),
    Column("Account", lambda r: r.line),
    Column("Subject", lambda r: r.account or r.line),
    Column("Destination", _number),
    Column("SetupTime", lambda r: _iso(r.setup_at_ms)),
    Column("AnswerTime", lambda r: _iso(r.answer_at_ms)),
    Column("Usage", lambda r: f"{r.billable_ms // 1000}.{r.billable_ms % 1000:03d}s"),
    Column("Supplier", lambda r: r.trunk or r.psap),
    Column("DisconnectCause", lambda r: str(r.cause)),
    Column("Cost", lambda _: -1),
    Column("Direction", lambda r: r.direction),
    Column("Calling", _caller),
    Column("DestinationClass", lambda r: r.destination_class),
    Column("TariffPrefix", lambda r: r.tariff_prefix),
)

_GERMAN = (
    Column("Kennung", lambda r: r.id),
    Column("Knoten", lambda r: r.node),
    Column("Laufnummer", lambda r: r.seq),
    Column("Richtung", lambda r: {"outgoing": "gehend", "incoming": "kommend", "internal": "intern"}[r.direction]),
    Column("Anschluss", lambda r: r.line),
    Column("Konto", lambda r: r.account),
    Column("Produkt", lambda r: r.profile),
    Column("Rufnummer A", _caller),
    Column("Rufnummer B", _number),
    Column("Gewählt", lambda r: r.dialled),
    Column("Klasse", lambda r: r.destination_class),
    Column("Tarifpräfix", lambda r: r.tariff_prefix),
    Column("Leitweg", lambda r: r.psap or r.trunk),
    Column("Beginn", lambda r: _german(r.setup_at_ms)),
    Column("Zeitzone", lambda r: {"CET": "MEZ", "CEST": "MESZ"}.get(zone := _stamp(r.setup_at_ms, "%Z", BERLIN), zone)),
    Column("Angenommen", lambda r: _german(r.answer_at_ms)),
    Column("Ende", lambda r: _german(r.end_at_ms)),
    Column("Dauer (s)", lambda r: _comma(r.duration_ms)),
    Column("Gesprächsdauer (s)", lambda r: _comma(r.billable_ms)),
    Column("Dauer sicher", lambda r: "ja" if r.duration_certain else "nein"),
    Column("SIP-Status", lambda r: r.status),
    Column("Ursache (Q.850)", lambda r: r.cause),
    Column("Beendet von", lambda r: r.released_by),
    Column("Grund", lambda r: r.end_reason),
    Column("Entscheidung", lambda r: r.verdict),
    Column("Regel", lambda r: r.rule),
)

PROFILES = {
    found.name: found
    for found in (
        Profile("native", _NATIVE),
        Profile("asterisk", _ASTERISK, header=False, quote_texts=True),
        Profile("kamailio", _KAMAILIO),
        Profile("cgrates", _CGRATES),
        Profile("german-csv", _GERMAN, separator=";", bom=True, csv_only=True),
    )
}
