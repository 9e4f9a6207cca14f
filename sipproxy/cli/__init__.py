"""The program `sipproxy`: its commands, options and help. What a command does is in sipproxy/commands, imported when it runs.

Commands on policy data are in `line`, `psap` and `block`, those on records in `cdr`. Leaves out everything that takes time to
import, so that --help and short commands answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sipproxy.cli import block, cdr, drops, line, psap
from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption, WatchOption, WhyOption

__all__ = ["main"]

app = typer.Typer(
    help="SIP registrar, policy proxy and call-detail recorder for small carriers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
trace_app = typer.Typer(help="Follow a line live; records of malicious calls, by order of a line.", no_args_is_help=True)
app.add_typer(line.app, name="line")
app.add_typer(psap.app, name="psap")
app.add_typer(block.app, name="block")
app.add_typer(trace_app, name="trace")
app.add_typer(cdr.app, name="cdr")
app.add_typer(drops.app, name="drops")
calls_app = typer.Typer(help="Calls that the running node holds; `end` ends one.", invoke_without_command=True)
app.add_typer(calls_app, name="calls")


def _version(wanted: bool) -> None:  # noqa: FBT001  as typer calls it
    if wanted:
        from sipproxy import __version__, compiled

        typer.echo(f"sipproxy {__version__}, engine {compiled.kind()}")
        raise typer.Exit


@app.callback()
def program(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Which version, and whether its engine is compiled."),
    ] = False,
) -> None:
    """SIP registrar, policy proxy and call-detail recorder for small carriers."""
    from sipproxy import compiled

    if fault := compiled.fault():  # here, as what is imported next may be of two versions that do not fit
        typer.echo(f"sipproxy: {fault}", err=True)
        raise typer.Exit(1)


@app.command()
def up(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Start all that one machine needs.

    The embedded store, where the configuration names none, and the node.
    """
    from sipproxy.commands import node, output

    output.run(lambda _: node.serve(config, everything=True, welcome=not as_json), as_json=as_json)


@app.command()
def serve(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Start a node alone.

    The store is the one that store.url names.
    """
    from sipproxy.commands import node, output

    output.run(lambda _: node.serve(config, everything=False, welcome=False), as_json=as_json)


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Tell every fault of a configuration.

    Each with file, line and key; the policy files that it names are read too.
    """
    from sipproxy.commands import node, output

    output.run(lambda out: node.check(config, out), as_json=as_json)


@calls_app.callback()
def calls(
    ctx: typer.Context,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Those of all nodes too, by their slots; calls to 110 and 112 hold none, and are shown by their node alone.",
        ),
    ] = False,
    watch: WatchOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Calls that the running node holds.

    Without a command they are listed.
    """
    if ctx.invoked_subcommand is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"config": config, "as_json": as_json}}
        return
    from sipproxy.commands import live_slots, node, output

    show = live_slots.show_calls if everywhere else node.calls
    output.run(lambda out: output.repeat(lambda: show(config, out), out, watch=watch), as_json=as_json)


@calls_app.command("end")
def calls_end(
    call: Annotated[str, typer.Argument(metavar="ID", help="The call's id, as `sipproxy calls` shows it.")],
    emergency: Annotated[bool, typer.Option("--emergency", help="End it even if it is a call to 110 or 112.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """End a call.

    Both parties get a BYE, or the ringing ones a CANCEL; its record says that an operator ended it.
    """
    from sipproxy.commands import live_calls, output

    output.run(lambda out: live_calls.end(config, call, out, emergency=emergency), as_json=as_json)


@app.command()
def registrations(watch: WatchOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Contacts that the running node knows.

    Its own and those of the other nodes on the store, each with the node that has its flow.
    """
    from sipproxy.commands import node, output

    output.run(lambda out: output.repeat(lambda: node.registrations(config, out), out, watch=watch), as_json=as_json)


@app.command()
def nodes(watch: WatchOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Nodes on the store, as the running one sees them.

    Addresses, version, uptime, calls, registrations, the age of the last sign of life, and how far the journal's records are
    numbered and safe in the store.
    """
    from sipproxy.commands import node, output

    output.run(lambda out: output.repeat(lambda: node.nodes(config, out), out, watch=watch), as_json=as_json)


@app.command()
def trunks(
    watch: WatchOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Trunk routes of the running node.

    State and since when, calls of this node, those of all nodes where they are limited and the limit, last ping and failure,
    and the registration at the carrier.
    """
    from sipproxy.commands import output, trunk_routes

    output.run(lambda out: output.repeat(lambda: trunk_routes.show(config, out), out, watch=watch), as_json=as_json)


@app.command()
def demo(as_json: JsonOption = False) -> None:
    """Show a whole network, narrated.

    Simulated routers, trunk and PSAP around a real node on free loopback ports. Ends by itself; non-zero when what happened
    is not what was announced.
    """
    from sipproxy.commands import node, output

    output.run(lambda _: node.demo(as_json=as_json), as_json=as_json)


@app.command()
def explain(
    caller: Annotated[str, typer.Argument(metavar="[LINE-or-NUMBER]", help="Calling line, or one of its numbers.")] = "",
    dialled: Annotated[str, typer.Argument(metavar="[DIALLED]", help="Dialled digits or a whole URI.")] = "",
    batch: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Many at once: id,profile,caller_area_code,caller_e164,dialled; '-' is stdin."),
    ] = None,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Decide as at this time, such as 2026-01-31T08:00.")] = "",
    incoming: Annotated[
        bool, typer.Option("--incoming", help="A call from outside: from that number, or 'anonymous', to one of ours.")
    ] = False,
    forwarded: Annotated[
        bool, typer.Option("--forwarded", help="A call to that line or number, which its router sends on by a 302.")
    ] = False,
    earlier: Annotated[
        list[str] | None, typer.Option(metavar="NUMBER", help="With --forwarded: who forwarded it before; again for several.")
    ] = None,
    used: Annotated[int | None, typer.Option(min=0, help="As if so many channels were in use.")] = None,
    started: Annotated[int | None, typer.Option(min=0, help="As if the line had just started so many calls.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Say why a call would be refused or not.

    The decision is the live path's own, with each rule that was looked at. --forwarded asks what becomes of a call that the
    router of a line sends on: it is that line's own call, and the forward rules come last.

    The policy data is that of the store; where no store was ever used, the files of the configuration's [policy].
    --batch assumes a line of each row's profile, with all channels free, and needs no configuration.
    """
    from sipproxy.commands import explaining, output

    question = explaining.Question(caller, dialled, incoming, used, started, forwarded, tuple(earlier or ()))
    output.run(lambda out: explaining.explain(config, out, question, batch=batch, at=at), as_json=as_json)


@app.command()
def reseed(
    why: WhyOption = "", dry_run: DryRunOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Fill an emptied store from this node.

    After the store lost its policy data (flushed, or restored from an old copy) it gets all of what this node's last snapshot
    holds. Refused when the store has not lost anything.
    """
    from sipproxy.commands import output, reseeding

    output.run(lambda out: reseeding.reseed(config, out, why=why, dry_run=dry_run), as_json=as_json)


@trace_app.command("follow")
def trace_follow(
    target: Annotated[str, typer.Argument(metavar="LINE|NUMBER|CALL", help="As `line list` and `calls` show them.")],
    why: Annotated[str, typer.Option("--why", help="What for; it is written down with who asked.")] = "",
    minutes: Annotated[float, typer.Option(min=0.01, max=240, help="It ends by itself after so long.")] = 15,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.pcap", help="A new packet file, for Wireshark or sngrep.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Whole messages, not their first lines alone.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Follow a line's messages and decisions live.

    On the node that it is run on. Proofs of passwords are blinded. With --json one event a line.
    """
    from sipproxy.commands import following, output

    output.run(
        lambda out: following.follow(config, out, target, why=why, minutes=minutes, file=file, whole=whole), as_json=as_json
    )


@trace_app.command("list")
def trace_list(
    line: Annotated[str, typer.Option(help="Records of that line.")] = "",
    reference: Annotated[str, typer.Option(help="Records of that order.")] = "",
    why: Annotated[str, typer.Option("--why", help="What for; it is written down with who asked.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Records of a line or of an order.

    They hold callers' numbers that were hidden from the called party, so each reading is written down.
    """
    from sipproxy.commands import output, traces

    output.run(lambda out: traces.list_records(config, out, line=line, reference=reference, why=why), as_json=as_json)


@trace_app.command("accesses")
def trace_accesses(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="The newest so many.")] = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Who read records, and what for."""
    from sipproxy.commands import output, traces

    output.run(lambda out: traces.list_accesses(config, out, count=count), as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="sipproxy")
