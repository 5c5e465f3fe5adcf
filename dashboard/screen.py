"""The terminal: frames are drawn and written by a thread that keeps only the newest one.

Consumes scenes, produces an alternate screen of which only changed lines are sent. ``show`` never
waits; a terminal that takes nothing stops the thread alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Self, TextIO

import structlog
from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from dashboard.keys import restore_keys
from dashboard.layout import frame
from dashboard.scene import Scene

log = structlog.get_logger()

THREAD_NAME = "view"
CLOSE_TIMEOUT_S = 1.0
SMALLEST = (20, 4)  # cells and lines; below, the picture is cut
UNKNOWN = (80, 24)  # of a terminal that does not know its size
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l"  # alternate screen, no cursor, no wrapping at the edge
_LEAVE = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
_CLEAR = "\x1b[2J"
_COLOURS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}

type MakeScene = Callable[[], Scene]


class Screen:
    """Draws the newest scene on a terminal from a thread of its own.

    Args:
        stream: standard output; must be a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._painter = Painter(Console(file=stream, legacy_windows=False, force_terminal=True))
        self._changed = threading.Condition()
        self._newest: MakeScene | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._draw_all, name=THREAD_NAME, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def show(self, make_scene: MakeScene) -> None:
        """Make this the next scene drawn; one not drawn yet is replaced. It is made in the thread."""
        with self._changed:
            self._newest = make_scene
            self._changed.notify()

    def _draw_all(self) -> None:
        try:
            self._write(_ENTER)
            try:
                while (make_scene := self._next()) is not None:
                    size = os.get_terminal_size(self._descriptor)
                    text = self._painter.paint(make_scene(), size.columns, size.lines)
                    self._write(text.encode(self._encoding, "replace"))
            finally:
                self._write(_LEAVE)
        except OSError as error:  # the terminal is gone; the run goes on without it
            log.warning("view.terminal_lost", reason=str(error))
        except Exception:  # a view must not end a run
            log.exception("view.failed")

    def _next(self) -> MakeScene | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._newest is not None)
            make_scene, self._newest = self._newest, None
            return None if self._closing else make_scene

    def _write(self, data: bytes) -> None:
        if sys.platform == "win32":  # a console takes Unicode through its stream alone
            self._stream.buffer.write(data)
            self._stream.flush()
            return
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # whoever shares the terminal made it so
                select.select([], [self._descriptor], [])


class Painter:
    """Turns scenes into what a terminal must be sent, given what it was sent before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._colours = _COLOURS.get(console.color_system or "")
        self._drawn: object = None  # what the last picture was made from
        self._lines: list[str] = []
        self._size = (0, 0)
        self._redraws = 0

    def paint(self, scene: Scene, columns: int, rows: int) -> str:
        """Escape sequences and text that lead from the last picture to this one; maybe nothing."""
        known = (columns or UNKNOWN[0], rows or UNKNOWN[1])
        size = (max(known[0], SMALLEST[0]), max(known[1], SMALLEST[1]))
        made_from = (scene.state, scene.view, scene.banner, tuple(scene.problems), size)
        moment = scene.now_ns // 1_000_000_000
        if self._drawn is not None and self._is_same((moment, *made_from)):
            return ""
        self._drawn = (moment, *made_from)
        lines = [self._coded(text) for text in frame(scene, *size)]
        is_new = size != self._size or scene.view.redraws != self._redraws
        before = [] if is_new else self._lines
        self._lines, self._size, self._redraws = lines, size, scene.view.redraws
        changed = [
            f"\x1b[{number};1H{text}"
            for number, text in enumerate(lines, 1)
            if number > len(before) or before[number - 1] != text
        ]
        return (_CLEAR if is_new else "") + "".join(changed)

    def _is_same(self, made_from: tuple[object, ...]) -> bool:
        """By identity for the state, which is large and new whenever anything came."""
        before = self._drawn
        assert isinstance(before, tuple)  # noqa: S101 - set by paint alone
        return (
            before[0] == made_from[0] and before[1] is made_from[1] and before[2:] == made_from[2:]
        )

    def _coded(self, text: Text) -> str:
        coded = []
        for segment in text.render(self._console):
            style = segment.style
            coded.append(
                segment.text if style is None
                else style.render(segment.text, color_system=self._colours)
            )  # fmt: skip
        return "".join(coded)


def abandon_terminal(descriptor: int = 1) -> None:
    """Give the terminal back before an abrupt end, if a screen is in use. Never blocks."""
    restore_keys()
    if not any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        return
    with contextlib.suppress(OSError, ValueError):
        if sys.platform == "win32" or select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, _LEAVE)


def supports_view(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands escape sequences."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return not Console(file=stream).legacy_windows
