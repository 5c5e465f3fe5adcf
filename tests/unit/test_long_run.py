"""One heap for all threads, whatever the C library."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNT_HEAPS = """
import ctypes, threading
from monitoring.long_run import prepare_process
if {prepared}:
    prepare_process(2_000, 10, 400)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
meet = threading.Barrier(4)
def take():
    block = libc.malloc(5_000)
    meet.wait(30.0)
    libc.free(block)
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
handle = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, handle)
libc.fclose(handle)
"""


def _heaps(*, prepared: bool) -> int:
    code = _COUNT_HEAPS.format(prepared=prepared)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_threads_share_one_heap() -> None:
    several = _heaps(prepared=False)
    if several < 2:
        pytest.skip("this C library has one heap anyway")
    assert _heaps(prepared=True) == 1
