"""`sipproxy line ...`: its commands, options and help."""

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

MAX_PASSWORD = 1024  # characters; three HA1 values take 200

app = typer.Typer(help="Lines: customers' connections.", no_args_is_help=True)
LineArgument = Annotated[str, typer.Argument(metavar="LINE-or-NUMBER", help="The line, or one of its numbers.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the line, with the time: why it has this status.")]
PasswordOption = Annotated[
    typer.FileText | None,
    typer.Option(
        "--password-file", metavar="FILE", help="Its first line is the password, or ha1: values; - for standard input."
    ),
]
AtOption = Annotated[str, typer.Option("--at", metavar="TIME", help="Since when, such as 2026-01-31T08:00; now by default.")]


def password_of(file: typer.FileText | None) -> str:
    """What a password file says; "" where there is none, so that one is made."""
    if file is None:
        return ""
    text = file.readline(MAX_PASSWORD + 2).rstrip("\r\n")
    if not text or len(text) > MAX_PASSWORD:
        raise typer.BadParameter(
            f"its first line has no password of 1 to {MAX_PASSWORD} characters", param_hint="--password-file"
        )
    return text


add_import(
    app,
    "lines",
    """Add or replace lines.

    From a file, all or none. Columns: line,profile,status,channels,location,area_code,account,kind,password,number, and where
    wanted status_reason,status_at,barred_since,clir,reject_anonymous,traces,
    soft_channels,account_channels. An empty password keeps the account's present one.
    """,
)


@app.command("export")
def export_lines(
    lines: Annotated[list[str] | None, typer.Argument(metavar="[LINE...]", help="These lines; all by default.")] = None,
    form: FormOption = "",
    file: OutputOption = None,
    with_secrets: Annotated[
        bool, typer.Option("--with-secrets", help="With HA1 values, into a file that only its owner may read.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write lines as a file for `line import`.

    Passwords are not in it: read into the same store, it leaves them as they are.
    """
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    kind = form_of(form, file)
    output.run(
        lambda out: commands.export(config, out, lines or [], form=kind, file=file, with_secrets=with_secrets), as_json=as_json
    )


@app.command("list")
def list_lines(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All lines."""
    from sipproxy.commands import output, policy_data

    output.run(lambda out: policy_data.list_lines(config, out), as_json=as_json)


@app.command("show")
def show_line(line: LineArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """One line with its accounts, its numbers, and who uses its channels now."""
    from sipproxy.commands import output, policy_data

    output.run(lambda out: policy_data.show_line(line, config, out), as_json=as_json)


@app.command("add")
def add_line(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Id of a new line, or of one that gets another account.")],
    account: Annotated[str, typer.Option(help="SIP user name.")],
    number: Annotated[list[str], typer.Option(help="With + or 0; a range ends in *. May be repeated.")],
    kind: Annotated[str, typer.Option(metavar="single|trunk", help="A trunk has all numbers of its line.")] = "",
    profile: Annotated[str, typer.Option(help="Product; for a new line.")] = "",
    location: Annotated[str, typer.Option(help="Registered place, by which 110 and 112 are routed; for a new line.")] = "",
    area_code: Annotated[str, typer.Option(help="With its 0; for a new line.")] = "",
    channels: Annotated[str, typer.Option(help="Calls at once; the profile's by default.")] = "",
    password_file: PasswordOption = None,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add a line, an account or numbers.

    A line that there is gets the account, an account that there is the numbers. A new account's password is made and told once.
    """
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    cells = {
        "line": line,
        "account": account,
        "kind": kind,
        "profile": profile,
        "location": location,
        "area_code": area_code,
        "channels": channels,
        "password": password_of(password_file),
    }
    output.run(lambda out: commands.add(config, out, cells, number, why=why, dry_run=dry_run), as_json=as_json)


@app.command()
def password(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="SIP user name.")],
    password_file: PasswordOption = None,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Give an account another password.

    Its router registers with the new one from the next challenge on. A rollback cannot bring the former one back.
    """
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    given = password_of(password_file)
    output.run(lambda out: commands.set_password(config, out, account, given, why=why, dry_run=dry_run), as_json=as_json)


@app.command("set")
def set_line(
    line: LineArgument,
    status: Annotated[
        str | None, typer.Option(help="active, selective, barred_out, barred_full, fraud_hold or terminated.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why it has this status.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Day of the status.")] = None,
    profile: Annotated[str | None, typer.Option(help="Product.")] = None,
    channels: Annotated[str | None, typer.Option(help="Calls at once; '' for the profile's.")] = None,
    soft_channels: Annotated[
        str | None, typer.Option(help="Calls at once beyond which it is only reported; 0 for never, '' for the profile's.")
    ] = None,
    account_channels: Annotated[
        list[str] | None,
        typer.Option(metavar="ACCOUNT=N", help="Calls at once of one account; ACCOUNT= for no limit. May be repeated."),
    ] = None,
    location: Annotated[str | None, typer.Option(help="Registered place: 110 and 112 are routed by it.")] = None,
    area_code: Annotated[str | None, typer.Option(help="With its 0.")] = None,
    clir: Annotated[str | None, typer.Option(metavar="yes|no", help="Hide the number in every call.")] = None,
    reject_anonymous: Annotated[str | None, typer.Option(metavar="yes|no", help="Refuse callers that hide theirs.")] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="FROM/UNTIL/REFERENCE", help="Order to trace malicious calls; '' for none. May be repeated."),
    ] = None,
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Set what a line is.

    What is not named stays. A line that 110 or 112 has no route from is not activated.
    """
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    cells = {
        "status": status,
        "status_reason": reason,
        "status_at": at,
        "profile": profile,
        "channels": channels,
        "soft_channels": soft_channels,
        "location": location,
        "area_code": area_code,
        "clir": clir,
        "reject_anonymous": reject_anonymous,
        "traces": "; ".join(trace) if trace is not None else None,
    }
    given = {name: cell for name, cell in cells.items() if cell is not None}
    limits = account_channels or ()
    output.run(lambda out: commands.set_fields(config, out, line, given, limits, why=why, dry_run=dry_run), as_json=as_json)


@app.command()
def bar(
    line: LineArgument,
    reason: ReasonOption = "",
    full: Annotated[bool, typer.Option("--full", help="Incoming calls too, a week later at the earliest.")] = False,
    fraud: Annotated[bool, typer.Option("--fraud", help="Hold for founded suspicion of misuse.")] = False,
    at: AtOption = "",
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Bar a line's outgoing calls.

    110, 112 and the carrier's own hotlines stay reachable. Calls to the line pass, unless --full.
    """
    from policy.model import LineStatus
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    if full and fraud:
        raise typer.BadParameter("either --full or --fraud")
    status = LineStatus.BARRED_FULL if full else LineStatus.FRAUD_HOLD if fraud else LineStatus.BARRED_OUT
    output.run(
        lambda out: commands.bar(config, out, line, status=status, reason=reason, at=at, why=why, dry_run=dry_run),
        as_json=as_json,
    )


@app.command()
def unbar(
    line: LineArgument,
    reason: ReasonOption = "",
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a line active again."""
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    output.run(lambda out: commands.unbar(config, out, line, reason=reason, why=why, dry_run=dry_run), as_json=as_json)


@app.command()
def remove(
    lines: Annotated[list[str], typer.Argument(metavar="LINE...", help="Ids of lines.")],
    why: WhyOption = "",
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take lines away.

    With their accounts, numbers, passwords and own rules, all or none. A rollback cannot bring the passwords back.
    """
    from sipproxy.commands import lines as commands
    from sipproxy.commands import output

    output.run(lambda out: commands.remove(config, out, lines, why=why, dry_run=dry_run), as_json=as_json)
