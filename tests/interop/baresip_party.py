"""One baresip, driven over stdin and stdout by JSON lines. A program of its own: baresip allows one runtime a process.

Argument: a JSON object `{"user", "password", "domain", "host", "port", "interval", "transport", "instance", "ca"}`. Commands:
`{"do": "register"}`, `unregister`, `{"do": "dial", "uri": ...}`, `{"do": "listen"}` until the other's tone is heard, `hold`,
`resume`, `hangup`, `quit`; each gets an event `ok` or `error`. Others: `incoming`, `established`, `held` and `resumed` by the
other side, `closed` with the counters of the media.
An incoming call is answered at once. While a call is up a tone is written, and received PCM is read and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import baresip

RATE = 8000
TONE = b"".join(struct.pack("<h", int(8000 * math.sin(2 * math.pi * 440 * n / RATE))) for n in range(RATE))  # one second


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Party:
    def __init__(self, agent: baresip.UserAgent) -> None:
        self.agent = agent
        self.call: baresip.Call | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.pcm_bytes = 0
        self.loud_samples = 0
        self.hearing = asyncio.Event()  # a quarter of a second of the other's tone
        self.closed: dict[int, str] = {}  # calls by handle, with the reason
        agent.on_incoming(self.incoming)
        agent.on(self.note_closed)

    def incoming(self, call: baresip.Call) -> None:
        say("incoming", call_id=call.call_id, peer=call.peer)
        self.spawn(self.answer(call))

    def note_closed(self, event: baresip.StackEvent) -> None:
        if event.event is baresip.Event.CALL_CLOSED:
            self.closed[event.call] = event.text or ""

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, call: baresip.Call) -> None:
        self.follow(call)
        await call.answer()

    def follow(self, call: baresip.Call) -> None:
        self.call, self.pcm_bytes, self.loud_samples = call, 0, 0

        def on_event(event: baresip.StackEvent) -> None:
            if event.event is baresip.Event.CALL_ESTABLISHED:
                say("established", call_id=event.call_id)
                self.spawn(self.media(call))
            elif event.event in (baresip.Event.CALL_HOLD, baresip.Event.CALL_RESUME):
                say("held" if event.event is baresip.Event.CALL_HOLD else "resumed", call_id=event.call_id)
            elif event.event is baresip.Event.CALL_CLOSED:
                stats = call.final_stats
                media = (
                    {"rx_packets": stats.rx_packets, "tx_packets": stats.tx_packets, "rx_lost": stats.rx_lost} if stats else {}
                )
                say("closed", call_id=event.call_id, text=event.text, pcm_bytes=self.pcm_bytes, loud=self.loud_samples, **media)

        call.on(on_event)

    async def media(self, call: baresip.Call) -> None:
        with contextlib.suppress(baresip.BaresipError):
            while call.state is not baresip.CallState.CLOSED:
                with contextlib.suppress(baresip.AudioNotActive, baresip.AudioRestarted):
                    call.audio.write(TONE[:3200])
                    heard = call.audio.read(32_000)
                    self.pcm_bytes += len(heard)
                    self.loud_samples += sum(abs(value) > 2000 for (value,) in struct.iter_unpack("<h", heard))
                if self.loud_samples > RATE // 4:
                    self.hearing.set()
                await asyncio.sleep(0.05)

    async def once_free(self, change: Callable[[], Awaitable[None]]) -> None:
        """A re-INVITE waits for the one before it (RFC 3261 §14.1): baresip says that it does, and to ask again."""
        async with asyncio.timeout(20):
            while True:
                try:
                    return await change()
                except baresip.BaresipError as error:
                    if "in flight" not in str(error):
                        raise
                await asyncio.sleep(0.05)

    async def perform(self, command: dict[str, Any]) -> None:
        match command["do"]:
            case "register":
                await self.agent.register(timeout=30)
            case "unregister":
                await self.agent.unregister(timeout=30)
            case "dial":
                call = await self.agent.dial(command["uri"])
                self.follow(call)
                if call.handle in self.closed:  # before there was a Call that could hear of it: refused at once
                    raise baresip.CallFailed.from_close_reason(self.closed[call.handle])
                await call.wait_established(timeout=30)
            case "listen":
                async with asyncio.timeout(20):
                    await self.hearing.wait()
            case "hold":
                assert self.call is not None
                await self.once_free(self.call.hold)
            case "resume":
                assert self.call is not None
                await self.once_free(self.call.resume)
            case "hangup":
                assert self.call is not None
                await self.call.hangup()
            case other:
                raise ValueError(f"unknown command {other!r}")


async def main(options: dict[str, Any]) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
    runtime = baresip.Runtime()
    host, instance = options["host"], options["instance"]
    listen = f"[{host}]:{options['port']}" if ":" in host else f"{host}:{options['port']}"
    more = f"sip_listen {listen}\n"
    if options["ca"]:
        more += f"sip_cafile {options['ca']}\nsip_verify_server yes\n"
    config = baresip.Config(net_interface=host, sip_trace=True, instance_id=instance or None, extra_config_text=more)
    await runtime.start(config)
    account = baresip.Account(
        options["user"],
        options["domain"],
        options["password"],
        reg_interval=options["interval"],
        transport=options["transport"],
        registrar=f"{options['domain']};transport={options['transport']}" if instance else None,
        extra_params=("sipnat=outbound",) if instance else (),
    )
    party = Party(await baresip.UserAgent.create(runtime, account))
    say("ready")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "quit":
            break
        try:
            await party.perform(command)
        except (baresip.BaresipError, ValueError, AssertionError, TimeoutError) as error:
            say("error", do=command["do"], kind=type(error).__name__, text=str(error), status=getattr(error, "status", None))
        else:
            say("ok", do=command["do"])
    await runtime.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
