"""``ingest`` and ``curate`` on the command line, and every documented example as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import main
from command_line.curate import VERB as CURATE
from command_line.ingest import VERB as INGEST
from domain.market import Market
from lake.signal_store import signal_store
from simulator.ai_script import Script, parse_script
from simulator.ai_server import ScriptedAI
from simulator.candle_table import CandleTable
from simulator.faults import FaultPlan
from simulator.rest_faults import RestFault
from simulator.server import SimulatedExchange, SimulatorSettings
from tests.architecture.test_reference import section
from tests.kline_samples import DAY_MS, MONDAY_MS, candle_table

TWO = ("BTCUSDT", "ETHUSDT")
HEALTH_EVENT = 'last_event_timestamp_seconds{topic="health"}'


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable and no ``.env`` of this machine; the working directory is ``tmp_path``."""


@contextlib.contextmanager
def served(table: CandleTable, market: Market = Market.UM, **options: Any) -> Iterator[str]:
    """The REST address of an exchange in a thread of its own."""
    options = {"start_ms": table.end_ms, **options}
    settings = SimulatorSettings(candles=table, symbols=table.symbols, market=market, **options)
    with in_a_thread(lambda: SimulatedExchange(settings)) as exchange:
        yield exchange.rest_url


@contextlib.contextmanager
def models_served() -> Iterator[dict[str, str]]:
    """Addresses of the AI providers: the first is limited, the second answers."""
    script = Script(parse_script("groq=rate_limited:600;dashscope=ok"))
    with in_a_thread(lambda: ScriptedAI(script)) as server:
        yield server.urls


@contextlib.contextmanager
def in_a_thread(make: Callable[[], Any]) -> Iterator[Any]:
    """A server in a thread of its own."""
    ready: dict[str, Any] = {}
    is_ready = threading.Event()

    async def serve() -> None:
        async with make() as server:
            ready["stop"] = stop = asyncio.Event()
            ready["loop"], ready["server"] = asyncio.get_running_loop(), server
            is_ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_ready.wait(60)
        yield ready["server"]
    finally:
        ready["loop"].call_soon_threadsafe(ready["stop"].set)
        thread.join(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "7m"], "--interval: no interval '7m'"),
        (["--interval", ""], "--interval: no interval ''"),
        (["--from", "soon"], "--from: 'soon' is no time"),
        (["--to", "2024-13-01"], "--to: '2024-13-01' is no time"),
        (["--from", "2024-07-02", "--to", "2024-07-01"], "the end must lie after the start"),
        (["--from", "2024-07-02", "--days", "3"], "exclude each other"),
        (["--days", "0"], "must be more than 0"),
        (["--days", "nan"], "must be more than 0"),
        (["--schedule", "--from", "2024-07-01"], "--schedule: goes with --interval and --days"),
        (["--recommendation-update-time", "25:00"], "RECOMMENDATION_UPDATE_TIME"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main.main(["ingest", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_an_unknown_symbol_is_exit_code_2(capsys):
    with served(candle_table(TWO, 96)) as url:
        given = ["ingest", "--symbols", "NOSUCHUSDT", "--binance-rest-url", url]
        assert main.main(given) == 2
        said = capsys.readouterr().err
        assert main.main([*given, "--schedule", "--http-port", "off", "--log-level", "ERROR"]) == 2
    wanted = "error: SYMBOLS (--symbols): NOSUCHUSDT is not known to the exchange (um market)\n"
    assert said == wanted
    assert capsys.readouterr().err == wanted


def test_without_arguments_six_timeframes_of_two_symbols_and_a_second_run_finds_nothing(
    monkeypatch, capsys
):
    with served(candle_table(TWO, 96 * 10)) as url:
        monkeypatch.setenv("BINANCE_REST_URL", url)
        monkeypatch.setenv("LOG_LEVEL", "ERROR")
        assert main.main(["ingest"]) == 0
        rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
        assert {name: rows[name][0] for name in ("15m", "30m", "1h", "4h", "1d")} == {
            "15m": "1,344",
            "30m": "672",
            "1h": "336",
            "4h": "84",
            "1d": "14",
        }
        assert main.main(["curate", "--recommend"]) == 0
        assert "1h: 336 rows in 7 files of BTCUSDT, ETHUSDT" in capsys.readouterr().out
        assert main.main(["ingest"]) == 0
        assert "15m               0         0        0       0" in capsys.readouterr().out
    assert (Path("data") / "curated" / "1d_curated_20240710.parquet").exists()


def test_gaps_are_named_and_what_the_exchange_got_since_is_asked_for_with_again(capsys):
    table = candle_table(("BTCUSDT",), 96 * 10)
    whole = table.rows("BTCUSDT")
    holes = (whole["open_time_ms"] >= MONDAY_MS + DAY_MS) & (
        whole["open_time_ms"] < MONDAY_MS + DAY_MS + 8 * 900_000
    )
    table = CandleTable({"BTCUSDT": (whole[~holes], table.spec("BTCUSDT"))}, "15m")
    with served(table) as url:
        given = ["ingest", "--symbols", "BTCUSDT", "--interval", "15m", "--days", "10"]
        given += ["--binance-rest-url", url, "--log-level", "ERROR"]
        assert main.main(given) == 0
        line = "gap: BTCUSDT 15m 8 bars from 2024-07-02 00:00; the exchange does not have them"
        assert line in capsys.readouterr().out
        table.add("BTCUSDT", whole[holes])
        assert main.main([*given, "--again"]) == 0
        shown = capsys.readouterr().out
    assert "gap:" not in shown
    assert "15m               8         1        0       0" in shown


def test_every_example_of_the_verbs_runs_as_it_stands(monkeypatch, capsys):
    examples = [line for verb in (INGEST, CURATE) for line in verb.examples]
    with (
        served(candle_table(TWO, 96 * 38, start_ms=1_704_067_200_000)) as um,
        served(candle_table(TWO, 1_440 * 2, "1m"), Market.SPOT) as spot,
    ):
        monkeypatch.setenv("BINANCE_REST_URL", um)
        monkeypatch.setenv("BINANCE_SPOT_REST_URL", spot)
        monkeypatch.setenv("LOG_LEVEL", "ERROR")
        for example in examples:
            program, script, *arguments = shlex.split(example)
            assert (program, script) == ("python", "main.py")
            if "--schedule" not in arguments:  # runs until stopped: see below
                assert main.main(arguments) == 0, example
    assert capsys.readouterr().out.count("interval ") == 3


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_every_python_example_of_the_reference_runs_as_it_stands(repository, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", section(repository, "Klines"), re.DOTALL)
    assert len(blocks) == 3
    with served(candle_table(TWO, 96 * 10, start_ms=_ten_days_ago_ms())) as url:
        monkeypatch.setenv("BINANCE_REST_URL", url)
        for block in blocks:
            exec(compile(block, "reference.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert len(list(Path("data/raw/1h").iterdir())) >= 14
    assert len(list(Path("data/curated").glob("1h_curated_*.parquet"))) >= 7
    assert "1h: " in capsys.readouterr().out


def test_ctrl_c_during_a_ban_ends_at_once_with_exit_code_0(repository, tmp_path):
    plan = FaultPlan(rest=(RestFault(endpoint="klines", mode="418", after=4, wait_s=3_600),))
    with served(candle_table(TWO, 96 * 10), faults=plan) as url:
        code, log = _interrupted(repository, tmp_path, url, [], "ingestion.waiting")
    assert code == 0, log
    assert "Traceback" not in log


@pytest.mark.long  # its parts have quick tests
def test_the_schedule_runs_until_stopped_and_goes_on_where_it_stood(repository, tmp_path):
    table = candle_table(TWO, 96 * 10)
    with served(table, start_ms=table.end_ms + 60_000) as url:  # minutes before the next candle
        code, log = _interrupted(repository, tmp_path, url, ["--schedule"], "schedule.waiting")
        assert code == 0, log
        assert (tmp_path / "data" / "schedule.json").exists()
        assert list((tmp_path / "data" / "curated").glob("15m_curated_*.parquet"))
        code, log = _interrupted(repository, tmp_path, url, ["--schedule"], "schedule.waiting")
        assert code == 0
        assert "schedule.run" not in log


@pytest.mark.long  # a process that ingests, curates, asks and serves
def test_the_schedule_serves_metrics_and_asks_the_models_for_the_day(
    repository, tmp_path, monkeypatch
):
    port = free_port()
    table = candle_table(TWO, 96 * 40)
    is_quiet = {"start_ms": table.end_ms + 60_000}  # minutes before the next candle
    with served(table, **is_quiet) as url, models_served() as addresses:
        variables = {"GROQ_API_KEY": "k", "DASHSCOPE_API_KEY": "k", "HTTP_PORT": str(port)}
        variables |= {f"{name.upper()}_BASE_URL": found for name, found in addresses.items()}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        seen: dict[str, str] = {}
        code, log = _interrupted(
            repository,
            tmp_path,
            url,
            ["--schedule", "--interval", "1h,4h,1d"],
            "schedule.waiting",
            before_the_end=lambda: seen.update(_pages(port)),
        )
    assert code == 0, log
    signals = signal_store(tmp_path / "data" / "signals").read_rows(TWO)
    assert {(s.symbol, s.source) for s in signals} == {
        (symbol, source) for symbol in TWO for source in ("rules:daily", "dashscope:daily")
    }
    assert {s.horizon_s for s in signals} == {86_400}
    assert 'source="dashscope:daily"' in seen["metrics"]
    assert "orderflow_schedule_runs_total 1.0" in seen["metrics"]
    assert 'status="200"}' in seen["metrics"]
    assert '"schedule"' in seen["readyz"]
    assert HEALTH_EVENT in seen["metrics"]


def _pages(port: int) -> dict[str, str]:
    """What the process serves, once it has told of its signals and of its health."""
    deadline = time.monotonic() + 60
    found: dict[str, str] = {}
    wanted = ("signals_total{", HEALTH_EVENT)
    while not all(text in found.get("metrics", "") for text in wanted):
        if time.monotonic() > deadline:
            break
        for page in ("metrics", "readyz"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as reply:
                found[page] = reply.read().decode()
    return found


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _interrupted(
    repository: Path,
    folder: Path,
    url: str,
    arguments: list[str],
    event: str,
    *,
    before_the_end: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """Start ``ingest``, interrupt it when its log tells ``event``: exit code and log."""
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(repository / "main.py"), "ingest", *arguments],
            cwd=folder,
            env=_environment(repository, url),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 120
            while event not in (folder / "log.txt").read_text():
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline, (folder / "log.txt").read_text()
                time.sleep(0.05)
            before_the_end()
            process.send_signal(signal.SIGINT)
            return process.wait(60), (folder / "log.txt").read_text()
        finally:
            process.kill()
            process.wait(10)


def _environment(repository: Path, url: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository), "BINANCE_REST_URL": url}


def _ten_days_ago_ms() -> int:
    today_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    return today_ms - 9 * DAY_MS
