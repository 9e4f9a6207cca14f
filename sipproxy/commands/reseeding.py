"""`sipproxy reseed`: the policy data of a store that lost it, back from this node's last snapshot."""

from __future__ import annotations

from pathlib import Path

from policy import store
from sipproxy import policy_cache
from sipproxy.commands.backend import with_store
from sipproxy.commands.changing import operator, tell
from sipproxy.commands.output import CommandError, Output
from sipproxy.config import load

__all__ = ["reseed"]


def reseed(path: Path, output: Output, *, why: str, dry_run: bool) -> int:
    """Make the store hold what the last snapshot does, as the version after it. Raises CommandError when nothing was lost."""
    config = load(path)
    file = Path(config.node.data_dir) / "policy.snapshot"
    snapshot = policy_cache.load(file)
    if snapshot is None:
        raise CommandError(f"{file}: no snapshot of a node that can be read; run this where a node ran")
    reason = why or f"reseed from version {snapshot.version} of node {config.node.id}"
    try:
        outcome = with_store(
            config,
            lambda client: store.reseed(client, snapshot, who=operator(), why=reason, dry_run=dry_run),
            create=not dry_run,
        )
    except store.NothingLostError as error:
        raise CommandError(str(error)) from None
    lines, rules = len(snapshot.lines), len(snapshot.blocks)
    done = f"{lines} lines and {rules} block rules from version {snapshot.version}"
    return tell(output, outcome, done, dry_run=dry_run, more={"from_version": snapshot.version})
