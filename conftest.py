"""With CI=true nothing is left out: a skipped test fails the run, and the reasons say what was missing."""

from __future__ import annotations

import os

import pytest

SKIPPED = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter is not None else 0
    session.config.stash[SKIPPED] = skipped
    if os.environ.get("CI") == "true" and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = config.stash.get(SKIPPED, 0)
    if os.environ.get("CI") == "true" and skipped:
        terminalreporter.write_line(f"CI leaves nothing out: {skipped} skipped", red=True)
