"""Progress of a download on a terminal: one bar per file under way, and one for all.

Consumes ``show`` calls → draws four times a second below the log lines; off a terminal it is silent.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_REDRAW_S: Final = 0.25
_BAR_CELLS: Final = 24
_CLEAR: Final = "\r\x1b[J"


class FileBar:
    """How far one month is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage, self._done = "asking", 0
        self._total: int | None = None

    def show(self, stage: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes; ``None``: the end is not known."""
        self._stage, self._done, self._total = stage, done, total

    def text(self) -> str:
        """One line."""
        ratio = self._done / self._total if self._total else 0.0
        size = f"{self._done / 1e6:,.1f} MB" if self._done else ""
        return f"{bar(ratio)} {ratio:4.0%}  {self._name}  {self._stage} {size}"


class ProgressBars:
    """The bars of a run.

    Args:
        total: Months in all.
        stream: Where to draw; nothing is drawn unless it is a terminal.
        monotonic: Seconds that never run back.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._monotonic = monotonic
        self._started_s = monotonic()
        self._done = 0
        self._bars: list[FileBar] = []

    @contextmanager
    def file(self, name: str) -> Iterator[FileBar]:
        """A bar for one month while it is worked on; counts it as done afterwards."""
        shown = FileBar(name)
        self._bars.append(shown)
        try:
            yield shown
        finally:
            self._bars.remove(shown)
            self._done += 1

    async def run(self) -> None:
        """Draw until cancelled, then leave the terminal clean."""
        if not self._stream.isatty():
            return
        try:
            while True:
                await asyncio.to_thread(self._draw)
                await asyncio.sleep(_REDRAW_S)
        finally:
            self._write(_CLEAR)

    def lines(self) -> list[str]:
        """What is drawn, without control characters."""
        ratio = self._done / self._total if self._total else 1.0
        elapsed_s = int(self._monotonic() - self._started_s)
        every = f"{bar(ratio)} {ratio:4.0%}  {self._done} of {self._total} months, {elapsed_s} s"
        return [*(shown.text() for shown in list(self._bars)), every]

    def _draw(self) -> None:
        """Draw below an empty line and go back to it: a log line finds a place of its own there."""
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in self.lines()]
        self._write(_CLEAR + "\n" + "\n".join(lines) + f"\r\x1b[{len(lines)}A")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def bar(ratio: float) -> str:
    """``[######------]``."""
    filled = round(min(max(ratio, 0.0), 1.0) * _BAR_CELLS)
    return f"[{'#' * filled}{'-' * (_BAR_CELLS - filled)}]"
