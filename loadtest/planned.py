"""A command whose options are the fields of a plan: one number or switch each, with the plan's own value as the default."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from loadtest.options import amount_or_0, count
from loadtest.report import progress_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from loadtest.report import Report

__all__ = ["add_planned"]

P = TypeVar("P")


def add_planned(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    name: str,
    plan: P,
    work: Callable[[P, Callable[[str], None]], Awaitable[list[Report]]],
    *,
    text: str,
    options: Mapping[str, str],
) -> None:
    """The command `name`, which works with `plan` as changed by its options: fields of it, each with its text."""
    found = commands.add_parser(name, parents=[common], help=text)
    for field, what in options.items():
        default: Any = getattr(plan, field)
        flag, about = "--" + field.replace("_", "-"), f"{what} (default %(default)s)"
        if isinstance(default, bool):
            found.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=about)
        else:
            found.add_argument(flag, type=count if isinstance(default, int) else amount_or_0, default=default, help=about)

    async def run(given: argparse.Namespace) -> list[Report]:
        changed: Any = {field: getattr(given, field) for field in options}
        made: P = dataclasses.replace(plan, **changed)  # type: ignore[type-var]
        return await work(made, progress_of(name))

    found.set_defaults(run=run)
