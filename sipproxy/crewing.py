"""Names and folders of a node's workers, and what a changed `node.workers` leaves behind.

The first worker has the node's own name and folder, so that a node of one process becomes one of several as it stands; the
others have a number behind the name and a folder `worker-<number>` in the node's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cdr.journal import Journal

if TYPE_CHECKING:
    from sipproxy.config import Config

__all__ = ["folder_of", "folders", "left_behind", "name_of", "number_of", "worker_config", "worker_socket"]

_FOLDER = re.compile(r"worker-([0-9]{1,2})")


def name_of(config: Config, worker: int) -> str:
    """The worker's name in the store and in records."""
    return config.node.id if worker == 1 else f"{config.node.id}-{worker}"


def folder_of(config: Config, worker: int) -> Path:
    """Where the worker keeps its journal."""
    base = Path(config.node.data_dir)
    return base if worker == 1 else base / f"worker-{worker}"


def worker_socket(config: Config, worker: int) -> Path:
    """Where the worker listens for the supervisor's questions; the node's own socket is the supervisor's."""
    return folder_of(config, worker) / "worker.sock"


def worker_config(config: Config, worker: int, *, store_url: str) -> Config:
    """The configuration of one worker: as the node's, with a name and a folder of its own, and no port for metrics."""
    replace = msgspec.structs.replace
    node = replace(config.node, id=name_of(config, worker), data_dir=str(folder_of(config, worker)))
    return replace(config, node=node, store=replace(config.store, url=store_url), metrics=replace(config.metrics, address=""))


def folders(config: Config) -> list[tuple[str, Path]]:
    """Name and folder of each worker that has a journal: of those that run, and of those of before `node.workers` changed."""
    found = {1}
    base = Path(config.node.data_dir)
    for path in base.glob("worker-*") if base.is_dir() else ():
        named = _FOLDER.fullmatch(path.name)
        if named is not None and (path / "journal").is_dir():
            found.add(int(named[1]))
    return [(name_of(config, worker), folder_of(config, worker)) for worker in sorted(found)]


def left_behind(config: Config) -> list[int]:
    """The workers beyond `node.workers` whose journal has calls that did not end, or records that are not confirmed: those that
    ran before it was lowered, and have to run until nothing is left.

    Raises JournalError when a journal cannot be read, or another process has it.
    """
    found = []
    for name, folder in folders(config):
        number = number_of(folder)
        if number <= config.node.workers:
            continue
        journal = Journal(folder / "journal", node=name, segment_bytes=config.cdr.segment_bytes)
        try:
            if journal.recover().unfinished or journal.stats.last_seq > journal.stats.confirmed_seq:
                found.append(number)
        finally:
            journal.close()
    return found


def number_of(folder: Path) -> int:
    """The worker whose folder it is."""
    named = _FOLDER.fullmatch(folder.name)
    return int(named[1]) if named is not None else 1
