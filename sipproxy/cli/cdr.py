"""`sipproxy cdr ...`: its commands, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, OutputOption

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


@app.command()
def export(
    folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the files; made where missing.")],
    form: Annotated[str, typer.Option("--format", metavar="jsonl|csv|msgpack|parquet", help="By default jsonl.")] = "",
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="Columns: native, asterisk, kamailio, cgrates or german-csv.")
    ] = "native",
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="Set-up from then on, such as 2026-01-31.")] = "",
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Set-up before that.")] = "",
    group: Annotated[str, typer.Option(help="Consumer group that goes on where it stood; by default 'export'.")] = "",
    rows_per_file: Annotated[int, typer.Option("--rows-per-file", min=1, max=1_000_000, help="Records in a file.")] = 100_000,
    sftp: Annotated[str, typer.Option(metavar="sftp://USER@HOST/DIR", help="Send each file there too, aside first.")] = "",
    sftp_key: Annotated[list[str] | None, typer.Option("--sftp-key", metavar="FILE", help="Private key.")] = None,
    sftp_known_hosts: Annotated[str, typer.Option("--sftp-known-hosts", metavar="FILE", help="Known host keys.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write records to files for billing.

    Each file is written aside, synced and renamed whole, its checksum beside it. A group's records are acknowledged once
    their file is on disk, and on the server, where one is given; a run that was cut off is simply run again. --from and --to
    read a period again and acknowledge nothing. A password for SFTP is taken from SIPPROXY_SFTP_PASSWORD.
    """
    from sipproxy.commands import exports, output

    server = exports.Sftp(sftp, tuple(sftp_key or ()), sftp_known_hosts)
    output.run(
        lambda out: exports.export(
            config,
            out,
            folder,
            form=form,
            profile=profile,
            start=start,
            end=end,
            group=group,
            rows_per_file=rows_per_file,
            sftp=server,
        ),
        as_json=as_json,
    )


@app.command()
def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    unacknowledged: Annotated[
        bool, typer.Option("--unacknowledged", help="Take away even what a consumer group has not acknowledged.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Delete what may not be kept any longer.

    Tells by place and reason how much went, looks again at every place, and ends with 1 when something overdue is still there.
    Daily figures without numbers stay. For cron, once a day.
    """
    from sipproxy.commands import output
    from sipproxy.commands import purge as commands

    output.run(lambda out: commands.purge(config, out, dry_run=dry_run, unacknowledged=unacknowledged), as_json=as_json)


@app.command()
def invoiced(
    until: Annotated[str, typer.Argument(metavar="[UNTIL]", help="Calls that ended before it are in the invoice.")] = "",
    sent: Annotated[str, typer.Option(metavar="DAY", help="When it was sent; by default now.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Note that invoices were sent.

    From that day on their calls may be kept for cdr.keep_billed_months. Without UNTIL what was noted is listed.
    """
    from sipproxy.commands import output
    from sipproxy.commands import purge as commands

    output.run(lambda out: commands.invoiced(config, out, until=until, sent=sent), as_json=as_json)


@app.command()
def hold(
    line: Annotated[str, typer.Argument(metavar="[LINE]", help="Whose records stay.")] = "",
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="Set-up from then on, such as 2026-01-01.")] = "",
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Set-up before that.")] = "",
    reason: Annotated[str, typer.Option(help="Why, such as the objection's file number.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Keep records past their time while an objection runs.

    Purges leave the line's records of that span, set apart, until `cdr release`. Without LINE the holds are listed.
    """
    from sipproxy.commands import holds, output

    output.run(lambda out: holds.hold(config, out, line, start=start, end=end, reason=reason), as_json=as_json)


@app.command()
def held(
    line: Annotated[str, typer.Argument(metavar="[LINE]", help="Those of this line alone.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The records that are kept apart, why, and until when.

    For an objection (`cdr hold`) or for fraud. Those still in the stream are set apart by the next purge.
    """
    from sipproxy.commands import holds, output

    output.run(lambda out: holds.held(config, out, line), as_json=as_json)


@app.command()
def release(
    name: Annotated[str, typer.Argument(metavar="HOLD", help="As `cdr hold` names it.")],
    reason: Annotated[str, typer.Option(help="How the objection was settled; needed.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """End a hold: its records go at their ordinary time."""
    from sipproxy.commands import holds, output

    output.run(lambda out: holds.release(config, out, name, reason=reason), as_json=as_json)


@app.command()
def access(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="The newest so many.")] = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Who looked at records, when, with which command and filter, and how many."""
    from sipproxy.commands import accesses, output

    output.run(lambda out: accesses.show(config, out, count=count), as_json=as_json)


@app.command()
def quality(
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, such as 2026-01-31.")] = "",
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day.")] = "",
    by: Annotated[str, typer.Option(metavar="route|profile|day", help="One row for each.")] = "profile",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|svg", help="Draw it too, day by day.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """How calls go: ASR, NER, ACD, post-dial delay and refusals.

    Against the pass rate that the product promises; emergency calls apart. Days are those of Germany.
    """
    from sipproxy.commands import output
    from sipproxy.commands import quality as commands

    output.run(lambda out: commands.quality(config, out, first=first, last=last, by=by, plot=plot), as_json=as_json)


@app.command("pull")
def pull(
    group: Annotated[str, typer.Option("--group", "-g", help="Who pulls: the store keeps a cursor for each name.")] = "pull",
    form: Annotated[str, typer.Option("--format", metavar="jsonl|csv|msgpack", help="Form of the records.")] = "jsonl",
    columns: Annotated[str, typer.Option("--columns", help="Column profile, as of `cdr export`.")] = "native",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0: all there are.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")] = False,
    peek: Annotated[bool, typer.Option("--peek", help="Only show what would come; nothing is taken.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not acknowledge; `cdr ack` does, else all comes again.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Start and interim records of calls that live, too.")] = False,
    file: OutputOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines, which is the default; faults are JSON too.")] = False,
) -> None:
    """The records that this group has not had yet.

    Acknowledged when they are on the disk (--output: when the whole file is, under its name) or were read from the pipe. A pull
    that dies before gives the same records again: keep one for each id. Where the reader of a pipe may fail, pull with --keep
    and call `cdr ack` when it has succeeded. One pull at a time for each group: another one ends with 1 and says who has it.
    """
    from sipproxy.commands import output, pulling

    output.run(
        lambda _: pulling.pull(
            config,
            group=group,
            form=form,
            columns=columns,
            limit=limit,
            follow=follow,
            peek=peek,
            keep=keep,
            live=live,
            file=file,
        ),
        as_json=as_json,
    )


@app.command("ack")
def ack(
    group: Annotated[str, typer.Option("--group", "-g", help="The group of the pull.")] = "pull",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Acknowledge what `cdr pull --keep` gave out."""
    from sipproxy.commands import output, pulling

    output.run(lambda out: pulling.acknowledge(config, out, group=group), as_json=as_json)


@app.command("groups")
def groups(
    remove: Annotated[str, typer.Option("--remove", metavar="GROUP", help="Forget this group, which nobody reads as.")] = "",
    why: Annotated[str, typer.Option("--why", help="With --remove: why; it is written down with who did it.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Who reads the records, and how far each has come.

    A group that nobody reads as holds up the stream: --remove forgets it, and what it had not acknowledged is not its any more.
    """
    from sipproxy.commands import consuming, output

    if remove:
        output.run(lambda out: consuming.remove_group(config, out, remove, why=why), as_json=as_json)
    output.run(lambda out: consuming.list_groups(config, out), as_json=as_json)


dead_app = typer.Typer(help="Dead letters: entries that a group could not take.", no_args_is_help=True)
app.add_typer(dead_app, name="dead")
LettersArgument = Annotated[list[str] | None, typer.Argument(metavar="[LETTER...]", help="As `cdr dead list` names them.")]


@dead_app.command("list")
def dead_list(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="The oldest so many.")] = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The dead letters, with group and reason."""
    from sipproxy.commands import consuming, output

    output.run(lambda out: consuming.list_letters(config, out, count=count), as_json=as_json)


@dead_app.command("show")
def dead_show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="As `cdr dead list` names it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """All that a letter holds."""
    from sipproxy.commands import consuming, output

    output.run(lambda out: consuming.show_letter(config, out, letter), as_json=as_json)


@dead_app.command("requeue")
def dead_requeue(
    letters: LettersArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every letter.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Give letters to their groups once more, and to no other."""
    from sipproxy.commands import consuming, output

    output.run(lambda out: consuming.requeue_letters(config, out, letters or [], everything=everything), as_json=as_json)


@dead_app.command("drop")
def dead_drop(
    letters: Annotated[list[str], typer.Argument(metavar="LETTER...", help="As `cdr dead list` names them.")],
    why: Annotated[str, typer.Option("--why", help="Reason; needed, as these records are never billed.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Delete letters for good."""
    from sipproxy.commands import consuming, output

    output.run(lambda out: consuming.drop_letters(config, out, letters, why=why), as_json=as_json)


@app.command("verify")
def verify(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="Files of `cdr pull` or `cdr export`.")
    ] = None,
    ids: Annotated[Path | None, typer.Option("--ids", metavar="FILE", help="Ids that a reader has, one a line.")] = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="FILE", help="Go on from what the last run proved.")] = None,
    since: Annotated[list[str] | None, typer.Option("--since", metavar="NODE=SEQ", help="Nothing before is asked for.")] = None,
    journal: Annotated[bool, typer.Option("--journal/--no-journal", help="The journal of this machine's node, too.")] = True,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Prove that no record is missing, double or different.

    Compares the journal of this machine's node, the stream, and what a reader has, by the nodes' own numbering. Names each gap,
    and ids that are no record's. Files may have any columns and form, and be compressed (.gz, .bz2, .xz).
    What was trimmed lawfully cannot be known, and is said. Ends with 0 when all is fine, 1 when something is wrong, 2 when it
    cannot be told or checked. --state keeps for each node up to where all was right, and lets the next run begin there.
    """
    from sipproxy.commands import output, verifying

    output.run(
        lambda out: verifying.run(config, out, files or [], ids=ids, state=state, begins=since or [], journal=journal),
        as_json=as_json,
    )
