"""Compiled modules beside their sources: whether they are there, and of which sources (sipproxy/compiled.py)."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sipproxy import __version__, compiled

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


def tree(root: Path, *names: str, library: bool = True) -> Path:
    """A folder of packages with sources of these names and a compiled module beside each; its stamp."""
    for name in names:
        source = root / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"# {name}")
        source.with_suffix(".cpython-311-x86_64-linux-gnu.so").touch()
    if library:
        (root / "sipproxy_core__mypyc.cpython-311-x86_64-linux-gnu.so").touch()
    stamp = root / "compiled.stamp"
    stamp.write_text("".join(f"{tool().digest(root / name)} {name}\n" for name in names))
    return stamp


def test_sources_that_changed_since_they_were_compiled_are_named(tmp_path: Path) -> None:
    one, two = "sipproxy/one.py", "policy/two.py"
    stamp = tree(tmp_path, one, two)
    assert compiled.outdated(stamp, tmp_path) == []
    (tmp_path / one).write_text("# another")
    assert compiled.outdated(stamp, tmp_path) == [one]
    (tmp_path / two).unlink()
    assert compiled.outdated(stamp, tmp_path) == [two, one]


def test_compiled_modules_that_the_stamp_does_not_name_or_that_are_gone_are_named(tmp_path: Path) -> None:
    """What another version compiled and this one does not would be taken instead of its source all the same."""
    kept, left_over, lost = "cdr/kept.py", "sipproxy/net/left_over.py", "cdr/lost.py"
    stamp = tree(tmp_path, kept, lost)
    tree(tmp_path / "other", left_over)
    (tmp_path / "sipproxy" / "net").mkdir(parents=True)
    (tmp_path / "sipproxy" / "net" / "left_over.cpython-311-x86_64-linux-gnu.so").touch()
    next((tmp_path / "cdr").glob("lost.*.so")).unlink()
    assert compiled.outdated(stamp, tmp_path) == [lost, left_over]
    stamp.unlink()
    assert compiled.outdated(stamp, tmp_path) == [kept, left_over]


def test_plain_takes_away_what_another_version_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["sipproxy/net/no_longer.py", "sipproxy/sip/uri.py", "cdr/codec.py", "policy/numbers.py"]
    compile_core, stamp = tool(), tree(tmp_path, *names)
    monkeypatch.setattr(compile_core, "ROOT", tmp_path)
    monkeypatch.setattr(compile_core, "STAMP", stamp)
    compile_core.remove()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == sorted(names)
    assert compiled.outdated(stamp, tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [["serve"], ["check"], ["explain", "--batch", "-"], ["line", "list"]], ids=lambda arguments: arguments[0]
)
def test_nothing_runs_on_compiled_modules_of_other_sources_and_it_is_said_before_they_are_imported(
    arguments: list[str], tmp_path: Path
) -> None:
    """It would run the engine of one version and the rest of another, or end with whatever does not fit first."""
    for package in ("sipproxy", "policy", "cdr"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.stamp"))
    for module in ("sipproxy_core__mypyc", "policy/numbers", "sipproxy/sip/message"):
        (tmp_path / f"{module}{EXTENSION_SUFFIXES[0]}").write_text("of no use")  # importing it fails
    command = [sys.executable, "-m", "sipproxy", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"sipproxy: {tmp_path / 'sipproxy'}: the compiled modules are not of these sources (policy/numbers.py, "
        "sipproxy/sip/message.py): `make compiled` makes them again, `make plain` goes without\n"
    )


def test_worker_does_not_start_on_compiled_modules_of_other_sources(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sipproxy", tmp_path / "sipproxy", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.stamp"))
    for module in ("sipproxy_core__mypyc", "sipproxy/shell"):
        (tmp_path / f"{module}{EXTENSION_SUFFIXES[0]}").write_text("of no use")
    command = [sys.executable, "-m", "sipproxy.worker", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, input="", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not of these sources (sipproxy/shell.py): `make compiled`" in done.stderr


def test_build_without_a_compiler_says_so_and_changes_nothing() -> None:
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "sipproxy").rglob("*") if path.suffix in (".so", ".stamp")}
    command, environment = [sys.executable, "tools/compile_core.py"], {**os.environ, "CC": "/nowhere/cc -O2"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "compile_core: there is no C compiler '/nowhere/cc' (Debian: gcc)\nnothing was compiled: the program stays as it was\n"
    )
    assert before == {
        path: path.stat().st_mtime_ns for path in (ROOT / "sipproxy").rglob("*") if path.suffix in (".so", ".stamp")
    }


def test_build_that_fails_tells_why_and_leaves_what_was_compiled_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_core, stamp = tool(), tree(tmp_path, "sipproxy/one.py", "policy/two.py", "cdr/three.py")
    (tmp_path / "sipproxy" / "one.py").write_text(
        "from __future__ import annotations\n\n\ndef one() -> int:\n    return 'one'\n"
    )
    monkeypatch.setattr(compile_core, "ROOT", tmp_path)
    monkeypatch.setattr(compile_core, "STAMP", stamp)
    monkeypatch.setattr(compile_core, "BUILD", tmp_path / "build" / "core")
    monkeypatch.setattr(compile_core, "sources", lambda: ["sipproxy/one.py"])
    monkeypatch.setattr(compile_core, "lacking", str)  # a machine without a C compiler gets as far
    monkeypatch.setattr(sys, "argv", ["compile_core.py"])
    before = stamp.read_text()
    assert compile_core.main() == 1
    told = capsys.readouterr().err
    assert 'sipproxy/one.py:5: error: Incompatible return value type (got "str", expected "int")' in told
    assert "Traceback" not in told
    assert told.endswith("nothing was compiled: the program stays as it was\n")
    assert stamp.read_text() == before
    assert len(compile_core.built(tmp_path)) == 4


def test_everything_that_is_compiled_is_still_the_same_program() -> None:
    """The build imports more and writes other annotations, on the lines where they were, and constructors of dataclasses."""
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
        if isinstance(node, ast.ClassDef):
            _without_constructor(node)
        if isinstance(body, list):
            node.body = [_assigned(one) for one in body]  # type: ignore[attr-defined]
    # What is imported for annotations alone, and first of all in the adapted copy.
    tree.body = [
        node
        for node in tree.body
        if not isinstance(node, ast.ImportFrom) and "TYPE_CHECKING" not in (text := ast.unparse(node)) and text != UNSET
    ]
    return ast.dump(tree)


UNSET = "_unset = object()"  # stands for what a factory makes


def _without_constructor(node: ast.ClassDef) -> None:
    for number, decorator in enumerate(node.decorator_list):
        if isinstance(decorator, ast.Call) and any(option.arg == "init" for option in decorator.keywords):
            decorator.keywords = [option for option in decorator.keywords if option.arg != "init"]
            node.decorator_list[number] = decorator if decorator.keywords else decorator.func
            last = node.body.pop()
            assert isinstance(last, ast.FunctionDef)
            assert last.name == "__init__"


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


DATACLASSES = '''from __future__ import annotations
from dataclasses import dataclass, field

class Timer:
    """A base without fields."""

@dataclass(eq=False, slots=True)
class Call(Timer):
    line: str
    size: int = 7
    seen: list[int] = field(default_factory=lambda: [1])
    ends: list[str] = field(init=False, default_factory=list)
    both: str = field(init=False)

    def __post_init__(self) -> None:
        self.both = self.line * 2

@dataclass(slots=True)
class Line:
    name: bytes

@dataclass(frozen=True, slots=True)
class Fixed:
    """What may not be set is set in another way."""

    name: bytes

@dataclass(slots=True)
class Own:
    name: bytes

    def __init__(self) -> None:
        self.name = b"own"

'''


def test_constructors_of_dataclasses_are_written_out_for_the_compiler() -> None:
    """mypyc leaves those that are made at import time to the interpreter, which takes five times as long."""
    source = tool().adapted(DATACLASSES)
    assert source.count("\n") == DATACLASSES.count("\n")
    written = {
        node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and "init=False" in ast.unparse(node)
    }
    assert written == {"Call", "Line"}
    spaces: list[dict[str, Any]] = [{"__name__": __name__}, {"__name__": __name__}]
    for text, space in zip((DATACLASSES, source), spaces, strict=True):
        exec(compile(text, "made", "exec", dont_inherit=True), space)
    for space in spaces:
        call, other = space["Call"]("a", seen=[]), space["Call"]("b", 8)
        assert (call.line, call.size, call.seen, call.ends, call.both) == ("a", 7, [], [], "aa")
        assert (other.size, other.seen, other.both) == (8, [1], "bb")
        assert other.seen is not space["Call"]("b").seen
        assert other.ends is not call.ends
        assert space["Line"](b"x") == space["Line"](name=b"x")
        assert space["Fixed"](b"x").name == b"x"
        assert space["Own"]().name == b"own"
