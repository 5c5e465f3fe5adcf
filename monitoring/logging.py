"""Structured logs that never block the event loop and never carry a secret.

Consumes structlog events and the standard library's records, produces one line each: JSON, or
coloured text on a terminal. Lines go through a bounded queue to a writer thread; when the disk or
the terminal stalls, lines are dropped and counted instead of stopping the feed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import structlog

QUEUE_LINES = 10_000
FILE_BYTES = 10 * 1024 * 1024
FILES_KEPT = 3
CLOSE_TIMEOUT_S = 2.0
SHORTEST_SECRET = 6
_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|secret|token|password|passwd|authorization|signature)$|^ALERT_(URLS|WEBHOOK_URL)$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?i)(\b(?:signature|api_?key|token|secret|password)=|\bbearer\s+)[^\s&\"'\\]+"
)
_HIDDEN = "***"


def secrets_in(environment: Mapping[str, str]) -> frozenset[str]:
    """The values of variables that are named like secrets (``GROQ_API_KEY``, ``HTTP_TOKEN``, …)."""
    return frozenset(
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET
    )


def redact(line: str, secrets: Iterable[str]) -> str:
    """``line`` without the given secrets, in plain or JSON spelling, nor anything that looks like one."""
    for secret in secrets:
        line = line.replace(secret, _HIDDEN).replace(json.dumps(secret)[1:-1], _HIDDEN)
    return _SECRET_TEXT.sub(rf"\1{_HIDDEN}", line)


class LogWriter:
    """The queue and the thread behind all loggers; ``recent`` keeps the last problems for a view."""

    def __init__(
        self, handler: logging.Handler, secrets: frozenset[str], queue_lines: int = QUEUE_LINES
    ) -> None:
        self._handler = handler
        self._secrets = secrets
        self._lines: queue.Queue[str | None] = queue.Queue(maxsize=queue_lines)
        self._written = self._dropped = 0
        self._closed = False
        self.recent: deque[str] = deque(maxlen=5)
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line; drops and counts it when the queue is full. Once closed, write it now."""
        line = redact(line, self._secrets)
        if self._closed:
            self._emit(line)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    debug = info = warning = error = critical = exception = msg = log = write  # structlog's names

    def keep_problem(self, text: str) -> None:
        """Remember a warning or error for ``recent``."""
        self.recent.append(redact(text, self._secrets))

    def _write_all(self) -> None:
        reported = 0
        while (line := self._lines.get()) is not None:
            self._emit(line)
            if self._dropped > reported:
                reported = self._dropped
                self._emit(json.dumps({"event": "log.lines_dropped", "dropped_count": reported}))
        self._handler.close()

    def _emit(self, line: str) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": line}))
        self._written += 1

    def close(self) -> None:
        """Write what is queued and end the thread; gives up after ``CLOSE_TIMEOUT_S``."""
        if self._closed:
            return
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_TIMEOUT_S)
            self._thread.join(CLOSE_TIMEOUT_S)
        self._closed = not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def statistics(self) -> dict[str, int | float | str | None]:
        """Lines written, dropped and waiting."""
        return {
            "written_count": self._written,
            "dropped_count": self._dropped,
            "waiting_count": self._lines.qsize(),
        }


class _ForeignRecords(logging.Handler):
    """Passes other libraries' records on as structlog events."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            max(record.levelno, logging.DEBUG),
            "library.message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def configure_logging(
    level: str,
    *,
    log_file: Path | None = None,
    file_bytes: int = FILE_BYTES,
    files_kept: int = FILES_KEPT,
    secrets: frozenset[str] = frozenset(),
    stream: TextIO | None = None,
) -> LogWriter:
    """Send every log line of this process to ``log_file``, or to stderr (``stream``) without one.

    Args:
        level: DEBUG, INFO, WARNING or ERROR; less severe events cost next to nothing.
        log_file: its folder is created.
        file_bytes: size at which it is rotated.
        files_kept: old ones kept, as ``NAME.1``, ``NAME.2``, …
        secrets: texts that must never appear.
        stream: stands in for stderr.

    Returns:
        The writer; close it last, or the final lines may be lost.

    Raises:
        OSError: the log file cannot be opened.
    """
    logging.raiseExceptions = False  # a closed terminal must not print tracebacks
    target = stream or sys.stderr
    writer = LogWriter(_handler(log_file, target, file_bytes, files_kept), secrets)
    on_terminal = log_file is None and target.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _hide_named_secrets,
            _problem_keeper(writer),
            *_renderers(on_terminal=on_terminal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        handlers=[_ForeignRecords()], level=max(logging.WARNING, level_of(level)), force=True
    )
    return writer


def level_of(name: str) -> int:
    """The standard library's number of a level's name."""
    return logging.getLevelNamesMapping()[name]


def _handler(
    log_file: Path | None, stream: TextIO, file_bytes: int, files_kept: int
) -> logging.Handler:
    if log_file is None:
        return logging.StreamHandler(stream)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        log_file, maxBytes=file_bytes, backupCount=files_kept, encoding="utf-8"
    )


def _renderers(*, on_terminal: bool) -> list[Any]:
    if on_terminal:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
    ]


def _hide_named_secrets(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str | bytes) and _SECRET_NAME.search(key):
            event[key] = _HIDDEN
    return event


def _problem_keeper(writer: LogWriter) -> structlog.typing.Processor:
    def keep(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if event.get("level") in {"warning", "error", "critical"}:
            skipped = {"event", "level", "timestamp", "exc_info"}
            details = " ".join(f"{k}={v}" for k, v in event.items() if k not in skipped)
            writer.keep_problem(
                f"{event['timestamp'][11:19]} {event['level']} {event['event']} {details}"
            )
        return event

    return keep
