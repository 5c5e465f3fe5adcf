"""Keys of the terminal: bytes → names; and the terminal's mode while they are read one by one.

Ctrl-C stays a signal. Ctrl-Z does not stop the process: a bot must not be suspended by a slip.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

_NAMED = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
    b"\t": "tab",
    b"\x0c": "redraw",
    b"\xe0K": "left",  # Windows sends a prefix and a letter
    b"\xe0M": "right",
    b"\xe0H": "up",
    b"\xe0P": "down",
}
_POLL_S = 0.1
_READ_BYTES = 256
_CLOSE_TIMEOUT_S = 1.0


def keys_in(data: bytes) -> list[str]:
    """The keys in what a terminal sent; what is no known key is left out."""
    found = []
    while data:
        length = next((len(code) for code in _NAMED if data.startswith(code)), 0)
        if length:
            found.append(_NAMED[data[:length]])
        elif data[0] == 0x1B:
            length = _escape_length(data)
        else:
            length = 1
            if 0x20 <= data[0] < 0x7F:
                found.append(chr(data[0]))
        data = data[length:]
    return found


def _escape_length(data: bytes) -> int:
    """Bytes of an unknown escape sequence: up to its final letter."""
    if data[1:2] not in {b"[", b"O"}:
        return min(2, len(data))
    for place, byte in enumerate(data[2:], 3):
        if 0x40 <= byte <= 0x7E:
            return place
    return len(data)


@contextlib.contextmanager
def reading_keys(stream: TextIO, on_key: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_key`` on the running loop for each key; nothing where ``stream`` is no terminal."""
    if not stream.isatty():
        yield
    elif sys.platform == "win32":
        task = asyncio.get_running_loop().create_task(_poll_console(on_key), name="keys")
        try:
            yield
        finally:
            task.cancel()
    elif not _is_in_foreground(stream.fileno()):  # started with &: the keys are the shell's
        yield
    else:
        with _one_by_one(stream.fileno()), _reader(stream.fileno(), on_key):
            yield


def _is_in_foreground(descriptor: int) -> bool:
    """Whether this process may read from its terminal and change it without being stopped."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # not the controlling terminal: nobody would stop us
        return True


@contextlib.contextmanager
def _reader(descriptor: int, on_key: Callable[[str], None]) -> Iterator[None]:
    """A thread reads: uvloop's own reader makes the terminal non-blocking, which output and shell share."""
    loop = asyncio.get_running_loop()
    woken, wake = os.pipe()

    def on_data(data: bytes) -> None:
        for key in keys_in(data):
            on_key(key)

    def read_on() -> None:
        try:
            while woken not in select.select([descriptor, woken], [], [])[0]:
                if not (data := os.read(descriptor, _READ_BYTES)):
                    return
                loop.call_soon_threadsafe(on_data, data)
        except (OSError, RuntimeError):  # the terminal is gone; the loop is
            return
        finally:
            os.close(woken)

    thread = threading.Thread(target=read_on, name="keys", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(wake)
        thread.join(_CLOSE_TIMEOUT_S)


@contextlib.contextmanager
def _one_by_one(descriptor: int) -> Iterator[None]:
    """The terminal hands over each key at once and does not echo it; put back whatever happens."""
    import termios  # noqa: PLC0415 - not on Windows

    try:
        before = termios.tcgetattr(descriptor)
    except termios.error:
        yield
        return
    changed = [*before[:6], list(before[6])]
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    changed[6][termios.VSUSP] = os.fpathconf(descriptor, "PC_VDISABLE").to_bytes(1, "little")

    def put_back() -> None:
        _RESTORERS.discard(put_back)
        atexit.unregister(put_back)
        if _is_in_foreground(descriptor):
            with contextlib.suppress(termios.error):
                termios.tcsetattr(descriptor, termios.TCSANOW, before)

    _RESTORERS.add(put_back)
    atexit.register(put_back)
    with contextlib.suppress(termios.error):
        termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        put_back()


_RESTORERS: set[Callable[[], None]] = set()


def restore_keys() -> None:
    """Put the terminal's mode back before an end that runs no ``finally``."""
    for put_back in list(_RESTORERS):
        put_back()


async def _poll_console(on_key: Callable[[str], None]) -> None:
    import msvcrt  # noqa: PLC0415 - Windows only

    while True:
        while msvcrt.kbhit():  # type: ignore[attr-defined]
            data = msvcrt.getch()  # type: ignore[attr-defined]
            if data in {b"\x00", b"\xe0"}:
                data = b"\xe0" + msvcrt.getch()  # type: ignore[attr-defined]
            for key in keys_in(data):
                on_key(key)
        await asyncio.sleep(_POLL_S)
