"""Compile what a call and its datagrams pass through with mypyc, next to the sources: `compile_core.py` builds, `--remove`
takes it away.

The sources stay plain Python and are all that is needed to run. Needs mypy, setuptools, a C compiler and Python's headers. The
build goes on in build/core; modules and stamp are put in place at its end, so that one that fails changes nothing. A node that
runs meanwhile keeps the modules that it has.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP = ROOT / "sipproxy" / "compiled.stamp"  # sipproxy/compiled.py reads it
BUILD = ROOT / "build" / "core"
PACKAGES = ("sipproxy", "policy", "cdr")
FOLDERS = ("sipproxy/sip", "sipproxy/engine")
SINGLE = (
    *(f"cdr/{name}.py" for name in ("assemble", "interims", "journal", "quality", "segment", "storage")),
    *(
        f"policy/{name}.py"
        for name in ("blocklist", "caller", "dialled", "emergency", "evaluate", "fraud", "identity", "numbers", "windows")
    ),  # model and rules are values that msgspec reads from the store, which it cannot where they are compiled
    *(f"sipproxy/{name}.py" for name in ("randomness", "shell")),
    *(f"sipproxy/net/{name}.py" for name in ("intake", "transports", "udp")),
    *(f"sipproxy/store/{name}.py" for name in ("backlog", "connection", "errors", "keys", "live_slots", "slots", "wire")),
)
PLAIN = {
    "sipproxy/engine/structs.py",  # msgspec makes its classes
    "sipproxy/engine/crew.py",  # and some of these
}
BARE = {"Timer"}  # bases of dataclasses that have no fields of theirs
GROUP = "sipproxy_core"
TOLD = 20  # lines of a tool that failed
SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

flags = ["--config-file=mypy.ini", *sys.argv.pop().split(",")]
modules = mypycify(flags, opt_level="3", debug_level="0", multi_file=True, group_name={group!r})
setup(name={group!r}, packages=[], py_modules=[], ext_modules=modules)
"""


class BuildError(Exception):
    """Nothing was built, and why."""


def digest(source: Path) -> str:
    """What tells one version of a source from another; as in sipproxy/compiled.py, which may not be importable now."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def sources() -> list[str]:
    """What is compiled, as paths below the root."""
    found = (path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")))
    return [*(name for name in found if name not in PLAIN and not name.endswith("__init__.py")), *SINGLE]


def built(root: Path) -> list[Path]:
    """The compiled modules below `root`, as paths below it: also those that another version compiled and this one does not."""
    found = [*root.glob(f"{GROUP}__mypyc*.so"), *(path for package in PACKAGES for path in (root / package).rglob("*.so"))]
    return [path.relative_to(root) for path in found]


def adapted(source: str) -> str:
    """The source with what mypyc 2 needs and plain Python does not.

    It evaluates the annotations of fields: those of named tuples are put into quotes, those of dataclasses become unions with
    themselves, which are the same types and are not evaluated. It does not see the constructors of dataclasses, which are made
    on import and stay interpreted: they are written out. And it finds what a module assigns once by its name in a dictionary
    each time, unless that is said to be final. Lines stay where they are, so that tracebacks are right.
    """
    lines = source.split("\n")
    tree = ast.parse(source)
    for statement in _constants(tree):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        assert isinstance(target, ast.Name)
        if isinstance(statement, ast.AnnAssign):
            _replace(lines, statement.annotation, "_Final[{}]")
        else:
            _replace(lines, target, "{}: _Final")
    future = "from __future__ import annotations"
    lines[lines.index(future)] = future + "; from typing import Any as _Any, Final as _Final; _unset: _Final[object] = object()"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        if any(ast.unparse(base) == "NamedTuple" for base in node.bases):
            form = '"{}"'
        elif decorators := [found for found in node.decorator_list if ast.unparse(found).startswith("dataclass")]:
            form = "{0} | {0}"
            _write_constructor(lines, node, decorators[0])
        else:
            continue
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and not isinstance(field.annotation, ast.Constant):
                _replace(lines, field.annotation, form)
    return "\n".join(lines)


def _write_constructor(lines: list[str], node: ast.ClassDef, decorator: ast.expr) -> None:
    """Write a dataclass's constructor into the empty line below it, unless it has its own, or one that is not so simple."""
    methods = {found.name for found in node.body if isinstance(found, ast.FunctionDef)}
    options = {option.arg for option in decorator.keywords} if isinstance(decorator, ast.Call) else set()
    if "__init__" in methods or options - {"eq", "slots"} or {ast.unparse(base) for base in node.bases} - BARE:
        return
    parameters, done = ["self"], list[str]()
    for field in node.body:
        if not isinstance(field, ast.AnnAssign):
            continue
        name, note, value = ast.unparse(field.target), ast.unparse(field.annotation), field.value
        said = _options_of(value)
        if said.keys() - {"default", "default_factory", "init"} or note.startswith(("ClassVar", "InitVar")):
            return
        made = f"({said['default_factory']})()" if "default_factory" in said else said.get("default", "")
        if said.get("init") == "False":
            done += [f"self.{name} = {made}"] if made else []
        elif "default_factory" in said:
            parameters.append(f"{name}: _Any = _unset")
            done.append(f"self.{name} = {made} if {name} is _unset else {name}")
        else:
            parameters.append(f"{name}: {note} = {made}" if made else f"{name}: {note}")
            done.append(f"self.{name} = {name}")
    if "__post_init__" in methods:
        done.append("self.__post_init__()")
    below = node.end_lineno or 0
    if lines[below]:
        raise ValueError(f"no empty line below {node.name}")
    lines[below] = f"    def __init__({', '.join(parameters)}) -> None: {'; '.join(done) or 'pass'}"
    _replace(
        lines, decorator, ast.unparse(decorator).removesuffix(")") + ", init=False)" if options else "dataclass(init=False)"
    )


def _options_of(value: ast.expr | None) -> dict[str, str]:
    """What a field of a dataclass says of its default, as in `dataclasses.field`."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return {option.arg or "**": ast.unparse(option.value) for option in value.keywords}
    return {"default": ast.unparse(value)} if value is not None else {}


def _constants(tree: ast.Module) -> list[ast.Assign | ast.AnnAssign]:
    """What a module assigns once to one name; not types, which mypy has to know as such, nor what functions assign to."""
    names = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    found: list[ast.Assign | ast.AnnAssign] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value is not None and "Final" not in ast.unparse(node.annotation):
            target = node.target
        else:
            continue
        if not isinstance(target, ast.Name) or names[target.id] > 1 or target.id.startswith("__") or _is_type(node.value):
            continue
        found.append(node)
    return found


def _is_type(value: ast.expr | None) -> bool:
    """Whether it may be an alias of a type, or a type variable."""
    if isinstance(value, ast.BinOp):
        return _is_type(value.left) and _is_type(value.right)
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
    return isinstance(value, (ast.Name, ast.Attribute, ast.Subscript))


def _replace(lines: list[str], note: ast.expr, form: str) -> None:
    """Write an annotation in another form where it stands; its columns are bytes."""
    if note.lineno != note.end_lineno:
        raise ValueError(f"an annotation of several lines: {ast.unparse(note)}")
    line = lines[note.lineno - 1].encode()
    start, end = line[: note.col_offset].decode(), line[note.end_col_offset :].decode()
    lines[note.lineno - 1] = start + form.format(ast.unparse(note).replace('"', "'")) + end


def remove() -> None:
    """Run plain Python from now on."""
    for path in built(ROOT):
        (ROOT / path).unlink()
    STAMP.unlink(missing_ok=True)


def lacking() -> str:
    """What a build needs and is not here; "" where nothing is missing."""
    for name in ("mypyc", "setuptools"):
        if find_spec(name) is None:
            return f"{name} is not installed for {sys.executable}; `make compiled` installs what it needs"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler {compiler!r} (Debian: gcc)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"{header} is not there (Debian: python3-dev)"


def build() -> str:
    """Compile; the stamp. Raises BuildError, and OSError, when that fails, and then nothing has changed."""
    if missing := lacking():
        raise BuildError(missing)
    names = sources()
    stamp = "".join(f"{digest(ROOT / name)} {name}\n" for name in names)  # now: they may be edited while this goes on
    shutil.rmtree(BUILD, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, BUILD / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in names:
        (BUILD / name).write_text(adapted((ROOT / name).read_text()))
    (BUILD / "setup.py").write_text(SETUP.format(group=GROUP))
    (BUILD / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n")
    _run("setup.py", "--quiet", "build_ext", "--inplace", ",".join(names))
    _run("-c", f"import {', '.join(name.removesuffix('.py').replace('/', '.') for name in names)}")
    return stamp


def _run(*arguments: str) -> None:
    """Run Python in the build's folder; raises BuildError with the end of what it said."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if ": warning: " not in line]
        raise BuildError("\n".join([f"{' '.join(arguments)[:80]} ended with {done.returncode}", *said[-TOLD:]]))


def place(stamp: str) -> None:
    """Put what was built in its place, and the stamp last: nothing runs on compiled modules without one. Raises OSError."""
    remove()
    for path in built(BUILD):
        shutil.copy2(BUILD / path, ROOT / path)
    STAMP.write_text(stamp)


def main() -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--remove", action="store_true", help="go back to plain Python")
    if parser.parse_args().remove:
        remove()
        print("the engine is plain Python")
        return 0
    try:
        stamp = build()
    except (BuildError, OSError) as error:
        print(f"compile_core: {error}\nnothing was compiled: the program stays as it was", file=sys.stderr)
        return 1
    try:
        place(stamp)
    except OSError as error:
        remove()
        print(f"compile_core: {error}\nthe engine is plain Python", file=sys.stderr)
        return 1
    print(f"the engine is compiled: {len(built(ROOT))} modules")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
