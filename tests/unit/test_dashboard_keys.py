"""Keys: what a terminal sends, and the mode it is left in."""

import asyncio
import os
import threading

import pytest

from dashboard.keys import keys_in, reading_keys, restore_keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"z", ["z"]),
        (b"\x1b[C\x1b[Dq", ["right", "left", "q"]),
        (b"\x1bOC\t\x0c", ["right", "tab", "redraw"]),
        (b"\x1b[200~12\x1b[15;2~3", ["1", "2", "3"]),  # unknown sequences are left out whole
        (b"\x1b", []),
        (b"\x1b[", []),
        ("é".encode(), []),
        (b"\xe0M", ["right"]),
    ],
)
def test_keys_in_what_a_terminal_sends(data: bytes, keys: list[str]) -> None:
    assert keys_in(data) == keys


def test_any_bytes_are_read_to_their_end() -> None:
    for first in range(256):
        for second in range(256):
            assert isinstance(keys_in(bytes([0x1B, first, second, 0x41])), list)


def test_keys_arrive_one_by_one_and_the_mode_is_put_back() -> None:
    termios = pytest.importorskip("termios", reason="no terminal modes here")
    ours, theirs = os.openpty()
    seen: list[str] = []

    async def work() -> None:
        with os.fdopen(theirs, "r", closefd=False) as stream, reading_keys(stream, seen.append):
            changed = termios.tcgetattr(theirs)
            assert not changed[3] & (termios.ICANON | termios.ECHO)
            assert changed[3] & termios.ISIG  # Ctrl-C stays a signal
            os.write(ours, b"n\x1b[C")
            async with asyncio.timeout(10):
                while len(seen) < 2:
                    await asyncio.sleep(0.01)

    before = termios.tcgetattr(theirs)
    try:
        asyncio.run(work())
        assert seen == ["n", "right"]
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_reading_keys_leaves_the_terminal_blocking_for_output_and_shell() -> None:
    uvloop = pytest.importorskip("uvloop", reason="the standard loop alone here")
    ours, theirs = os.openpty()
    seen: list[str] = []

    async def work() -> None:
        with os.fdopen(theirs, "r", closefd=False) as stream, reading_keys(stream, seen.append):
            os.write(ours, b"n")
            async with asyncio.timeout(10):
                while not seen:
                    await asyncio.sleep(0.01)
            assert os.get_blocking(theirs)

    try:
        uvloop.run(work())
        assert os.get_blocking(theirs)
        assert "keys" not in {thread.name for thread in threading.enumerate()}
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_mode_is_put_back_before_an_abrupt_end() -> None:
    termios = pytest.importorskip("termios", reason="no terminal modes here")
    ours, theirs = os.openpty()
    seen: list[str] = []

    async def work() -> None:
        with os.fdopen(theirs, "r", closefd=False) as stream, reading_keys(stream, seen.append):
            assert termios.tcgetattr(theirs) != before
            restore_keys()
            assert termios.tcgetattr(theirs) == before

    before = termios.tcgetattr(theirs)
    try:
        asyncio.run(work())
    finally:
        os.close(ours)
        os.close(theirs)


def test_input_that_is_no_terminal_gives_no_keys() -> None:
    reading, writing = os.pipe()
    seen: list[str] = []

    async def work() -> None:
        with os.fdopen(reading, "r", closefd=False) as stream, reading_keys(stream, seen.append):
            os.write(writing, b"q")
            await asyncio.sleep(0)

    try:
        asyncio.run(work())
        assert not seen
    finally:
        os.close(reading)
        os.close(writing)
