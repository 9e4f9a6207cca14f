"""Compiled modules beside their sources: whether they are there, and of which sources (sipproxy/compiled.py)."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sipproxy import __version__, app, compiled
from sipproxy.config import load

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_core", ROOT / "tools" / "compile_core.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_version_tells_whether_the_engine_is_compiled() -> None:
    done = subprocess.run([sys.executable, "-m", "sipproxy", "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"sipproxy {__version__}, engine {compiled.kind()}\n"
    assert compiled.kind() == ("compiled" if tool().built(ROOT) else "plain")


def test_modules_that_are_in_place_are_of_these_sources() -> None:
    assert compiled.outdated() == []


def test_sources_that_changed_since_they_were_compiled_are_named(tmp_path: Path) -> None:
    stamp, one, two = tmp_path / "stamp", tmp_path / "one.py", tmp_path / "two.py"
    for source in (one, two):
        source.write_text(f"# {source.name}")
    stamp.write_text("".join(f"{tool().digest(source)} {source.name}\n" for source in (one, two)))
    assert compiled.outdated(stamp, tmp_path) == []
    one.write_text("# another")
    assert compiled.outdated(stamp, tmp_path) == ["one.py"]
    two.unlink()
    assert compiled.outdated(stamp, tmp_path) == ["one.py", "two.py"]


def test_node_whose_compiled_modules_are_of_other_sources_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would run the engine of one version and the rest of another."""
    monkeypatch.setattr(compiled, "outdated", lambda: ["sipproxy/sip/uri.py"])
    path = tmp_path / "config.toml"
    path.write_text('[node]\ndata_dir = "data"\n[store]\nurl = "unix:///nowhere"\n')
    assert app.main(load(path), config_path=path, embedded=False) == 1
    assert "not of these sources (sipproxy/sip/uri.py): `make compiled`" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_everything_that_is_compiled_is_still_the_same_program() -> None:
    """The build imports more and writes other annotations, on the lines where they were."""
    compile_core = tool()
    names = compile_core.sources()
    assert "sipproxy/sip/message.py" in names
    assert "sipproxy/engine/structs.py" not in names
    for name in names:
        source = (ROOT / name).read_text()
        adapted = compile_core.adapted(source)
        assert adapted.count("\n") == source.count("\n")
        assert _without_annotations(adapted) == _without_annotations(source), name


def _assigned(node: ast.stmt) -> ast.stmt:
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return ast.copy_location(ast.Assign([node.target], node.value), node)
    if isinstance(node, ast.AnnAssign):
        node.annotation = ast.Constant(None)
    return node


def _without_annotations(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [_assigned(one) for one in body]  # type: ignore[attr-defined]
    # What is imported for annotations alone, and first of all in the adapted copy.
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.ImportFrom) and "TYPE_CHECKING" not in ast.unparse(node)
    ]
    return ast.dump(tree)


def test_classes_that_cannot_be_compiled_are_in_the_module_that_is_not() -> None:
    """mypyc makes a class of msgspec's that ends the process when it is imported."""
    for name in tool().sources():
        bases = [
            base
            for node in ast.walk(ast.parse((ROOT / name).read_text()))
            if isinstance(node, ast.ClassDef)
            for base in node.bases
        ]
        assert "msgspec.Struct" not in map(ast.unparse, bases), name
