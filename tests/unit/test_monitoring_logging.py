"""Logs: JSON off the terminal, no secret ever, never waiting for whoever reads them."""

import io
import json
import logging
import logging.handlers
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from monitoring.logging import LogWriter, configure_logging, redact, secrets_in

CANARY = 'gsk_canary"4711'


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines_when_not_on_a_terminal() -> None:
    stream = io.StringIO()
    with configure_logging("INFO", stream=stream) as writer:
        structlog.get_logger().warning("stream.gap", symbol="BTCUSDT", missing_count=3)
        structlog.get_logger().debug("hidden.event")
    (entry,) = logged(stream)
    assert entry["event"] == "stream.gap"
    assert entry["level"] == "warning"
    assert entry["missing_count"] == 3
    assert str(entry["timestamp"]).endswith("Z")
    assert writer.statistics()["written_count"] == 1


def test_events_are_plain_text_on_a_terminal() -> None:
    stream = Terminal()
    with configure_logging("INFO", stream=stream):
        structlog.get_logger().info("bot.started", symbols="BTCUSDT")
    assert "bot.started" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_no_way_of_logging_a_secret_shows_it() -> None:
    stream = io.StringIO()
    secrets = secrets_in({"GROQ_API_KEY": CANARY, "HTTP_TOKEN": "tok-canary-12", "PATH": "/bin"})
    assert secrets == {CANARY, "tok-canary-12"}
    with configure_logging("DEBUG", secrets=secrets, stream=stream) as writer:
        log = structlog.get_logger()
        log.info("a.message", text=f"key is {CANARY}", nested={"deep": [CANARY]})
        log.info(CANARY, api_key="another-canary", token="t")
        log.warning("a.url", url="https://x/y?symbol=B&signature=canaryabc&z=1")
        log.error("a.header", header="Bearer canary-token-12")
        logging.getLogger("library").warning("refused %s", CANARY)
        try:
            raise ValueError(f"bad key {CANARY}")
        except ValueError:
            log.exception("a.failure")
    assert "canary" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 6
    assert "canary" not in "".join(writer.recent)
    assert len(writer.recent) == 4


def test_short_values_are_no_secrets() -> None:
    assert secrets_in({"A_TOKEN": "1", "TOKENS": "abcdefgh"}) == frozenset()
    assert redact("prompt_tokens=5 count", frozenset()) == "prompt_tokens=5 count"


def test_other_libraries_records_come_out_as_events() -> None:
    stream = io.StringIO()
    with configure_logging("INFO", stream=stream):
        logging.getLogger("aiohttp.client").error("broken %s", "pipe")
        logging.getLogger("aiohttp.client").info("chatter")
    (entry,) = logged(stream)
    assert entry["event"] == "library.message"
    assert entry["library"] == "aiohttp.client"
    assert entry["message"] == "broken pipe"


def test_a_file_is_rotated_and_its_folder_created(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "orderflow.log"
    with configure_logging("INFO", log_file=path, file_bytes=500, files_kept=2):
        for number in range(20):
            structlog.get_logger().info("some.event", number=number)
    kept = sorted(p.name for p in path.parent.iterdir())
    assert kept == ["orderflow.log", "orderflow.log.1", "orderflow.log.2"]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["number"] == 19


class StalledHandler(logging.Handler):
    """Takes lines only after ``released``."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.released.wait(10)
        self.lines.append(record.getMessage())


def test_a_stalled_target_drops_and_counts_lines_instead_of_waiting() -> None:
    handler = StalledHandler()
    writer = LogWriter(handler, frozenset(), queue_lines=3)
    writer.write("0")
    assert handler.entered.wait(10)
    for number in range(1, 10):
        writer.write(str(number))
    assert writer.statistics()["dropped_count"] == 6
    handler.released.set()
    writer.close()
    assert [line for line in handler.lines if not line.startswith("{")] == ["0", "1", "2", "3"]
    assert {"event": "log.lines_dropped", "dropped_count": 6} in [
        json.loads(line) for line in handler.lines if line.startswith("{")
    ]


def test_lines_after_closing_are_written_at_once() -> None:
    stream = io.StringIO()
    writer = LogWriter(logging.StreamHandler(stream), frozenset())
    writer.close()
    writer.close()
    writer.write("late")
    assert stream.getvalue() == "late\n"
