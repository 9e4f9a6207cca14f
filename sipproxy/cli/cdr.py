"""`sipproxy cdr ...`: its commands, options and help."""

from __future__ import annotations

from pathlib import Path
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
