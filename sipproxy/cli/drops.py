"""`sipproxy drops ...`: its commands, options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption

__all__ = ["app"]

app = typer.Typer(help="Sources whose messages the kernel drops.", no_args_is_help=True)
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="IPv4 address, or an address of an IPv6 /64.")]
Why = Annotated[str, typer.Option("--why", help="What for; it is written down with who asked.")]


@app.command("list")
def list_drops(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Sources on the running node's drop list.

    Each with what it did, who put it there and until when. In a dry run: who would be dropped.
    """
    from sipproxy.commands import drops, output

    output.run(lambda out: drops.show(config, out), as_json=as_json)


@app.command("add")
def add(
    address: Address,
    seconds: Annotated[int, typer.Option("--for", min=1, max=7 * 86_400, help="Seconds until it ends by itself.")] = 3600,
    why: Why = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Drop what a source sends to the running node's ports.

    Refused for trunk and PSAP routes, other nodes, access networks, the allow list, and where a customer or a live call is:
    nobody there could call 110 or 112.
    """
    from sipproxy.commands import drops, output

    output.run(lambda out: drops.add(config, out, address, seconds=seconds, why=why), as_json=as_json)


@app.command("remove")
def remove(address: Address, why: Why = "", config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Let a source through again."""
    from sipproxy.commands import drops, output

    output.run(lambda out: drops.remove(config, out, address, why=why), as_json=as_json)
