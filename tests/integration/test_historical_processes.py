"""``python main.py history`` as a process: killed, stopped, misused."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys

import pytest

import main
from collectors.historical import months_between
from lake.historical_files import KINDS, check_month, months_of
from lake.paths import LakePaths
from simulator.faults import FaultPlan
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings
from simulator.vision_faults import VisionFault, VisionFaultKind, random_vision_faults
from tests.integration.live_processes import Program
from tests.vision_archives import SYMBOL, at_ms, stored, table_of_trades, true_trades

NOW_MS = at_ms(2026, 1, 10)
TWO_YEARS = months_between("2024-01", "2025-12", NOW_MS)


async def history(folder, exchange, *more, data="data") -> Program:
    arguments = ("history", "--symbol", SYMBOL.lower(), "--data-dir", folder / data, *more)
    options = ("--binance-vision-url", exchange.vision_url, "--log-level", "WARNING")
    return await asyncio.to_thread(Program, folder, *arguments, *options)


async def to_the_end(program: Program) -> int:
    return await asyncio.to_thread(program.wait, 600.0)


def archive(trades, faults=()):
    settings = SimulatorSettings(
        archive=trades, start_ms=NOW_MS, faults=FaultPlan(vision=tuple(faults))
    )
    return SimulatedExchange(settings)


@pytest.mark.long
def test_two_years_with_every_fault_killed_ten_times_equal_the_clean_ones(tmp_path):
    seed = 1
    trades = table_of_trades((2024, 1, 1), (2026, 1, 2), per_day=60, seed=seed)
    faults = random_vision_faults(seed, TWO_YEARS)
    assert {fault.kind for fault in faults} == set(VisionFaultKind)
    source = random.Random(seed)
    span = ("--from", TWO_YEARS[0], "--to", TWO_YEARS[-1])
    paths = LakePaths.of(tmp_path / "data")
    clean = LakePaths.of(tmp_path / "clean")

    async def scenario():
        async with archive(trades) as exchange:
            assert await to_the_end(await history(tmp_path, exchange, *span, data="clean")) == 0
        async with archive(trades, faults) as exchange:
            for _ in range(10):
                program = await history(tmp_path, exchange, *span)
                await asyncio.sleep(source.uniform(0.8, 2.5))
                await asyncio.to_thread(program.kill)
                for path in (paths.raw / "historical").glob(f"{SYMBOL}/*.parquet"):
                    check_month(path)
            assert await to_the_end(await history(tmp_path, exchange, *span)) == 0
            # An archive may have been replaced after it was had.
            last = await history(tmp_path, exchange, *span, "--verify")
            assert await to_the_end(last) == 0

    asyncio.run(scenario())
    for kind in KINDS:
        assert months_of(paths, SYMBOL, kind) == list(TWO_YEARS)
        for month in TWO_YEARS:
            assert stored(paths, month, kind).equals(stored(clean, month, kind)), (kind, month)
    for month in TWO_YEARS:
        assert stored(clean, month).equals(true_trades(trades, month)), month
    assert list((paths.raw / "historical" / ".work").iterdir()) == []


def test_a_signal_stops_it_at_once_and_the_next_run_goes_on(tmp_path):
    trades = table_of_trades((2025, 10, 1), (2025, 12, 1))
    stall = VisionFault(kind=VisionFaultKind.STALL, delay_ms=60_000, period="2025-10")
    span = ("--from", "2025-10", "--to", "2025-11", "--kinds", "aggTrades")
    paths = LakePaths.of(tmp_path / "data")

    async def scenario():
        async with archive(trades, [stall]) as exchange:
            program = await history(tmp_path, exchange, *span)
            while exchange.statistics()["vision_bytes"] == 0:
                await asyncio.sleep(0.02)
            program.send(signal.SIGINT)
            assert await to_the_end(program) == 0
            assert "2025-10" not in months_of(paths, SYMBOL, "aggTrades")
            assert await to_the_end(await history(tmp_path, exchange, *span)) == 0

    asyncio.run(scenario())
    for month in ("2025-10", "2025-11"):
        assert stored(paths, month).equals(true_trades(trades, month))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--from", "2024-13"], "--from"),
        (["--to", "2999-01"], "--to: 2999-01 lies in the future"),
        (["--kinds", "trades"], "--kinds: 'trades' is none of aggTrades, klines"),
        (["--parallel", "0"], "--parallel"),
        (["--symbol", "no/symbol"], "SYMBOLS (--symbols)"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments, text, capsys, clean_environment, tmp_path
):
    assert main.main(["history", *arguments, "--data-dir", str(tmp_path / "data")]) == 2
    captured = capsys.readouterr().err.splitlines()
    assert len(captured) == 1
    assert text in captured[0]


def test_the_module_is_the_verb(repository):
    done = subprocess.run(
        [sys.executable, "-m", "collectors.historical", "--help"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--from YYYY-MM" in done.stdout
