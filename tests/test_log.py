"""The log: one JSON object a line, never a credential, never in the way."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.log import HIDDEN, MAX_TEXT, LogWriter, configure, redact, redact_text

SECRET = "s3cr3t-0123456789abcdef"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(action: Any, **options: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    writer = configure(stream=stream, **options)
    action()
    writer.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "Authorization",
        "proxy-authorization",
        "Proxy_Authorization",
        "ha1",
        "HA1",
        "ha1_md5",
        "api_token",
        "client_secret",
    ],
)
def test_redact_secret_key_hides_the_value_at_any_depth(key: str) -> None:
    for value in (SECRET, SECRET.encode(), [SECRET], {"MD5": SECRET}):
        assert redact(None, "", {"event": "x", key: value}) == {"event": "x", key: HIDDEN}
        assert SECRET not in str(redact(None, "", {"outer": [{key: value}]}))


@pytest.mark.parametrize(
    "text",
    [
        f'REGISTER sip:a SIP/2.0\r\nAuthorization: Digest username="u", response="{SECRET}"\r\nTo: x',
        f'Proxy-Authorization: Digest username="u",\r\n response="{SECRET}"\r\nTo: x',
        f"b'Authorization: Digest response={SECRET}\\\\r\\\\nTo: x'",
        f'Digest username="u", nonce="n", response = "{SECRET}"',
        f"response={SECRET}, uri=x",
        f"password={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"{{'ha1': '{SECRET}'}}",
        f"line 3: ha1:{SECRET}",
        f"redis://:{SECRET}@127.0.0.1:6379/0 refused",
        f"rediss://user:{SECRET}@store.example",
        f"sip:user:{SECRET}@sip.example;transport=udp",
    ],
)
def test_redact_text_credentials_within_a_text_are_hidden(text: str) -> None:
    assert SECRET not in redact_text(text)
    assert HIDDEN in redact_text(text)
    for value in (text, text.encode(), ValueError(text), [text], {"a": {"b": text}}):
        assert SECRET not in str(redact(None, "", {"event": "x", "value": value}))


@pytest.mark.parametrize(
    "text", ["To: <sip:+492051555101@sip.example>;tag=1\r\nFrom: x", "answered with response: 404", "unix:///run/store.sock"]
)
def test_redact_text_without_credentials_stays(text: str) -> None:
    assert redact_text(text) == text


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(["Authorization: ", "password=", "HA1: "]))
def test_redact_text_secret_in_any_surroundings_is_hidden(before: str, after: str, name: str) -> None:
    assert SECRET not in redact_text(f"{before}\n{name}{SECRET}\n{after}")


def test_redact_text_long_value_is_cut_and_says_so() -> None:
    text = redact_text("a" * 10_000)
    assert len(text) < MAX_TEXT + 40
    assert text.endswith("... (10000 characters)")


def test_redact_text_secret_across_the_cut_is_hidden() -> None:
    assert "s3cr" not in redact_text("a" * (MAX_TEXT - 14) + " password=" + SECRET)


@pytest.mark.parametrize(
    "piece", ["sip:a:", "password=", 'password="', "authorization: \\r\\n ", "redis://", "response =  ", "token: '"]
)
def test_redact_text_hostile_repetition_stays_cheap(piece: str) -> None:
    text = piece * (2 * MAX_TEXT // len(piece))
    started = time.thread_time()
    redact_text(text)
    assert time.thread_time() - started < 1, "what grows by the square takes several seconds"


@pytest.mark.parametrize("length", range(MAX_TEXT - 40, MAX_TEXT + 40, 7))
def test_redact_text_url_across_the_cut_is_hidden(length: int) -> None:
    assert SECRET[:8] not in redact_text("a" * (length - 20) + f" redis://user:{SECRET}@host" + "b" * MAX_TEXT)


def test_redact_text_url_across_the_cut_behind_shrunken_text_is_hidden() -> None:
    before = " ".join(f"password={'x' * 200}" for _ in range(18))
    text = before + " " * (2 * MAX_TEXT - len(before) - 30) + f"redis://user:{SECRET}@host" + "b" * MAX_TEXT
    assert text.index(SECRET) < 2 * MAX_TEXT < text.index("@host")
    assert SECRET[:8] not in redact_text(text)


def test_configure_json_writes_one_object_with_level_and_utc_stamp() -> None:
    [line] = logged(lambda: structlog.get_logger().warning("store.away", reason="LOADING", node="n1"))
    assert (line["event"], line["level"], line["reason"], line["node"]) == ("store.away", "warning", "LOADING", "n1")
    assert line["timestamp"].endswith("Z")


def test_configure_level_filters_below() -> None:
    def action() -> None:
        structlog.get_logger().info("quiet")
        structlog.get_logger().error("loud")

    assert [line["event"] for line in logged(action, level="warning")] == ["loud"]


def test_configure_standard_logging_and_exceptions_go_the_same_way_without_secrets() -> None:
    def action() -> None:
        try:
            raise ValueError(f"cannot use password={SECRET}")
        except ValueError:
            logging.getLogger("asyncio").exception("lost %s", f"Authorization: Digest {SECRET}")
            structlog.get_logger().exception("failed")

    lines = logged(action)
    assert [line["level"] for line in lines] == ["error", "error"]
    assert all("ValueError" in line["exception"] for line in lines)
    assert SECRET not in json.dumps(lines)


class _StalledStream(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.released.wait(10)
        return super().write(text)


def test_log_writer_stalled_reader_drops_counts_and_tells() -> None:
    stream = _StalledStream()
    writer = LogWriter(stream, max_queued=3)
    writer.write("first")
    assert stream.entered.wait(10)
    for number in range(10):
        writer.write(str(number))
    assert writer.dropped == 7
    stream.released.set()
    writer.close()
    assert [line for line in stream.getvalue().splitlines() if not line.startswith("{")] == ["first", "0", "1", "2"]
    assert '"event":"log.dropped","lines":7' in stream.getvalue()


def test_log_writer_closed_stream_never_raises() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    writer.write("x")
    writer.close()
    assert writer.dropped == 1


def test_lines_of_a_worker_name_it_unless_they_name_a_node_themselves() -> None:
    def act() -> None:
        log = structlog.get_logger("node")
        log.warning("journal_disk", state="full")
        log.info("ready", node="node1")
        logging.getLogger("redis").warning("away")

    assert [line["node"] for line in logged(act, node="node1-2")] == ["node1-2", "node1", "node1-2"]
    assert [line.get("node") for line in logged(act)] == [None, "node1", None]
