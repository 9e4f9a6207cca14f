"""The picture of `sipproxy cdr quality --plot`, by matplotlib (the extra `plot`): day by day, without a display."""

from __future__ import annotations

import datetime as dt
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdr.quality import Figures, Key
from sipproxy.commands.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["draw"]

NEEDS = "a picture needs matplotlib: pip install 'sipproxy[plot]'"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind (Okabe, Ito)
TICKS = 10  # dates below the panels
REFUSED, FAILED, EFFECTIVE, ANSWERED = "#999999", "#d55e00", "#56b4e9", "#0072b2"


def draw(found: Mapping[Key, Figures], promised: Mapping[str, int], file: Path) -> None:
    """Three panels over the same days: pass rate by profile with what was promised, attempts by outcome, post-dial delay.

    Emergency calls are left out. Raises CommandError where matplotlib is missing or the file cannot be written.
    """
    try:
        import_module("matplotlib").use("Agg")
        dates: Any = import_module("matplotlib.dates")
        plt: Any = import_module("matplotlib.pyplot")
    except ImportError:
        raise CommandError(NEEDS) from None
    kept = {key: figures for key, figures in found.items() if not key.emergency and key.day != "-"}
    days = sorted({key.day for key in kept})
    figure, (rates, attempts, delays) = plt.subplots(
        3, 1, figsize=(10, 9), sharex=True, height_ratios=(3, 2, 2), layout="constrained"
    )
    try:
        x = [dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) for day in days]
        _rates(rates, kept, days, x, promised)
        _attempts(attempts, kept, days, x)
        _delays(delays, kept, days, x)
        if days:
            delays.set_xlim(x[0] - dt.timedelta(hours=18), x[-1] + dt.timedelta(hours=18))
            span = (x[-1] - x[0]).days + 1
            delays.xaxis.set_major_locator(dates.DayLocator(interval=-(-span // TICKS)))
            delays.xaxis.set_major_formatter(dates.DateFormatter("%d.%m.%Y" if span > 360 else "%d.%m."))
            over = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
            figure.suptitle(f"Call quality, {over}, without 110 and 112")
        else:
            figure.suptitle("Call quality: no calls in these days")
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from None
    finally:
        plt.close(figure)


def _merged(kept: Mapping[Key, Figures], day: str, profile: str | None = None) -> Figures:
    total = Figures()
    for key, figures in kept.items():
        if key.day == day and profile in (None, key.profile):
            total.merge(figures)
    return total


def _rates(axes: Any, kept: Mapping[Key, Figures], days: list[str], x: list[dt.datetime], promised: Mapping[str, int]) -> None:
    lowest = 100.0
    for number, profile in enumerate(sorted({key.profile for key in kept if kept[key].seizures})):
        colour, name = COLOURS[number % len(COLOURS)], profile or "no profile"
        parts = [_merged(kept, day, profile) for day in days]
        ner = [float("nan") if one.ner is None else 100 * one.ner for one in parts]
        asr = [float("nan") if one.asr is None else 100 * one.asr for one in parts]
        axes.plot(x, ner, color=colour, marker="o", markersize=4, label=f"{name}: NER")
        axes.plot(x, asr, color=colour, marker=".", linestyle=":", label=f"{name}: ASR")
        lowest = min([lowest, *(value for value in ner + asr if value == value)])  # noqa: PLR0124  NaN is not itself
        if profile in promised:
            missed = [value if value < promised[profile] else float("nan") for value in ner]
            axes.plot(x, missed, color=colour, marker="o", markersize=9, markerfacecolor="none", linestyle="none")
            axes.axhline(
                promised[profile], color=colour, linestyle="--", linewidth=1, label=f"{name}: promised {promised[profile]} %"
            )
    axes.set_ylim(max(0, lowest - 5) // 10 * 10, 101)
    axes.set_ylabel("percent of seizures")
    axes.set_title(
        "Pass rate (NER; ringed where below what is promised) and answered (ASR), by profile", loc="left", fontsize=10
    )
    axes.grid(visible=True, alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _attempts(axes: Any, kept: Mapping[Key, Figures], days: list[str], x: list[dt.datetime]) -> None:
    parts = [_merged(kept, day) for day in days]
    bottom = [0] * len(days)
    layers = (("answered", ANSWERED), ("effective", EFFECTIVE), ("failed", FAILED), ("refused", REFUSED))
    names = {"effective": "not answered by a user's doing", "refused": "refused by policy"}
    for name, colour in layers:
        values = [getattr(one, name) for one in parts]
        axes.bar(x, values, bottom=bottom, color=colour, width=0.7, label=names.get(name, name))
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes.set_ylabel("attempts")
    axes.set_title("Attempts by outcome", loc="left", fontsize=10)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(reverse=True, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _delays(axes: Any, kept: Mapping[Key, Figures], days: list[str], x: list[dt.datetime]) -> None:
    parts = [_merged(kept, day) for day in days]
    for percent, style, marker, colour in ((50, "-", "o", COLOURS[0]), (95, "--", "^", COLOURS[4])):
        values = [float("nan") if (delay := one.delay_ms(percent)) is None else delay / 1000 for one in parts]
        axes.plot(x, values, color=colour, linestyle=style, marker=marker, markersize=4, label=f"p{percent}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    axes.set_title("Post-dial delay", loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
