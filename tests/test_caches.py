"""docs/operation.md, "Bounds": what is kept of what was read is bounded, named, and told in metrics."""

from __future__ import annotations

import ast
import functools
from importlib import import_module
from pathlib import Path

import pytest

from policy.plan.areas import area_codes
from sipproxy.caches import PACKAGES, caches, filled
from sipproxy.metrics import Metrics
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import WAYS, Transports
from sipproxy.observe import _cache_metrics
from sipproxy.sip.flow import source_of
from sipproxy.sip.memo import Remembered
from sipproxy.sip.shape import MAX_SHAPES, Shape, Shapes
from tests.test_bounds import rows

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package.rstrip(".")).rglob("*.py"))


def made_in(path: Path) -> list[ast.Call]:
    """The calls by which a module makes caches of functions."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in ("lru_cache", "functools.lru_cache")]


@pytest.mark.parametrize("path", [path for path in SOURCES if "lru_cache" in path.read_text()], ids=lambda path: path.stem)
def test_bound_of_a_cache_has_a_name_and_a_row(path: Path) -> None:
    if path.name == "caches.py":
        return  # looks for them
    named = {row["bound"].rpartition(".")[2] for row in rows()}
    made = made_in(path)
    assert made
    for call in made:
        assert [keyword.arg for keyword in call.keywords] == ["maxsize"], ast.unparse(call)
        assert ast.unparse(call.keywords[0].value) in named, f"{ast.unparse(call)} is bounded by no constant of the table"


def test_every_cache_of_the_program_is_bounded_and_told() -> None:
    for path in SOURCES:
        if "lru_cache" in (text := path.read_text()) or "Remembered(" in text:
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    area_codes()  # kept from its first use on
    found = {name: tell() for name, tell in caches().items()}
    assert {"sip.flow.network_of", "sip.lines.vias_of", "sip.text.shared", "sip.shape.remembered"} <= set(found)
    assert not {name: one for name, one in found.items() if not (0 <= one.entries <= one.most and one.forgotten >= 0)}
    known = sum(len(made_in(path)) for path in SOURCES)
    told = sum(isinstance(value, functools._lru_cache_wrapper) for value in _values())
    assert known - 1 == told, "one is made for each instance of Transports, which tells it by itself"
    transports = Transports(Resolver(), lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None)
    assert filled(transports.ways).most == WAYS


def _values() -> list[object]:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if "lru_cache" in path.read_text()}
    found = {id(value): value for name in names for value in vars(import_module(name)).values()}
    return list(found.values())


def test_values_that_are_kept_without_a_bound_have_no_arguments() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and {"cache", "functools.cache"} & set(map(ast.unparse, node.decorator_list)):
                found.append((path.name, node.name))
                assert not ast.unparse(node.args), f"{path}: {node.name} keeps a value for each argument that ever came"
    assert ("areas.py", "area_codes") in found


async def test_entries_and_what_was_forgotten_are_metrics() -> None:
    transports = Transports(Resolver(), lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None)
    metrics = Metrics()
    _cache_metrics(metrics, transports)
    source_of("2001:db8::77")
    text = (await metrics.text()).decode()
    assert 'sipproxy_cache_entries{cache="sip.flow.network_of"}' in text
    assert 'sipproxy_cache_forgotten_total{cache="net.transports.ways"} 0' in text


def test_remembered_values_are_bounded_and_those_that_go_are_counted() -> None:
    sizes = Remembered(len, 4)
    for number in range(100):
        assert sizes[b"%d" % number] == len(str(number))
        assert sizes.kept <= sizes.most == 4
        assert sizes.kept + sizes.forgotten == number + 1


def test_shapes_are_bounded_and_those_that_go_are_counted() -> None:
    shapes = Shapes()
    for number in range(MAX_SHAPES + 10):
        assert isinstance(shapes[b"x-%d" % number,], Shape)
        assert shapes.kept <= shapes.most == MAX_SHAPES
    assert (shapes.kept, shapes.forgotten) == (10, MAX_SHAPES)
