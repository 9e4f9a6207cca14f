"""Of workers that take the same call at the same moment one has it, and all know which."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sipproxy.net.taken import MAX_HELD, PLACES, TRIES, Taken, shared_file

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="a file without a name and with locks that are asked for is Linux's"
)
TAKE = """
import json, sys
from sipproxy.net.taken import Taken
taken = Taken(int(sys.argv[1]), int(sys.argv[2]))
print(flush=True)
for line in sys.stdin:
    print(json.dumps([taken.take(number) for number in json.loads(line)]), flush=True)
"""


class Process:
    """Another worker."""

    def __init__(self, descriptor: int, worker: int) -> None:
        words = [sys.executable, "-c", TAKE, str(descriptor), str(worker)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, pass_fds=[descriptor])
        self.answer = ""
        self._read()

    def ask(self, numbers: list[int]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(numbers) + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def told(self) -> list[int]:
        found: list[int] = json.loads(self._read())
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def descriptor() -> Iterator[int]:
    found = shared_file()
    yield found
    os.close(found)


@pytest.fixture
def others(descriptor: int) -> Iterator[list[Process]]:
    found = [Process(descriptor, worker) for worker in (2, 64)]
    yield found
    for process in found:
        process.kill()


def test_number_is_whose_took_it_first_until_that_one_dies(descriptor: int, others: list[Process]) -> None:
    own = Taken(descriptor, 1)
    others[1].ask([7, 8])
    assert others[1].told() == [64, 64]
    assert [own.take(number) for number in (6, 7, 8, 9, 7 + PLACES)] == [1, 64, 64, 1, 64]
    assert [own.owner(number) for number in (6, 7, 8, 9, 10)] == [0, 64, 64, 0, 0]
    others[0].ask([6, 7, 8, 9, 10])
    assert others[0].told() == [1, 64, 64, 1, 2]
    others[1].kill()
    assert [own.owner(number) for number in (7, 10)] == [0, 2]
    assert [own.take(number) for number in (7, 10)] == [1, 2]


def test_workers_that_take_the_same_numbers_at_once_agree(descriptor: int, others: list[Process]) -> None:
    own, numbers = Taken(descriptor, 1), list(range(MAX_HELD))
    for other in others:
        other.ask(numbers)
    found = [own.take(number) for number in numbers]
    assert [other.told() for other in others] == [found, found]


def test_oldest_are_let_go_when_there_are_too_many(descriptor: int, others: list[Process]) -> None:
    own = Taken(descriptor, 1)
    for number in (*range(MAX_HELD), 0):  # what is held already takes no place
        assert own.take(number) == 1
    others[0].ask([0])
    assert (others[0].told(), own.forgotten) == ([1], 0)
    own.take(MAX_HELD)
    assert own.forgotten == 1
    others[0].ask([0, 1, MAX_HELD])
    assert others[0].told() == [2, 1, 1]


def test_what_the_kernel_cannot_tell_is_its_readers(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
    """Design: invariant 1. No memory for a lock, a place that is free again each time it is looked at, no such file at all."""
    assert (Taken(-1, 3).take(5), Taken(-1, 3).owner(5)) == (3, 0)
    tries = []

    def lock(*_: object) -> None:
        tries.append(1)
        raise faults[0]

    monkeypatch.setattr(fcntl, "lockf", lock)
    for fault, count in ((OSError(37, "ENOLCK"), 1), (BlockingIOError(), TRIES)):
        faults = [fault]
        tries.clear()
        assert (Taken(descriptor, 3).take(5), len(tries)) == (3, count)
