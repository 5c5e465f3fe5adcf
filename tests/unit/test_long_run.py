"""One heap for all threads, where the C library would give each its own."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings
from domain.errors import ConfigError
from market_orchestrator.market_orchestrator import EnhancedMarketBot

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
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment,
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no heap per thread")
def test_threads_share_one_heap() -> None:
    assert _heaps(prepared=False) > 1
    assert _heaps(prepared=True) == 1


def test_a_live_run_prepares_its_process(tmp_path: Path) -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)
    nobody = "http://127.0.0.1:9"
    settings = Settings(data_dir=tmp_path, model_dir=tmp_path / "none", binance_rest_url=nobody)
    try:
        with pytest.raises(ConfigError):  # at the model, before anything is opened
            asyncio.run(EnhancedMarketBot(settings).run())
        assert gc.get_threshold() == (2_000, 5, 800)
        assert sys.getswitchinterval() < 0.001
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
