"""The tables of what a call costs: a whole node in one process whose sockets are not used."""

from __future__ import annotations

import json
import subprocess
import sys


def test_cost_of_a_few_calls_has_all_four_tables() -> None:
    command = [sys.executable, "-m", "loadtest", "cost", "--calls", "20", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    call, register, stages, messages, sockets = json.loads(done.stdout)
    # 407, INVITE to the carrier, 180, 200, ACK, BYE, and the 200 of the BYE; 100 when the INVITE is taken.
    assert (call["sent"], register["sent"]) == (8.0, 2.0)
    steps = ("INVITE", "ACK of the 407", "INVITE with digest", "100", "180", "200", "ACK", "BYE", "200 of the BYE")
    assert all(call[step] > 0 for step in steps)
    assert call["all"] > sum(call[step] for step in steps)
    assert stages["samples"] > 0
    assert all(messages[f"{step} parse"] > 0 < messages[f"{step} check"] for step in steps)
    assert sockets["in"] > 0 < sockets["out"]
