"""`sipproxy trace ...`: its commands, options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

__all__ = ["app"]

app = typer.Typer(help="Malicious calls, traced by order of the called customer.", no_args_is_help=True)


@app.command("list")
def list_records(
    why: Annotated[str, typer.Option("--why", help="What the numbers are read for; kept with who reads them.")],
    line: Annotated[str, typer.Option("--line", metavar="LINE", help="Calls to this line.")] = "",
    order: Annotated[str, typer.Option("--order", metavar="REFERENCE", help="Calls recorded for this order.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Calls to a line with an order, with the caller's number, hidden or not.

    Each reading is written down before anything is shown. Orders stand with the line: from, until, reference.
    """
    from sipproxy.commands import output, traces

    output.run(lambda out: traces.list_records(config, out, line=line, reference=order, why=why), as_json=as_json)


@app.command("accesses")
def list_accesses(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="Readings to show.")] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Who read recorded calls, when and what for."""
    from sipproxy.commands import output, traces

    output.run(lambda out: traces.list_accesses(config, out, count=count), as_json=as_json)
