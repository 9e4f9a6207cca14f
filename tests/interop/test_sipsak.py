"""sipsak against a real node: the OPTIONS that monitoring sends."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.node import LineSpec

if TYPE_CHECKING:
    from loadtest.network import Network


@pytest.mark.program("sipsak")
async def test_options_from_sipsak_is_answered_200(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([LineSpec("B2001", "b2001", "secret-b", "+49603255501")])
    program = shutil.which("sipsak")
    assert program is not None
    host, port = network.node.address
    process = await asyncio.create_subprocess_exec(
        program, "-vv", "-s", f"sip:{host}:{port}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert b"SIP/2.0 200 OK" in output
