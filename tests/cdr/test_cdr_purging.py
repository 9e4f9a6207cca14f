"""cdr.retention, cdr.purging and cdr.stats: what may not be kept goes, what must stay stays, and figures stay right."""

# ruff: noqa: ASYNC240  files of a test are small, and nothing else runs
from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cdr_samples import draft

from cdr import access, codec, dead, purging, stats, steps
from cdr.access import Access
from cdr.export import Writer, read
from cdr.exporting import know_folder
from cdr.files import Folder, digest, manifest
from cdr.purging import Purge, Report, holds, invoices, mark_invoiced, place_hold, purged, records_of, release_hold
from cdr.quality import Figures
from cdr.retention import DAY_MS, HOUR_MS, Hold, Invoice, Rules, due_at, months_after, reason_of
from cdr.stats import figures, roll_up
from cdr.stream import Stream
from cdr.wire import Link

if TYPE_CHECKING:
    import redis.asyncio

    from cdr.facts import Record

STREAM = "sp:cdr"
NOW_MS = 1_790_000_000_000
RULES = Rules(24 * HOUR_MS, 3, 90 * DAY_MS, frozenset({"freephone", "internal"}))
BILLED: dict[str, Any] = {
    "verdict": "allow",
    "answer_at_ms": 1,
    "billable_ms": 60_000,
    "end_reason": "normal",
    "destination_class": "mobile",
}


def call(name: str, age_ms: int, **fields: Any) -> Record:
    return draft(name, **{"setup_at_ms": NOW_MS - age_ms - 5, "end_at_ms": NOW_MS - age_ms, **fields})


REASONS = {
    "refused": call("refused", 0, verdict="deny", end_reason="refused"),
    "unanswered": call("unanswered", 0, verdict="allow", end_reason="rejected"),
    "incoming": msgspec.structs.replace(call("incoming", 0, **BILLED), direction="incoming"),
    "emergency": call("emergency", 0, **{**BILLED, "verdict": "emergency"}),
    "free": call("free", 0, **{**BILLED, "destination_class": "freephone"}),
    "billed": call("billed", 0, **BILLED),
    "fraud": call("fraud", 0, **{**BILLED, "end_reason": "fraud_hold"}),
    "live": call("live", 0, **BILLED, type="interim"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reason_of_record(name: str) -> None:
    assert reason_of(REASONS[name], RULES) == name


def test_reason_more_kinds() -> None:
    internal = msgspec.structs.replace(REASONS["billed"], direction="internal")
    assert reason_of(internal, RULES) == "free"
    assert reason_of(internal, RULES._replace(free=frozenset())) == "billed"
    assert reason_of(call("x", 0, **{**BILLED, "billable_ms": 0}), RULES) == "free"
    assert reason_of(call("x", 0, verdict="deny", rule="line.status.fraud_hold"), RULES) == "fraud"


def test_due_billed_only_after_its_invoice_was_sent() -> None:
    record = REASONS["billed"]
    assert due_at(record, RULES) == ("billed", None)
    later = Invoice(NOW_MS + 30 * DAY_MS, NOW_MS + 40 * DAY_MS)
    first = Invoice(NOW_MS + 1, NOW_MS + 10)
    assert due_at(record, RULES._replace(invoices=[later])) == ("billed", months_after(later.sent_ms, 3))
    assert due_at(record, RULES._replace(invoices=[later, first])) == ("billed", months_after(first.sent_ms, 3))
    assert due_at(record, RULES._replace(invoices=[Invoice(NOW_MS, NOW_MS)])) == ("billed", None)


@pytest.mark.parametrize(
    ("sent", "months", "gone"),
    [("2026-01-31", 1, "2026-02-28"), ("2026-11-30", 3, "2027-02-28"), ("2026-05-15", 6, "2026-11-15")],
)
def test_months_after_ends_with_the_month(sent: str, months: int, gone: str) -> None:
    at, then = (int(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp() * 1000) for day in (sent, gone))
    assert months_after(at, months) == then


def test_reason_flat_rate_of_a_profile_is_free_for_its_lines_alone() -> None:
    rules = RULES._replace(free=frozenset({"velbert:geographic", "badnauheim:internal"}))
    billed = msgspec.structs.replace(REASONS["billed"], destination_class="geographic", profile="velbert")
    assert reason_of(billed, rules) == "free"
    assert reason_of(msgspec.structs.replace(billed, profile="badnauheim"), rules) == "billed"
    assert reason_of(msgspec.structs.replace(billed, destination_class="mobile"), rules) == "billed"
    assert reason_of(msgspec.structs.replace(billed, profile="badnauheim", direction="internal"), rules) == "free"


def test_reason_line_on_fraud_hold_now_marks_what_it_called() -> None:
    rules = RULES._replace(fraud_lines=frozenset({"V1001"}))
    for name, reason in (("billed", "fraud"), ("refused", "fraud"), ("incoming", "incoming"), ("emergency", "emergency")):
        record = msgspec.structs.replace(REASONS[name], line="V1001")
        assert reason_of(record, rules) == reason
        assert reason_of(msgspec.structs.replace(record, line="V1002"), rules) == name


@pytest.fixture
async def link(client: redis.asyncio.Redis) -> AsyncIterator[Link]:
    made = Link(client, timeout_s=10)
    yield made
    await made.drop()


@pytest.fixture
def hook() -> Iterator[None]:
    yield
    steps.hook = None


async def put(link: Link, *given: Record) -> list[bytes]:
    found = []
    for record in given:
        parts = ("id", record.id, "v", 1, "type", record.type, "node", "n1", "seq", record.seq, "d", codec.encode(record))
        found.append(await link.call("XADD", STREAM, "*", *parts))
    return found


async def names(link: Link, key: str = STREAM) -> list[str]:
    return [
        dict(zip(parts[::2], parts[1::2], strict=True))[b"id"].decode() for _, parts in await link.call("XRANGE", key, "-", "+")
    ]


async def purge(link: Link, **options: Any) -> Report:
    rules = RULES._replace(invoices=await invoices(link, STREAM), holds=options.pop("holds", ()))
    settings = {"node": "n1", "now_ms": NOW_MS, "exports_ms": 72 * HOUR_MS, "access_ms": 90 * DAY_MS, **options}
    return await Purge(link, STREAM, rules, **settings).run()


def counts(table: dict[tuple[str, str], Any]) -> dict[str, int]:
    return {f"{place}: {reason}": tally.count for (place, reason), tally in table.items()}


OLD, FRESH, ANCIENT = 25 * HOUR_MS, 23 * HOUR_MS, 200 * DAY_MS


def mixed() -> list[Record]:
    return [
        call("old-refused", OLD, verdict="deny", end_reason="refused"),
        call("fresh-refused", FRESH, verdict="deny", end_reason="refused"),
        call("old-billed", OLD, **BILLED),
        call("ancient-billed", ANCIENT, **BILLED),
        call("old-fraud", OLD, **{**BILLED, "end_reason": "fraud_hold"}),
        call("ancient-fraud", ANCIENT, **{**BILLED, "end_reason": "fraud_hold"}),
        call("old-live", OLD, **BILLED, type="interim"),
    ]


async def test_purge_takes_what_is_due_by_reason_and_proves_it(link: Link) -> None:
    await put(link, *mixed())
    await mark_invoiced(link, STREAM, Invoice(NOW_MS - 190 * DAY_MS, NOW_MS - 180 * DAY_MS))
    dry = await purge(link, dry_run=True)
    assert len(await names(link)) == 7
    report = await purge(link)
    assert await names(link) == ["fresh-refused", "old-billed"]
    assert await names(link, "{sp:cdr}:held") == ["old-fraud"]
    assert counts(report.gone) == {
        "stream: refused": 1,
        "stream: billed": 1,
        "stream: live": 1,
        "stream: fraud, set apart": 2,
        "held: fraud": 1,
    }
    assert counts(dry.gone) == {name: count for name, count in counts(report.gone).items() if not name.startswith("held")}
    assert report.left == {}
    spans = report.gone["stream", "fraud, set apart"]
    assert (spans.first_ms, spans.last_ms) == (NOW_MS - ANCIENT, NOW_MS - OLD)
    assert (report.oldest_ms, report.not_invoiced.count) == (NOW_MS - OLD, 1)
    assert counts((await purge(link)).gone) == {}


async def test_purge_notes_numbers_and_verify_does_not_take_them_for_lost(link: Link) -> None:
    far = purging.NUMBERS + 7
    await put(link, *(call(f"c{seq}", OLD, **BILLED, seq=seq) for seq in (1, 3, far - 1)))
    await put(link, *(call(f"c{seq}", OLD, verdict="deny", seq=seq) for seq in (2, 9, far)))
    assert await purged(link, STREAM, "n1", 1, far + 9) == set()
    await purge(link)
    assert await names(link) == ["c1", "c3", f"c{far - 1}"]
    assert await purged(link, STREAM, "n1", 1, far + 9) == {2, 9, far}
    assert await purged(link, STREAM, "n1", 3, far - 1) == {9}
    assert await purged(link, STREAM, "n2", 1, far) == set()
    assert await link.call("TTL", f"{{sp:cdr}}:purged:n1:{1}") > 399 * 86_400


async def test_purge_keeps_what_an_objection_is_about_until_it_is_settled(link: Link) -> None:
    await put(link, *(call(f"c{hour}", hour * HOUR_MS, verdict="deny", line="V1001", seq=hour) for hour in (30, 40, 50)))
    await put(link, call("other", OLD, verdict="deny", line="V1002"), call("late", HOUR_MS, verdict="deny", line="V1001"))
    hold = Hold("V1001", NOW_MS - 40 * HOUR_MS - 5, NOW_MS, "file 7", NOW_MS)
    await place_hold(link, STREAM, "h1", hold)
    assert await holds(link, STREAM) == {"h1": hold}
    assert await records_of(link, STREAM, hold) == 3
    report = await purge(link, holds=[hold])
    assert await names(link) == []
    assert await names(link, "{sp:cdr}:held") == ["c30", "c40", "late"], "apart from the stream, which is trimmed"
    assert counts(report.gone) == {"stream: objection, set apart": 3, "stream: refused": 2}
    assert (report.left, report.on_hold.count, report.not_invoiced.count) == ({}, 3, 0)
    assert await records_of(link, STREAM, hold) == 3
    assert counts((await purge(link, holds=[hold], unacknowledged=True)).gone) == {}
    assert await release_hold(link, STREAM, "h1")
    assert not await release_hold(link, STREAM, "h1")
    report = await purge(link, holds=list((await holds(link, STREAM)).values()))
    assert (counts(report.gone), await names(link, "{sp:cdr}:held")) == ({"held: refused": 2}, ["late"])


async def test_purge_spares_what_a_group_has_not_acknowledged_unless_told(link: Link) -> None:
    entries = await put(link, *(call(f"c{number}", OLD, verdict="deny") for number in range(4)))
    await link.call("XGROUP", "CREATE", STREAM, "billing", "0")
    await link.call("XREADGROUP", "GROUP", "billing", "me", "COUNT", 3, "STREAMS", STREAM, ">")
    await link.call("XACK", STREAM, "billing", entries[0], entries[2])
    report = await purge(link)
    assert await names(link) == ["c1", "c2", "c3"]
    assert counts(report.left) == {"stream: refused, not acknowledged by every group": 3}
    assert counts(report.gone) == {"stream: refused": 1}
    report = await purge(link, unacknowledged=True)
    assert (await names(link), report.left) == ([], {})


async def test_purge_dead_letters_stay_unless_told(link: Link) -> None:
    (entry,) = await put(link, call("c1", OLD, verdict="deny"))
    await link.call("XGROUP", "CREATE", STREAM, "billing", "0")
    await link.call("XREADGROUP", "GROUP", "billing", "me", "STREAMS", STREAM, ">")
    (found,) = await link.call("XRANGE", STREAM, "-", "+")
    fields = dict(zip(found[1][::2], found[1][1::2], strict=True))
    letter = dead.Letter("", entry.decode(), "billing", "refused: no such line", 0, 1, fields)
    assert await dead.bury(link.call, STREAM, letter) == 1
    report = await purge(link)
    assert counts(report.gone) == {"stream: refused": 1}
    assert counts(report.left) == {"dead letters: refused, not acknowledged by billing": 1}
    report = await purge(link, unacknowledged=True)
    assert counts(report.gone) == {"dead letters: refused": 1}
    assert [letter async for letter in dead.letters(link.call, STREAM)] == []


@pytest.mark.parametrize("step", ["purge.counted", "purge.taken", "purge.unlinked"])
async def test_purge_that_is_cut_off_is_run_again(link: Link, tmp_path: Path, step: str, hook: None) -> None:
    class DiedError(BaseException):
        pass

    def die(name: str) -> None:
        if name == step:
            raise DiedError

    await put(link, *mixed())
    await exported(link, tmp_path)
    steps.hook = die
    with pytest.raises(DiedError):
        await purge(link)
    steps.hook = None
    report = await purge(link)
    assert report.left == {}
    assert await names(link) == ["fresh-refused", "old-billed", "ancient-billed"]
    assert await names(link, "{sp:cdr}:held") == ["old-fraud"]
    assert list(tmp_path.glob("cdr-*")) == []
    assert total(await figures(link, STREAM, "", "")).attempts == 6


async def exported(link: Link, path: Path, age_ms: int = 80 * HOUR_MS) -> None:
    with Folder(path, node="n1") as folder:
        part = folder.begin(Writer("csv"), at_ms=NOW_MS - age_ms, stamp="20260101T000000Z")
        part.add(call("c", age_ms))
        folder.finish(part.close(profile="native"))
    await know_folder(link.call, STREAM, str(path), "n1")


async def test_purge_export_files_go_when_billing_had_its_time(link: Link, tmp_path: Path) -> None:
    await exported(link, tmp_path)
    await exported(link, tmp_path, age_ms=HOUR_MS)
    (tmp_path / "other.csv").write_text("not ours")
    report = await purge(link)
    assert counts(report.gone) == {f"export files: files in {tmp_path}": 1}
    assert sorted(path.name[-10:] for path in tmp_path.glob("*.csv*")) == ["000002.csv", "csv.sha256", "other.csv"]
    assert [line.deleted_at_ms for line in manifest(tmp_path)] == [NOW_MS, 0]
    with Folder(tmp_path, node="n1"):
        report = await purge(link, now_ms=NOW_MS + 100 * HOUR_MS)
    assert "another export" in next(iter(counts(report.left)))


async def write_file(link: Link, path: Path, form: str, columns: str, *given: Record) -> None:
    with Folder(path, node="n1") as folder:
        part = folder.begin(Writer(form, columns), at_ms=NOW_MS - HOUR_MS, stamp="20260101T000000Z")
        for record in given:
            part.add(record)
        folder.finish(part.close(profile=columns))
    await know_folder(link.call, STREAM, str(path), "n1")


@pytest.mark.parametrize("form", ["csv", "jsonl", "msgpack"])
@pytest.mark.parametrize("cut_off", [False, True])
async def test_purge_records_leave_a_file_before_it_goes(
    link: Link, tmp_path: Path, form: str, cut_off: bool, hook: None
) -> None:
    given = [call("free", OLD, verdict="deny"), call("b", FRESH, **BILLED), call("f", FRESH, verdict="deny")]
    await write_file(link, tmp_path, form, "native", *given)
    await write_file(link, tmp_path, form, "native", given[0])
    await write_file(link, tmp_path, form, "native", given[1])

    class DiedError(BaseException):
        pass

    def die(name: str) -> None:
        if name == "purge.rewriting":
            raise DiedError

    steps.hook = die
    if cut_off:
        with pytest.raises(DiedError):
            await purge(link)
    steps.hook = None
    report = await purge(link)
    place = f"export files: refused, from files in {tmp_path}"
    assert counts(report.gone) == {place: 2, f"export files: files in {tmp_path}": 1}
    assert report.left == {}
    first, third = (path for path in sorted(tmp_path.glob("cdr-*")) if path.suffix != ".sha256")
    kept = list(read([first.read_bytes()], form))
    assert kept == given[1:]
    lines = {one.file: one for one in manifest(tmp_path)}
    assert (lines[first.name].records, lines[first.name].sha256) == (2, digest(first))
    assert lines[first.name].first_end_at_ms == NOW_MS - FRESH
    assert lines[first.name].sha256 in (tmp_path / f"{first.name}.sha256").read_text()
    assert list(read([third.read_bytes()], form)) == [given[1]]
    assert counts((await purge(link)).gone) == {}


async def test_purge_file_in_other_columns_goes_as_a_whole_after_a_day(link: Link, tmp_path: Path) -> None:
    await write_file(link, tmp_path, "csv", "asterisk", call("free", OLD, verdict="deny"), call("b", OLD, **BILLED))
    assert counts((await purge(link)).gone) == {}
    report = await purge(link, now_ms=NOW_MS + 23 * HOUR_MS)
    assert counts(report.gone) == {f"export files: files in {tmp_path}": 1}
    assert (report.left, list(tmp_path.glob("cdr-*"))) == ({}, [])


async def test_purge_deletion_that_did_not_happen_is_told(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the report proves is what was looked up, not what was asked for."""
    await put(link, call("c", OLD, verdict="deny"))

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(Purge, "_take", nothing)
    assert counts((await purge(link)).left) == {"stream: refused": 1}


async def test_purge_accesses_go_after_their_time_and_are_listed_before(link: Link) -> None:
    who = Access("root", 0, "ops", "ops", "host", "cdr tail", "last 10")
    first = await access.begin(link.call, STREAM, who)
    await access.end(link.call, STREAM, first, 7)
    await access.begin(link.call, STREAM, msgspec.structs.replace(who, command="cdr export"))
    seen = await access.recent(link.call, STREAM, 10)
    assert [(one.access.command, one.records) for one in seen] == [("cdr tail", 7), ("cdr export", None)]
    assert seen[0].access == who
    assert [one.access.command for one in await access.recent(link.call, STREAM, 1)] == ["cdr export"]
    later = seen[-1].at_ms + 90 * DAY_MS
    assert counts((await purge(link, now_ms=later - 1000)).gone) == {}
    assert counts((await purge(link, now_ms=later + 1)).gone) == {"accesses: older than they are kept": 3}
    assert await access.recent(link.call, STREAM, 10) == []


def total(found: dict[Any, Figures]) -> Figures:
    whole = Figures()
    for one in found.values():
        whole.merge(one)
    return whole


async def test_figures_are_the_same_before_and_after_the_records_went(link: Link) -> None:
    await put(link, *mixed(), *(call(f"c{number}", OLD + number * HOUR_MS, verdict="deny", rule="r") for number in range(1200)))
    before = await figures(link, STREAM, "", "")
    assert total(before).attempts == 1206
    assert await roll_up(link, STREAM) == 1206
    assert await roll_up(link, STREAM) == 0
    assert await figures(link, STREAM, "", "") == before
    await purge(link)
    assert await figures(link, STREAM, "", "") == before
    await put(link, call("new", 0, verdict="deny", rule="r"))
    assert total(await figures(link, STREAM, "", "")).attempts == 1207
    days = sorted({key.day for key in before})
    one_day = await figures(link, STREAM, days[3], days[3])
    assert {key.day for key in one_day} == {days[3]}
    assert one_day == {key: value for key, value in before.items() if key.day == days[3]}


async def test_figures_kept_hold_no_number_line_or_account(link: Link) -> None:
    marks = {"line": "V1001", "account": "v1001-1", "calling": "+492051555101", "canonical": "+493023125001"}
    await put(link, call("c", OLD, verdict="deny", end_reason="refused", rule="block.rule.block-0900-V1001", **marks))
    await roll_up(link, STREAM)
    (day,) = await link.call("SMEMBERS", "{sp:cdr}:stats:days")
    kept = str(await link.call("HGETALL", "{sp:cdr}:stats:" + day.decode()))
    assert "rule:block.rule" in kept
    assert not [value for value in (*marks.values(), "V1001") if value in kept]


async def test_roll_up_of_two_at_once_counts_each_record_once(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes late finds the cursor moved, and goes on from there."""
    await put(link, *(call(f"c{number}", OLD, verdict="deny") for number in range(5)))
    first = True

    async def slow(link: Link, keys: tuple[str, ...], *arguments: str | int) -> object:
        nonlocal first
        if first:
            first = False
            assert await roll_up(link, STREAM) == 5
        return await run(link, keys, *arguments)

    run = stats._COUNT.run
    monkeypatch.setattr(stats, "_COUNT", SimpleNamespace(run=slow))
    assert await roll_up(link, STREAM) == 0
    assert total(await figures(link, STREAM, "", "")).attempts == 5


async def test_stream_is_trimmed_no_further_than_figures_have_counted(link: Link) -> None:
    await put(link, *(call(f"c{number}", OLD, verdict="deny") for number in range(1000)))
    await link.call("XGROUP", "CREATE", STREAM, "billing", "$")
    stream = Stream(link, STREAM, "n1", token="t")
    look = partial(stream.look, recovered=0, keep=10, sinks=())
    assert (await look()).trimmed == 0
    assert await roll_up(link, STREAM, most=400, at_once=200) == 400
    assert 300 <= (await look()).trimmed <= 400
    assert total(await figures(link, STREAM, "", "")).attempts == 1000
