"""Mixes of traffic: what a file may say, when calls begin, how long they last."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.mix import MIXES, Hold, Mix, arrivals, read
from loadtest.mix_command import node_settings
from sipproxy.config_file import ConfigError

SMALL = """name = "small"
[load]
rate = 10
seconds = 5
[shares]
answered = 1.0
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return path


def mix_of(tmp_path: Path, old: str = "", new: str = "") -> Mix:
    return read(written(tmp_path, SMALL.replace(old, new)))


@pytest.mark.parametrize("name", sorted(path.stem for path in MIXES.glob("*.toml")))
def test_read_of_a_shipped_mix_by_its_name_finds_no_fault(name: str) -> None:
    assert read(Path(name)).name.replace(" ", "-") == name


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rate = 10", "rate = 10\nrats = 3", ":4: load.rats: unknown key; did you mean 'rate'?"),
        ("rate = 10", "", ":2: load: give either rate"),
        ("rate = 10", "rate = 10\nsteps = [[0, 1]]", ":2: load: give either rate"),
        ("rate = 10", "steps = [[5, 1]]", ":3: load.steps: begin with second 0"),
        ("seconds = 5", "", ":2: load: give either seconds"),
        ("rate = 10", "rate = -1", ":3: load.rate: "),
        ("answered = 1.0", "answered = 0.7\nbusy = 0.2", ":5: shares: are 0.9 together; make them 1"),
        (
            "answered = 1.0",
            "answered = 1.0\n[[storm]]\nat_s = 1\naccounts = 2000",
            ":9: storm[1].accounts: at most accounts.count",
        ),
        ("answered = 1.0", "answered = 1.0\n[accounts]\ncount = 10", ":8: accounts.count: 10 are too few"),
        (
            "answered = 1.0",
            "answered = 1.0\n[hold]\nkind = 'often'",
            ":8: hold.kind: one of 'fixed', 'exponential', 'lognormal'",
        ),
        ("[load]", "[laod]", ":2: laod: unknown section; did you mean 'load'?"),
        ("[load]", "[load", ":2: not TOML"),
        (
            "answered = 1.0",
            "answered = 1.0\n[node.calls]\nprobe = 1",
            ":8: node.calls.probe: unknown key; did you mean 'probe_s'?",
        ),
        ("answered = 1.0", "answered = 1.0\n[node.calls]\nprobe_s = 'x'", ":8: node.calls.probe_s: expected int, got str"),
        ("answered = 1.0", "answered = 1.0\n[node.call]\nprobe_s = 1", ":7: node.call: unknown key; did you mean 'calls'?"),
    ],
)
def test_read_of_a_faulty_mix_names_file_line_key_and_what_to_do(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        mix_of(tmp_path, old, new)
    assert f"{tmp_path / 'small.toml'}{told}" in str(raised.value)


def test_read_of_a_mix_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    for name in ("none.toml", "evening"):
        with pytest.raises(ConfigError, match=rf"{name}: there is no such file.*; those are busy-hour, evening, .*yardstick"):
            read(tmp_path / name)


def test_read_of_a_mix_whose_name_a_folder_has_takes_the_one_that_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "soak").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read(Path("soak")).name == "soak"


def test_read_of_a_folder_says_what_a_mix_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path)
    assert str(raised.value) == f"{tmp_path}: cannot be read (Is a directory); loadtest/mixes/evening.toml explains every key"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("calls.probe=1", "--set: calls.probe: unknown key; did you mean 'probe_s'?"),
        ("calls.probe_s=soon", "--set: calls.probe_s: expected int, got str"),
        ("node.workers=many", "--set: node.workers: expected int, got str"),
        ("call.probe_s=1", "--set: call: unknown section; did you mean 'calls'?"),
    ],
)
def test_node_settings_of_a_key_or_value_that_no_node_takes_are_told_before_one_starts(entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        node_settings(["limits.calls=5", entry])
    assert str(raised.value) == told


def test_read_with_values_of_the_command_line_takes_them_and_checks_them(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    mix = read(path, {("load", "steps"): [[0, 3], [2, 4]], ("load", "rate"): None, ("", "seed"): 9})
    assert (mix.rate_at(1.9), mix.rate_at(2.0), mix.seed) == (3, 4, 9)
    with pytest.raises(ConfigError, match="accounts\\.count: 5 are too few"):
        read(path, {("accounts", "count"): 5})


def test_arrivals_evenly_have_the_same_distance_and_their_number_is_exact(tmp_path: Path) -> None:
    mix = mix_of(tmp_path, "seconds = 5", 'seconds = 5\narrivals = "even"')
    assert list(arrivals(mix, random.Random(1))) == pytest.approx([number / 10 for number in range(50)])


def test_arrivals_at_random_follow_the_steps_and_the_seed(tmp_path: Path) -> None:
    mix = mix_of(
        tmp_path, "rate = 10\nseconds = 5", "steps = [[0, 100], [10, 0], [20, 300]]\nseconds = 30\n[accounts]\ncount = 20000"
    )
    times = list(arrivals(mix, random.Random(1)))
    first, silent, last = (sum(start <= at < start + 10 for at in times) for start in (0, 10, 20))
    assert all(before < after for before, after in pairwise(times))
    assert silent == 0
    assert abs(first - 1000) < 5 * 1000**0.5  # a Poisson number: five standard deviations
    assert abs(last - 3000) < 5 * 3000**0.5
    assert times == list(arrivals(mix, random.Random(1))) != list(arrivals(mix, random.Random(2)))


def test_arrivals_end_with_the_number_of_calls_that_was_asked_for(tmp_path: Path) -> None:
    mix = mix_of(tmp_path, "seconds = 5", "calls = 123")
    assert len(list(arrivals(mix, random.Random(1)))) == 123


@pytest.mark.parametrize("kind", ["exponential", "lognormal"])
def test_hold_draws_lengths_with_its_mean_and_none_above_its_bound(kind: str) -> None:
    hold = Hold(kind=kind, mean_s=10, sigma=0.5, at_most_s=1000)  # type: ignore[arg-type]
    rng = random.Random(1)
    drawn = [hold.draw(rng) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(10, rel=0.05)
    short = Hold(kind=kind, mean_s=10, sigma=2, at_most_s=12)  # type: ignore[arg-type]
    assert max(short.draw(rng) for _ in range(1000)) == 12
    assert Hold(kind="fixed", mean_s=3).draw(rng) == 3
