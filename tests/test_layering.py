"""docs/design.md, "Layout": who may import whom, read from the source, and what the pure core never touches."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sipproxy", "policy", "cdr", "loadtest")

# Part -> parts that it may import besides itself, by the longest name that fits. Dependencies run downwards only.
ALLOWED: dict[str, tuple[str, ...]] = {
    "policy": (),
    "cdr": (),
    "sipproxy": (),
    "sipproxy.sip": (),
    "sipproxy.config": ("sipproxy.config_file",),  # `load` leads to the reader, which needs the structs
    "sipproxy.config_file": ("sipproxy.config", "policy"),
    "sipproxy.policy_files": ("sipproxy.config", "policy"),
    "sipproxy.log": (),
    "sipproxy.systemd": (),
    "sipproxy.pcap": (),
    "sipproxy.compiled": (),
    "sipproxy.process": (),
    "sipproxy.orders": ("sipproxy.config",),
    "sipproxy.crewing": ("sipproxy.config", "cdr"),
    "sipproxy.welcome": ("sipproxy.config", "sipproxy.config_file", "policy"),
    "sipproxy.metrics": ("sipproxy.config_file",),
    "sipproxy.engine": ("sipproxy.sip", "policy", "cdr.facts", "cdr.assemble"),
    "sipproxy.net": ("sipproxy.sip", "sipproxy.engine"),
    "sipproxy.store": ("sipproxy.sip", "sipproxy.engine", "policy", "cdr"),
    "sipproxy.admin": ("sipproxy.sip", "sipproxy.engine", "policy", "cdr"),
    "sipproxy.policy_cache": ("policy",),
    # The composition root and what it is made of.
    "sipproxy.app": ("sipproxy", "policy", "cdr"),
    "sipproxy.certificates": ("sipproxy.net", "sipproxy.config"),
    "sipproxy.lifecycle": ("sipproxy", "cdr"),
    "sipproxy.neighbours": ("sipproxy", "cdr"),
    "sipproxy.observe": ("sipproxy", "policy", "cdr"),
    "sipproxy.caches": ("sipproxy.sip",),
    "sipproxy.settings": ("sipproxy", "policy", "cdr"),
    "sipproxy.shell": ("sipproxy", "policy", "cdr"),
    "sipproxy.watching": ("sipproxy", "policy", "cdr"),
    "sipproxy.reloading": ("sipproxy", "policy"),
    "sipproxy.siblings": ("sipproxy",),
    "sipproxy.words": ("sipproxy.sip", "sipproxy.engine"),
    "sipproxy.gathering": ("sipproxy",),
    "sipproxy.together": ("sipproxy",),
    "sipproxy.workers": ("sipproxy",),
    "sipproxy.worker": ("sipproxy",),
    "sipproxy.cli": ("sipproxy", "policy", "cdr", "loadtest"),
    "sipproxy.commands": ("sipproxy", "policy", "cdr", "loadtest"),
    "sipproxy.__main__": ("sipproxy.cli",),
    "loadtest": ("sipproxy", "policy", "cdr"),
}
# Imported by their like alone.
TOP = tuple(
    f"sipproxy.{name}"
    for name in (
        "app",
        "certificates",
        "lifecycle",
        "neighbours",
        "observe",
        "reloading",
        "settings",
        "shell",
        "siblings",
        "gathering",
        "together",
        "worker",
        "workers",
        "cli",
        "commands",
        "__main__",
    )
)

CORE = (
    "sipproxy.sip",
    "sipproxy.engine",
    "policy",
    "cdr.facts",
    "cdr.assemble",
    "cdr.codec",
    "cdr.quality",
    "cdr.retention",
    "cdr.place",
    "cdr.columns",
    "cdr.export",
    "cdr.neutral",
    "cdr.skip",
)
SHELL_OF_CORE = ("policy.store",)
# Whatever does I/O, keeps time, draws random numbers, waits, runs code beside ours, or logs.
# fmt: off
IMPURE = frozenset({
    "asyncio", "concurrent", "contextvars", "fcntl", "ftplib", "glob", "http", "logging", "multiprocessing", "os",
    "pathlib", "pickle", "prometheus_client", "queue", "random", "redis", "resource", "rich", "sched", "secrets",
    "select", "selectors", "shelve", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "structlog",
    "subprocess", "sys", "syslog", "tempfile", "threading", "time", "trio", "typer", "urllib", "uuid", "uvloop",
    "warnings",
})
# fmt: on
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "breakpoint"})


class Import(NamedTuple):
    module: str
    name: str  # what is imported
    line: int


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a source, those within functions and TYPE_CHECKING included. `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            yield from (Import(module, f"{base}.{alias.name}", node.lineno) for alias in node.names)


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def part_of(name: str) -> str:
    return max((part for part in ALLOWED if within(name, part)), key=len)


def breach(found: Import) -> str | None:
    """Why this import is against the layout, or None."""
    if found.name.split(".")[0] not in PACKAGES:
        return None
    own = part_of(found.module)
    target = part_of(found.name)
    if target == own:
        return None
    if target in TOP and own not in (*TOP, "loadtest"):
        return f"{found.module} imports {found.name}: only the top may"
    if any(within(found.name, allowed) for allowed in ALLOWED[own]):
        return None
    return f"{found.module}:{found.line} imports {found.name}; {own} may import {ALLOWED[own] or 'nothing of ours'}"


def is_core(module: str) -> bool:
    return any(within(module, part) for part in CORE) and not any(within(module, part) for part in SHELL_OF_CORE)


def impurities(module: str, source: str) -> list[str]:
    found = [
        f"{module}:{item.line} imports {item.name}" for item in imports_of(module, source) if item.name.split(".")[0] in IMPURE
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"{module}:{node.lineno} awaits")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"{module}:{node.lineno} calls {node.func.id}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("io.open", "io.FileIO"):  # StringIO is pure
            found.append(f"{module}:{node.lineno} opens files")
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in ("now", "utcnow", "today")
            and ast.unparse(node.value)
            in (
                "datetime",
                "datetime.datetime",
                "date",
                "datetime.date",
            )
        ):
            found.append(f"{module}:{node.lineno} reads a clock")
    return found


SOURCES = modules()


def test_modules_every_package_is_read() -> None:
    assert {name.split(".")[0] for name in SOURCES} == set(PACKAGES)
    assert sum(map(is_core, SOURCES)) >= 10


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_run_downwards_only(module: str) -> None:
    file = SOURCES[module]
    found = imports_of(module, file.read_text(), is_package=file.name == "__init__.py")
    assert [text for item in found if (text := breach(item))] == []


@pytest.mark.parametrize("module", sorted(filter(is_core, SOURCES)))
def test_core_module_has_no_io_clock_chance_or_await(module: str) -> None:
    assert impurities(module, SOURCES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("policy.evaluate", "from sipproxy.sip import uri"),
        ("policy.store", "import cdr"),
        ("cdr.codec", "import policy.model"),
        ("sipproxy.sip.uri", "from sipproxy.engine import core"),
        ("sipproxy.sip.uri", "def f():\n    import policy"),
        ("sipproxy.sip.uri", "from ..engine import core"),
        ("sipproxy.engine.core", "from sipproxy.store import slots"),
        ("sipproxy.engine.core", "from sipproxy import config"),
        ("sipproxy.engine.core", "from cdr.journal import Journal"),
        ("sipproxy.net.udp", "from sipproxy.store import keys"),
        ("sipproxy.store.slots", "import sipproxy.app"),
        ("sipproxy.admin.control", "from sipproxy import cli"),
        ("sipproxy.app", "import loadtest.demo"),
        ("cdr.publisher", "from loadtest import ua"),
    ],
)
def test_breach_import_upwards_or_across_is_found(module: str, source: str) -> None:
    assert [text for item in imports_of(module, source) if (text := breach(item))] != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("policy.store", "from policy import model"),
        ("sipproxy.engine.core", "from cdr.facts import Admit\nfrom policy import evaluate\nfrom sipproxy.sip.uri import Uri"),
        ("sipproxy.app", "from sipproxy import config, engine\nimport cdr.journal"),
        ("sipproxy.commands.node", "from sipproxy import app\nimport loadtest.demo"),
        ("sipproxy.sip.uri", "from . import errors\nfrom .errors import ParseError"),
    ],
)
def test_breach_import_downwards_is_none(module: str, source: str) -> None:
    assert [text for item in imports_of(module, source) if (text := breach(item))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import path",
        "def f():\n    import random",
        "import asyncio.queues",
        "async def f(): ...",
        "open('x')",
        "print(1)",
        "import io\nio.open('x')",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
    ],
)
def test_impurities_io_clock_or_await_is_found(source: str) -> None:
    assert impurities("sipproxy.sip.x", source) != []


def test_size_no_module_is_longer_than_500_lines() -> None:
    assert {name: lines for name, file in SOURCES.items() if (lines := len(file.read_text().splitlines())) > 500} == {}
