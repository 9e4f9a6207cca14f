"""The log: structlog to stderr, one JSON object a line (or coloured text), with secrets removed whoever logs them.

Lines are written by a thread of their own behind a bounded queue, so that a stalled reader of stderr never delays a SIP
message; what does not fit is counted and told as soon as there is room. Leaves out: files and rotation, which belong
to journald or the container's runtime.
"""

from __future__ import annotations

import logging
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

__all__ = ["LogWriter", "configure", "redact", "redact_text"]

MAX_QUEUED = 10_000  # lines; some megabytes
MAX_TEXT = 2_000  # characters of one value, enough for the header that was wrong
MAX_DEPTH = 6
MAX_SECRET = 800  # characters of the longest URL up to its "@" that is recognised
HIDDEN = "[redacted]"

# A key is compared in lower case with "-" as "_".
_SECRET_KEYS = re.compile(r"(^|_)(authorization|passwords?|passwd|secret|token|ha1|credentials|cookie|api_key)($|_)")
_SECRET_TEXT = (
    # Authorization, Proxy-Authorization, Authentication-Info: the whole field value, folded lines included.
    (
        re.compile(
            r"""(?im)((?:proxy-)?(?:authorization|authentication-info)["']?\s*[:=]\s*)"""
            r""".*(?:(?:\r?\n|\\r\\n)[ \t]+.*)*"""
        ),
        r"\1" + HIDDEN,
    ),
    # digest parameters and key=value spellings anywhere else
    (
        re.compile(
            r"""(?i)\b((?:response|cnonce|rspauth)["']?\s*=\s*|(?:password|passwd|ha1|secret|token)["']?\s*[=:]\s*)"""
            r"""("[^"]*"|'[^']*'|[^\s,;"']+)"""
        ),
        r"\1" + HIDDEN,
    ),
    # user:password@ in a URL or a SIP URI; bounded, so that a text full of beginnings costs no more
    (
        re.compile(r"""(?i)\b((?:rediss?|unix|https?|sips?):(?://)?[^\s:@/<>]{0,128}):[^\s@/<>]{1,512}@"""),
        r"\1:" + HIDDEN + "@",
    ),
)


def redact_text(text: str) -> str:
    """`text` without credentials, cut to MAX_TEXT characters."""
    cut = text[: 2 * MAX_TEXT]
    for pattern, replacement in _SECRET_TEXT:
        cut = pattern.sub(replacement, cut)
    if len(text) > 2 * MAX_TEXT:
        cut = cut[:-MAX_SECRET]  # the end that shows that something is a secret may have been cut off
    return cut if len(text) <= MAX_TEXT else f"{cut[:MAX_TEXT]}... ({len(text)} characters)"


def _clean(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return redact_text(bytes(value[: 2 * MAX_TEXT]).decode("utf-8", "replace"))
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _clean_item(str(key), item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in value]
    return redact_text(str(value) if isinstance(value, Exception) else repr(value))


def _clean_item(key: str, value: object, depth: int) -> object:
    return HIDDEN if _SECRET_KEYS.search(key.lower().replace("-", "_")) else _clean(value, depth + 1)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: no credential leaves by a log line, by its key or within a text."""
    return {str(key): _clean_item(str(key), value, 0) for key, value in event.items()}


class LogWriter:
    """Writes lines to `stream` from a thread; `write` never blocks. `dropped` counts what did not fit."""

    def __init__(self, stream: TextIO, *, max_queued: int = MAX_QUEUED) -> None:
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(max_queued)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        self._told = 0
        self.dropped = 0

    def write(self, line: str) -> None:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most `timeout_s` seconds. Harmless when repeated."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            text = line + "\n"
            if self.dropped != self._told:
                text += f'{{"level":"warning","event":"log.dropped","lines":{self.dropped - self._told}}}\n'
                self._told = self.dropped
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # the reader has gone; a log without a reader is no reason to stop calls
                self.dropped += 1


class _Named:
    """structlog processor: says whose line it is, unless the line says so."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("node", self._node)
        return event


class _QueueLogger:
    """What structlog calls last: one rendered line per call, whatever the level."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def msg(self, line: str) -> None:
        self._write(line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def configure(
    level: str = "info",
    format: Literal["json", "console"] = "json",  # noqa: A002
    *,
    stream: TextIO | None = None,
    node: str = "",
) -> LogWriter:
    """Set the process's log up and return its writer, to be closed at the end. Standard `logging` goes the same way. Each line
    names the `node`, where one is given: that is one of several workers, whose lines stand in one log."""
    target = stream if stream is not None else sys.stderr
    writer = LogWriter(target)
    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)
    )
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *([_Named(node)] if node else []),
        redact,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=lambda *_: _QueueLogger(writer.write),
        cache_logger_on_first_use=False,
    )
    handler = _StandardHandler(
        writer, structlog.stdlib.ProcessorFormatter(processors=[_without_meta, renderer], foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    return writer


def set_level(level: str) -> None:
    """What is below this level is not written from now on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
    logging.getLogger().setLevel(max(number, logging.INFO))  # libraries at debug level log what they send


def _without_meta(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: value for key, value in event.items() if key not in ("_record", "_from_structlog")}


class _StandardHandler(logging.Handler):
    """Carries records of the standard library's logging (asyncio, redis) into the same writer."""

    def __init__(self, writer: LogWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except Exception:  # a log line that cannot be rendered must not end the caller
            self._writer.dropped += 1
