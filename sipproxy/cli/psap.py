"""`sipproxy psap ...`: its commands, options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from sipproxy.cli.importing import add_import
from sipproxy.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    DryRunOption,
    FormOption,
    JsonOption,
    OutputOption,
    WhyOption,
    form_of,
)

__all__ = ["app"]

app = typer.Typer(help="PSAP routes: where 110 and 112 of a location go.", no_args_is_help=True)


add_import(
    app,
    "psap",
    """Add or replace PSAP routes.

    From a file, all or none; the routes of a location, service and day are replaced together. Columns:
    location,service,priority,uri,name,valid_from. Location "*" serves where a location has none. Routes with a valid_from are
    the table from that day on.
    """,
)


@app.command("export")
def export_routes(
    form: FormOption = "", file: OutputOption = None, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Write PSAP routes as a file for `psap import`."""
    from sipproxy.commands import output
    from sipproxy.commands import psap as commands

    kind = form_of(form, file)
    output.run(lambda out: commands.export(config, out, form=kind, file=file), as_json=as_json)


@app.command("list")
def list_routes(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All PSAP routes."""
    from sipproxy.commands import output
    from sipproxy.commands import psap as commands

    output.run(lambda out: commands.list_routes(config, out), as_json=as_json)


@app.command("set")
def set_routes(
    location: Annotated[str, typer.Argument(help="Registered place of lines, or '*'.")],
    service: Annotated[str, typer.Argument(metavar="110|112", help="The emergency number.")],
    uris: Annotated[list[str] | None, typer.Argument(metavar="[URI...]", help="Routes in the order they are tried.")] = None,
    name: Annotated[str, typer.Option(help="Name of the centre.")] = "",
    day: Annotated[str, typer.Option("--from", metavar="DAY", help="These are the routes from that day on.")] = "",
    none: Annotated[bool, typer.Option("--none", help="Take the routes of every day away.")] = False,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Set the routes of a location.

    They replace those of the same location, service and day. The last routes of a location with lines are not taken away.
    """
    from sipproxy.commands import output
    from sipproxy.commands import psap as commands

    output.run(
        lambda out: commands.set_routes(
            config, out, location, service, uris or [], name=name, day=day, none=none, why=why, dry_run=dry_run
        ),
        as_json=as_json,
    )


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Tell what keeps 110 and 112 from a centre.

    Lines without a route, area codes that do not fit, routes that this node cannot reach. Ends with 1 when there is an error;
    warnings end with 0.
    """
    from sipproxy.commands import output
    from sipproxy.commands import psap as commands

    output.run(lambda out: commands.check(config, out), as_json=as_json)
