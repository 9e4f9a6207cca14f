"""`sipproxy cdr ...`: its commands, options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

__all__ = ["app"]

app = typer.Typer(help="Call detail records.", no_args_is_help=True)


@app.command("tail")
def tail(
    count: Annotated[int, typer.Option("--count", "-n", min=0, max=1_000_000, help="Records to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The newest call detail records; with --json one object a line."""
    from sipproxy.commands import cdrs, output

    output.run(lambda out: cdrs.tail(config, out, count=count, follow=follow), as_json=as_json)
