"""The answers of a node with several workers: each is asked on its own socket, and what they say is put together.

Commands and scrapers see one node. Rows of calls and followed messages of all workers stand side by side, figures of trunk
routes and of the node are summed, and each metric has a label `worker`. Runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from sipproxy.admin.control import ControlError, Handler, NodeAwayError, Streamer, ask
from sipproxy.crewing import worker_socket
from sipproxy.together import Together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from sipproxy.config import Config

__all__ = ["Gathering"]

Row = dict[str, Any]

TIMEOUT_S = 4.0  # below what a command waits for the node
SCRAPE_S = 2.0
UNKNOWN_CALL, UNKNOWN_SOURCE = "there is no live call", "is not on the list"


class Gathering:
    """`present` gives the workers that serve, `counters` by worker whether it does and how often it was started again."""

    def __init__(
        self, config: Config, present: Callable[[], list[int]], counters: Callable[[], Mapping[int, tuple[bool, int]]]
    ) -> None:
        self._config, self._present, self._counters = config, present, counters
        self._idents = itertools.count(1)

    def handlers(self) -> dict[str, Handler]:
        """What the node's control socket answers."""
        return {
            "calls": self._calls,
            "end": self._end,
            "nodes": self._first("nodes"),
            "prune": self._all("prune"),
            "registrations": self._first("registrations"),
            "status": self._node_status,
            "trunks": self._trunks,
            "drops": self._drops,
            "drop": self._all("drop"),
            "spare": self._spare,
        }

    def streamers(self) -> dict[str, Streamer]:
        return {"watch": self._watch}

    # Asking

    async def _ask(self, worker: int, command: str, request: Row) -> Row:
        """Raises ControlError, also when it does not answer."""
        return await asyncio.to_thread(ask, worker_socket(self._config, worker), command, timeout_s=TIMEOUT_S, **request)

    async def _each(self, command: str, request: Row) -> list[tuple[int, Row]]:
        """The answers of all workers that serve and answer. Raises ControlError when none does, or when one refuses."""
        workers = self._present()
        found = await asyncio.gather(*(self._ask(worker, command, request) for worker in workers), return_exceptions=True)
        answers: list[tuple[int, Row]] = []
        for worker, answer in zip(workers, found, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, NodeAwayError):
                    raise answer
            else:
                answers.append((worker, answer))
        if not answers:
            raise ControlError("no worker of this node serves; see its log")
        return answers

    def _first(self, command: str) -> Handler:
        """What every worker knows as well as any other."""

        async def handler(request: Row) -> Row:
            return (await self._each(command, request))[0][1]

        return handler

    def _all(self, command: str) -> Handler:
        """What every worker has to do; one answer is as good as another."""

        async def handler(request: Row) -> Row:
            return (await self._each(command, request))[-1][1]

        return handler

    # Putting together

    async def _calls(self, request: Row) -> Row:
        rows = [{**row, "worker": worker} for worker, answer in await self._each("calls", request) for row in answer["calls"]]
        return {"calls": sorted(rows, key=lambda row: -float(row["for_s"]))}

    async def _end(self, request: Row) -> Row:
        """The worker that has the call ends it."""
        return await self._knowing("end", request, UNKNOWN_CALL)

    async def _spare(self, request: Row) -> Row:
        """Each worker has a list of its own."""
        return await self._knowing("spare", request, UNKNOWN_SOURCE)

    async def _knowing(self, command: str, request: Row, unknown: str) -> Row:
        """Ask all workers; the answer of the first that knows what is asked about. That others do not, and say `unknown`, means
        nothing."""
        refusal, answer = ControlError("no worker of this node serves; see its log"), None
        for worker in self._present():
            try:
                found = await self._ask(worker, command, request)
            except NodeAwayError:
                continue
            except ControlError as error:
                if unknown not in str(error):
                    raise
                refusal = error
            else:
                answer = found if answer is None else answer
        if answer is None:
            raise refusal
        return answer

    async def _node_status(self, request: Row) -> Row:
        answers = await self._each("status", request)
        out = {**answers[0][1], "node": self._config.node.id, "workers": self._config.node.workers, "serving": len(answers)}
        for name in ("calls", "registrations"):
            out[name] = sum(answer[name] for _, answer in answers)
        worst = max(answers, key=lambda found: found[1]["cdr"]["behind_ms"])[1]["cdr"]
        out["cdr"] = {**worst, "backlog": sum(answer["cdr"]["backlog"] for _, answer in answers)}
        return out

    async def _trunks(self, request: Row) -> Row:
        """A route's calls are those of all workers; where they differ about its state, the worst counts."""
        rows: dict[str, Row] = {}
        for _, answer in await self._each("trunks", request):
            for row in answer["trunks"]:
                known = rows.get(row["trunk"])
                if known is None:
                    rows[row["trunk"]] = row
                    continue
                worse = row if row["state"] == "down" and known["state"] != "down" else known
                rows[row["trunk"]] = {**worse, "calls": known["calls"] + row["calls"]}
        return {"trunks": list(rows.values())}

    async def _drops(self, request: Row) -> Row:
        answers = [answer for _, answer in await self._each("drops", request)]
        entries: dict[str, Row] = {}
        for answer in answers:
            for row in answer["drops"]:
                entries.setdefault(row["source"], row)
        return {**answers[0], "drops": list(entries.values())}

    # Following

    async def _watch(self, request: Row) -> AsyncIterator[Row]:
        """The events of all workers, as one watch. Raises ControlError."""
        watch = Together({**request, "ident": next(self._idents)}, self._config, self._present)
        async with contextlib.aclosing(watch.events()) as events:
            async for event in events:
                yield event

    # Metrics

    async def text(self) -> bytes:
        """The metrics of all workers that serve and answer."""
        workers = dict(self._counters())

        async def of(worker: int) -> str:
            with contextlib.suppress(ControlError):
                answer = await asyncio.to_thread(ask, worker_socket(self._config, worker), "metrics", timeout_s=SCRAPE_S)
                return str(answer["text"])
            return ""

        serving = [worker for worker, (serves, _) in workers.items() if serves]
        texts = await asyncio.gather(*map(of, serving))
        return (_own_metrics(workers) + merged(dict(zip(serving, texts, strict=True)))).encode()


def _own_metrics(workers: Mapping[int, tuple[bool, int]]) -> str:
    rows = ["# HELP sipproxy_worker_up 1 while the worker serves", "# TYPE sipproxy_worker_up gauge"]
    rows += [f'sipproxy_worker_up{{worker="{worker}"}} {float(serves)}' for worker, (serves, _) in workers.items()]
    rows += ["# HELP sipproxy_worker_restarts_total times that the worker was started again"]
    rows += ["# TYPE sipproxy_worker_restarts_total counter"]
    rows += [f'sipproxy_worker_restarts_total{{worker="{worker}"}} {float(again)}' for worker, (_, again) in workers.items()]
    return "\n".join(rows) + "\n"


def merged(texts: Mapping[int, str]) -> str:
    """Prometheus texts of several workers as one, each sample with its worker's label."""
    families: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for worker, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, name, *_ = line.split(" ", 3)
                family = name
                head = heads.setdefault(family, [])
                if not any(known.startswith(f"# {kind} ") for known in head):
                    head.append(line)
                continue
            name, brace, rest = line.partition("{")
            if brace:
                sample = f'{name}{{worker="{worker}",{rest}'
            else:
                name, _, value = line.partition(" ")
                sample = f'{name}{{worker="{worker}"}} {value}'
            families.setdefault(family, []).append(sample)
    return "".join("\n".join([*heads.get(family, []), *samples]) + "\n" for family, samples in families.items())
