"""`sipproxy cdr quality`: how calls go, by trunk route, profile or day, against what was promised; as table, JSON, picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdr import stats
from cdr.quality import Figures, Key
from cdr.wire import Link
from policy import profiles
from policy.stamp import parse_stamp
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError
from sipproxy.config import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from sipproxy.commands.output import Output

__all__ = ["quality"]

TIMEOUT_S = 30.0
COLUMNS = ("", "attempts", "refused", "seizures", "answered", "ASR", "NER", "promised", "ACD", "PDD p50", "PDD p95")


def quality(path: Path, output: Output, *, first: str, last: str, by: str, plot: Path | None) -> int:
    """Print figures of the days from `first` to `last`, both included; with `plot` draw them too."""
    if by not in ("route", "profile", "day"):
        raise CommandError(f"--by is route, profile or day, not {by[:40]!r}", code=USAGE)
    for option, day in (("--from", first), ("--to", last)):
        if day and (len(day) != 10 or parse_stamp(day) is None):
            raise CommandError(f"{option}: {day[:40]!r} is no day such as 2026-01-31", code=USAGE)
    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise CommandError(f"--plot: {plot.name[:80]!r} ends in neither .png nor .svg", code=USAGE)
    config = load(path)

    async def work(client: Redis) -> dict[Key, Figures]:
        async with recorded(client, config.cdr.stream, "cdr quality", f"{first or '...'} to {last or '...'} by {by}") as seen:
            link = Link(client, timeout_s=TIMEOUT_S)
            try:
                found = await stats.figures(link, config.cdr.stream, first, last)
            finally:
                await link.drop()
            seen.records = sum(figures.attempts for figures in found.values())
            return found

    found = with_store(config, work)
    groups = _grouped(found, by)
    promised = {name: profile.pass_percent for name, profile in profiles.load().items() if profile.pass_percent}
    goals = {name: promised.get(name.removeprefix("110/112 ")) for name in groups} if by == "profile" else {}
    output.value([_plain(name, figures, goals.get(name)) for name, figures in groups.items()])
    rows = (_row(name, figures, goals.get(name)) for name, figures in groups.items())
    output.table((by, *COLUMNS[1:]), rows, empty="no calls in these days")
    _rules(groups, output)
    if plot is not None:
        from sipproxy.commands import quality_plot

        quality_plot.draw(found, promised, plot)
        output.line(f"picture in {plot}")
    return 0


def _grouped(found: dict[Key, Figures], by: str) -> dict[str, Figures]:
    """By the key's part of that name; emergency calls apart, then the sum of all others."""
    groups: dict[str, Figures] = {}
    total = Figures()
    for key, figures in sorted(found.items()):
        name = getattr(key, by) or "-"
        groups.setdefault(f"110/112 {name}" if key.emergency else name, Figures()).merge(figures)
        if not key.emergency:
            total.merge(figures)
    ordered = dict(sorted(groups.items(), key=lambda item: (item[0].startswith("110/112 "), item[0])))
    return {**ordered, "all but 110/112": total} if groups else {}


def _plain(name: str, figures: Figures, goal: int | None) -> dict[str, Any]:
    return {
        "group": name,
        "attempts": figures.attempts,
        "seizures": figures.seizures,
        "answered": figures.answered,
        "effective": figures.effective,
        "failed": figures.failed,
        "refused": figures.refused,
        "uncertain": figures.uncertain,
        "asr": figures.asr,
        "ner": figures.ner,
        "promised_percent": goal,
        "acd_ms": figures.acd_ms,
        "talk_ms": figures.talk_ms,
        "pdd_p50_ms": figures.delay_ms(50),
        "pdd_p95_ms": figures.delay_ms(95),
        "refusals": dict(figures.rules.most_common()),
    }


def _row(name: str, figures: Figures, goal: int | None) -> tuple[object, ...]:
    promised = "" if goal is None else f"{goal} %"
    if goal is not None and figures.ner is not None:
        promised += " kept" if 100 * figures.ner >= goal else " MISSED"
    return (
        name,
        figures.attempts,
        figures.refused,
        figures.seizures,
        figures.answered,
        _percent(figures.asr),
        _percent(figures.ner),
        promised,
        "-" if figures.acd_ms is None else f"{figures.acd_ms / 1000:.1f} s",
        _seconds(figures.delay_ms(50)),
        _seconds(figures.delay_ms(95)),
    )


def _rules(groups: dict[str, Figures], output: Output) -> None:
    """Refusals of all groups but the sum, by rule."""
    rows = [
        (name, rule, number)
        for name, figures in groups.items()
        if name != "all but 110/112"
        for rule, number in figures.rules.most_common()
    ]
    if rows:
        output.line("")
        output.table(("", "refused by", "number"), rows, empty="")


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _seconds(delay_ms: int | None) -> str:
    return "-" if delay_ms is None else f"{delay_ms / 1000:.2f} s"
