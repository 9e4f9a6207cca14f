"""The command `import` of lines, PSAP routes and block rules: one shape, and each its own columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, FileArgument, JsonOption, WhyOption

if TYPE_CHECKING:
    import typer

    from sipproxy.commands.changing import Kind

__all__ = ["add_import"]


def add_import(app: typer.Typer, kind: Kind, text: str) -> None:
    """Give `app` the command; `text` is its help."""

    @app.command("import", help=text)
    def import_file(
        file: FileArgument,
        why: WhyOption = "",
        dry_run: DryRunOption = False,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        from sipproxy.commands import changing, output

        output.run(lambda out: changing.import_file(kind, file, config, out, why=why, dry_run=dry_run), as_json=as_json)
