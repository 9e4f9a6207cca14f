"""The picture of a run of a mix, by matplotlib (the extra `plot`): four panels over the seconds of its clock."""

from __future__ import annotations

import math
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.generate import percentile
from loadtest.node import NodeError
from loadtest.options import check_writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.mixed import Ran
    from loadtest.report import Report
    from loadtest.seen import Series

__all__ = ["COLOURS", "beside", "calls_panel", "check_picture", "draw", "picture", "plotting", "saved"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind (Okabe, Ito)
SLICES = 120  # at most so many points of a line


def plotting() -> Any:
    """matplotlib's pyplot without a display; raises NodeError where it is missing."""
    try:
        import_module("matplotlib").use("Agg")
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise NodeError("a picture needs matplotlib: pip install 'sipproxy[plot]'") from None


def check_picture(file: Path | None) -> None:
    """Raise NodeError where no picture could be written there: before the run, not behind it. None is no picture."""
    if file is None:
        return
    figure = plotting().figure()
    formats = figure.canvas.get_supported_filetypes()
    plotting().close(figure)
    if file.suffix.lower()[1:] not in formats:
        raise NodeError(f"--plot {file}: its name says no format that can be written; call it .svg or .png")
    check_writable("--plot", file)


def picture(report: Report, file: Path | None, draw_into: Callable[[Path], None]) -> None:
    """Draw into the file where one is wanted. That it cannot be written any more is a fault of the report, which is shown."""
    try:
        if file is not None:
            draw_into(file)
    except NodeError as error:
        report.faults.append(f"--plot {error}")


def saved(figure: Any, file: Path) -> None:
    """Write the figure in the format that the name of the file says; raises NodeError."""
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise NodeError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        plotting().close(figure)


def beside(axes: Any, *, top: float = 1.0) -> None:
    """The legend right of the axes and of a second scale, where it hides no line; `top` is a share of their height."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.09, top), borderaxespad=0)


def draw(ran: Ran, file: Path) -> None:
    """Delays that the proxy added, calls by outcome, CPU, memory and lateness; raises NodeError."""
    figure, (delays, calls, cpu, memory) = plotting().subplots(
        4, 1, figsize=(13, 12), sharex=True, height_ratios=(3, 2, 2, 2), layout="constrained"
    )
    figure.suptitle(ran.mix.name)
    width = max(1.0, math.ceil(ran.seconds / SLICES))
    _delays(delays, ran, width)
    calls_panel(calls, ran, width)
    at = [sample.at for sample in ran.samples]
    for name, values, colour in (
        ("node", [100 * sample.node_cpu for sample in ran.samples], COLOURS[0]),
        ("its store", [100 * sample.store_cpu for sample in ran.samples], COLOURS[2]),
        ("generator", [100 * sample.own_cpu for sample in ran.samples], COLOURS[1]),
    ):
        cpu.plot(at, values, color=colour, label=name)
    cpu.set_ylabel("% of a core")
    cpu.set_title("CPU", loc="left", fontsize=10)
    memory.plot(at, [sample.node_bytes / 2**20 for sample in ran.samples], color=COLOURS[0], label="memory of the node [MiB]")
    memory.set_ylabel("MiB")
    late = memory.twinx()
    late.plot(at, [sample.node_late_ms for sample in ran.samples], ":", color=COLOURS[3], label="node's event loop late [ms]")
    late.plot(at, [sample.own_late_ms for sample in ran.samples], ":", color=COLOURS[1], label="generator's [ms]")
    late.set_ylabel("ms")
    memory.set_title("Memory, and how late event loops ran (at worst in each second)", loc="left", fontsize=10)
    memory.set_xlabel("seconds from the first call")
    for axes in (delays, calls, cpu, memory):
        axes.grid(visible=True, alpha=0.3)
        beside(axes)
    beside(late, top=0.7)
    saved(figure, file)


def _sliced(series: Series, width: float) -> dict[float, list[float]]:
    slices: dict[float, list[float]] = {}
    for at, ms in zip(series.at, series.ms, strict=True):
        slices.setdefault(width * (at // width), []).append(ms)
    return dict(sorted(slices.items()))


def _delays(axes: Any, ran: Ran, width: float) -> None:
    for number, (name, text) in enumerate((("invite", "INVITE in until out"), ("answer", "200 in until out"))):
        slices = _sliced(ran.seen.delays[name], width)
        for share, style, which in ((0.5, "-", "p50"), (0.99, "--", "p99"), (1.0, ":", "max")):
            values = [percentile(found, share) for found in slices.values()]
            axes.plot(list(slices), values, style, color=COLOURS[number], label=f"{text}, {which}")
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.set_title(f"Delay added by the proxy, in slices of {width:g} s", loc="left", fontsize=10)


def calls_panel(axes: Any, ran: Ran, width: float) -> None:
    """Calls a second in slices of `width` seconds."""
    began, good, bad = Counter[int](), Counter[int](), Counter[int]()
    for at in ran.seen.late.at:
        began[int(at // width)] += 1
    for at, failed in zip(ran.seen.ended.at, ran.seen.ended.ms, strict=True):
        (bad if failed else good)[int(at // width)] += 1
    slices = range(int(ran.seconds // width) + 1)
    for counts, style, colour, name in (
        (began, ":", COLOURS[5], "began"),
        (good, "-", COLOURS[2], "ended as they should"),
        (bad, "-", COLOURS[1], "failed"),
    ):
        rates = [counts[number] / width for number in slices]  # 0 where nothing was: a line to the next would say otherwise
        axes.plot([number * width for number in slices], rates, style, color=colour, label=name)
    axes.set_ylabel("calls a second")
    axes.set_title("Calls", loc="left", fontsize=10)
