"""Scripts that use the connector, each in a process of its own: how they are interrupted and end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from aiohttp import web

from tests.connector_exchange import (
    MINUTE_MS,
    START_MS,
    ScriptedExchange,
    config_of,
    minute_bars,
    simulated,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

HEAD = "from binance_api import BinanceConnector\nimport os, sys, threading, time\n"


@pytest.fixture
def script(tmp_path: Path, repository: Path):
    """Start a script; its standard output and errors are one pipe."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str, folder: Path = repository) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("BINANCE_")}
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", HEAD + textwrap.dedent(text)],
            cwd=folder,
            env={**clean, "TMPDIR": str(tmp_path), "PYTHONPATH": str(repository)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], words: str) -> str:
    """Everything up to the line with ``words``."""
    lines = []
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"ended without {words!r}:\n{''.join(lines)}")


def test_ctrl_c_ends_the_wait_for_the_end_of_a_ban(script) -> None:
    start = START_MS - 3_000 * MINUTE_MS
    exchange = ScriptedExchange(minute_bars(start, 3_000), now_ms=START_MS)

    def refuse(query):
        if int(query.get("startTime", 0)) < start + 1_000 * MINUTE_MS:
            return None
        body = {"code": -1003, "msg": "Way too many requests"}
        return web.json_response(body, status=418, headers={"Retry-After": "7200"})

    exchange.refuse = refuse
    with exchange.serving():
        child = script(
            f"""
            conn = BinanceConnector({config_of(exchange)!r})
            try:
                conn.collect("BTCUSDT", "1m", {start}, {START_MS})
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            conn.close()
            print("threads", threading.active_count())
            """
        )
        told = read_until(child, "connector.waiting")
        assert re.search(r"until='?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", told)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)  # of the two hours it would take
    assert child.returncode == 0
    assert "interrupted" in out
    assert "threads 1" in out


def test_a_stream_keeps_the_process_alive_until_it_is_closed(script, tmp_path: Path) -> None:
    """Also after a lost connection: names are resolved though the main thread has ended."""
    lost = tmp_path / "lost"
    with simulated(start_ms=START_MS, speed=240.0) as exchange:
        config = {
            name: url.replace("127.0.0.1", "localhost") for name, url in config_of(exchange).items()
        }
        child = script(
            f"""
            conn = BinanceConnector({config!r}, mode="streaming")
            opens = []
            def on_new_data(frame):
                opens.extend(frame["timestamp"].astype("int64").tolist())
                is_alone = not threading.main_thread().is_alive()
                print("alone", is_alone, "rows", len(opens), flush=True)
                if len(opens) >= 8 and is_alone and os.path.exists({str(lost)!r}):
                    steps = {{b - a for a, b in zip(opens, opens[1:])}}
                    print("steps", steps, "gaps", bool(frame["gap"].any()), flush=True)
                    conn.close()
            conn.on_new_data(on_new_data)
            conn.collect("BTCUSDT", "1m", poll_interval_s=60)
            print("collect returned", flush=True)
            """
        )
        read_until(child, "rows ")
        for client in exchange._hub.clients:
            if client.combined and "btcusdt@kline_1m" in client.subscriptions:
                client.close("abort", "test")
        lost.touch()
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out
    assert "disconnected" in out
    assert "steps {60000} gaps False" in out
    assert "alone True" in out


def test_a_script_that_forgets_to_close_a_batch_connector_ends(script) -> None:
    with simulated(started=False, start_ms=START_MS) as exchange:
        child = script(
            f"""
            conn = BinanceConnector({config_of(exchange)!r})
            print("rows", len(conn.collect("BTCUSDT", "1m", limit=3)))
            """
        )
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out
    assert "rows 3" in out


def test_ctrl_c_ends_a_script_that_only_streams(script) -> None:
    with simulated(start_ms=START_MS, speed=240.0) as exchange:
        child = script(
            f"""
            conn = BinanceConnector({config_of(exchange)!r}, mode="streaming")
            conn.on_new_data(lambda frame: print("rows", len(frame), flush=True))
            conn.collect("BTCUSDT", "1m")
            """
        )
        read_until(child, "rows ")
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode is not None


def test_importing_the_connector_loads_neither_pandas_nor_sockets(script, repository: Path) -> None:
    child = script(
        """
        import binance_api, binance_api.endpoints
        heavy = {"pandas", "aiohttp", "picows", "config"}
        print("loaded", sorted(heavy & set(sys.modules)))
        """.replace("import binance_api,", "import binance_api,", 1)
    )
    out, _ = child.communicate(timeout=60)
    assert "pandas" not in out.partition("loaded")[2]
