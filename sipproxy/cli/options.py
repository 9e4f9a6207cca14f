"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DEFAULT_CONFIG",
    "ConfigOption",
    "DryRunOption",
    "FileArgument",
    "FormOption",
    "JsonOption",
    "OutputOption",
    "WatchOption",
    "WhyOption",
    "form_of",
]

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="SIPPROXY_CONFIG", help="Configuration file (TOML).", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Again every two seconds, until interrupted.")]
WhyOption = Annotated[str, typer.Option("--why", help="Reason, kept in the change log.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be changed.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="CSV file with a header row, or TOML (FILE.toml).")]
FormOption = Annotated[str, typer.Option("--format", metavar="csv|toml", help="Form of the file; by default its name's.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")]
DEFAULT_CONFIG = Path("config.toml")


def form_of(form: str, file: Path | None) -> str:
    """ "csv" or "toml": what was said, else what the file's name says, else CSV."""
    if form and form not in ("csv", "toml"):
        raise typer.BadParameter(f"{form!r} is neither csv nor toml", param_hint="--format")
    return form or ("toml" if file is not None and file.suffix.lower() == ".toml" else "csv")
