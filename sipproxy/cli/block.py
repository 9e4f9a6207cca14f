"""`sipproxy block ...`: its commands, options and help."""

from __future__ import annotations

from pathlib import Path
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

app = typer.Typer(help="Block rules: what is refused, and what is excepted.", no_args_is_help=True)


add_import(
    app,
    "blocks",
    """Add or replace block rules.

    From a file, all or none. Columns: id,kind,value,action,direction,level,reason,profile,line,owner,ticket,valid_from,
    valid_until,windows,public; id, value and reason are needed. Files with id,prefix,reason,profile,line,owner are taken too.
    """,
)


@app.command("export")
def export_rules(
    public: Annotated[
        bool, typer.Option("--public", help="Only the list for customers: no owners, tickets, ids or lines.")
    ] = False,
    form: FormOption = "",
    file: OutputOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write block rules as a file for `block import`."""
    from sipproxy.commands import blocks, output

    kind = form_of(form, file)
    output.run(lambda out: blocks.export(config, out, public=public, form=kind, file=file), as_json=as_json)


@app.command("list")
def list_rules(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All block rules."""
    from sipproxy.commands import blocks, output

    output.run(lambda out: blocks.list_rules(config, out), as_json=as_json)


@app.command()
def add(
    value: Annotated[str, typer.Argument(help="Number, its beginning, class or country, such as 0900, +43, premium.")],
    reason: Annotated[str, typer.Option("--reason", help="What a caller's complaint is answered with.")] = "",
    key: Annotated[str, typer.Option("--id", help="Name of the rule; made from the value by default.")] = "",
    kind: Annotated[str, typer.Option(metavar="prefix|number|class|country", help="What the value is.")] = "prefix",
    allow: Annotated[bool, typer.Option("--allow", help="An exception from shorter rules.")] = False,
    direction: Annotated[str, typer.Option(metavar="outgoing|incoming|both", help="Which calls.")] = "outgoing",
    level: Annotated[str, typer.Option(metavar="admin|customer", help="Whose rule it is.")] = "admin",
    profile: Annotated[str, typer.Option(help="Only lines of that product.")] = "",
    line: Annotated[str, typer.Option(help="Only that line.")] = "",
    owner: Annotated[str, typer.Option(help="Who answers for it.")] = "",
    ticket: Annotated[str, typer.Option(help="Where it was asked for.")] = "",
    valid_from: Annotated[str, typer.Option("--from", metavar="TIME", help="Counts from then on.")] = "",
    valid_until: Annotated[str, typer.Option("--until", metavar="TIME", help="Counts up to then.")] = "",
    window: Annotated[
        list[str] | None, typer.Option(metavar="'mo-fr 08:00-17:30'", help="Counts then, in German time. May be repeated.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Stands in the list that customers may ask for.")] = False,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add one rule."""
    from sipproxy.commands import blocks, output

    cells = {
        "id": key,
        "kind": kind,
        "value": value,
        "action": "allow" if allow else "block",
        "direction": direction,
        "level": level,
        "reason": reason,
        "profile": profile,
        "line": line,
        "owner": owner,
        "ticket": ticket,
        "valid_from": valid_from,
        "valid_until": valid_until,
        "windows": "; ".join(window or ()),
        "public": "yes" if public else "",
    }
    output.run(lambda out: blocks.add(config, out, cells, why=why, dry_run=dry_run), as_json=as_json)


@app.command()
def remove(
    rules: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of rules.")],
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take rules away, all or none."""
    from sipproxy.commands import blocks, output

    output.run(lambda out: blocks.remove(config, out, rules, why=why, dry_run=dry_run), as_json=as_json)


@app.command("history")
def show_history(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="The newest so many.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Changes of lines and PSAP routes too.")] = False,
    details: Annotated[bool, typer.Option("--diff", help="With what each one changed.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Who changed what, when and why.

    Each entry of the log holds the hash of the one before it; the whole chain is checked, and the command ends with 1 when an
    entry is not what was written.
    """
    from sipproxy.commands import blocks, output

    output.run(
        lambda out: blocks.show_history(config, out, count=count, everything=everything, details=details), as_json=as_json
    )


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(min=0, metavar="VERSION", help="As `block history` names it.")],
    everything: Annotated[bool, typer.Option("--all", help="Lines and PSAP routes too, not the block rules alone.")] = False,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Go back to an earlier version.

    The block rules become exactly what they were then, as a new version. Refused when the log cannot say it exactly.
    """
    from sipproxy.commands import blocks, output

    output.run(
        lambda out: blocks.rollback(config, out, version, everything=everything, why=why, dry_run=dry_run), as_json=as_json
    )


@app.command()
def lint(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="As the rules would be with those of this file (CSV or TOML).")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Tell what is wrong with the rules.

    Rules that would stand between a caller and help, and rules that do nothing. Ends with 1 when there is an error.
    """
    from sipproxy.commands import block_rules, output

    output.run(lambda out: block_rules.lint(config, out, file=file), as_json=as_json)


@app.command()
def replay(
    change: Annotated[Path, typer.Argument(metavar="CHANGE", help="File of rules, added to those in force (CSV or TOML).")],
    cdrs: Annotated[
        str, typer.Option("--cdrs", metavar="FROM..TO", help="Calls of which days, such as 2026-01-01..2026-01-31.")
    ],
    whole: Annotated[bool, typer.Option("--whole", help="The file's rules are all that there is.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Say which recorded calls a change would touch.

    Those that the changed rules would have refused, and those that they would have newly allowed.
    """
    from sipproxy.commands import block_rules, output

    output.run(lambda out: block_rules.replay(config, out, change, cdrs, whole=whole), as_json=as_json)
