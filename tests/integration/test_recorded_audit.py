"""Recorded from the exchange, read, audited, certified: and it adds up to the official klines."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from audit.certificate import Status
from audit.check_completeness import CompletenessReport, check_completeness
from audit.check_stream import check_stream
from binance_api.rest import RestClient, RestSettings
from lake import gaps, read
from lake.paths import LakePaths
from simulator.faults import FaultKind, FaultPlan
from simulator.settings import SimulatorSettings
from tests.integration.conftest import RECORDING, MarketOf
from tests.integration.live_parity import UNLIMITED_WEIGHT, serving
from tests.integration.recorder_runs import (
    SYMBOLS,
    TRADE_COLUMNS,
    Sent,
    record_through,
    recording_run,
    run_settings,
    sent_in,
    until_whole,
)
from tests.lake_months import archive

LATER_MS = 1_725_148_800_000  # September 2024
COMPLETE_MINUTES = 7  # 23:58 to 00:04, of the eight that were recorded


@pytest.fixture
def paths(data_dir: Path) -> LakePaths:
    return LakePaths.of(data_dir)


def store_klines(paths: LakePaths, recordings_dir: Path) -> None:
    for symbol in SYMBOLS:
        with gzip.open(recordings_dir / "klines" / f"{symbol}-1m-2024-07.csv.gz", "rt") as file:
            archive(paths, "klines", file.read().splitlines(), symbol=symbol)


def completeness(paths: LakePaths, *, rest_url: str = "http://127.0.0.1:9") -> CompletenessReport:
    async def go() -> CompletenessReport:
        settings = RestSettings(base_url=rest_url, weight_limit=UNLIMITED_WEIGHT, max_attempts=1)
        async with RestClient(settings) as rest:
            return await check_completeness(paths, SYMBOLS, rest)

    return asyncio.run(go())


def assert_reads_as_sent(data_dir: Path, sent: Sent) -> None:
    """Every trade once, in order, exact."""
    for symbol in SYMBOLS:
        table = read("trades", symbol, data_dir=data_dir, columns=["agg_trade_id", *TRADE_COLUMNS])
        rows = {row.pop("agg_trade_id"): tuple(row.values()) for row in table.to_pylist()}
        wanted = {number: row for (name, number), row in sent.trades.items() if name == symbol}
        assert list(rows) == sorted(wanted)
        assert rows == wanted


def test_a_recording_reads_as_it_was_sent_and_adds_up_to_the_official_klines(
    recordings_dir: Path, paths: LakePaths, data_dir: Path
) -> None:
    sent = sent_in(recordings_dir / RECORDING)
    record_through(recordings_dir / RECORDING, paths, sent, speed=0)
    assert_reads_as_sent(data_dir, sent)
    store_klines(paths, recordings_dir)
    report = completeness(paths)
    for found, missing_bars in zip(report.symbols, (0, 4_500), strict=True):
        (month,) = found.months
        assert (month.missing_ids, month.duplicated_ids, month.disordered_ids) == (0, 0, 0)
        assert (month.compared_bars, month.differing_bars) == (COMPLETE_MINUTES, 0)
        assert (month.missing_minutes, month.missing_klines) == (0, missing_bars)
        assert [hole.kind for hole in found.holes] == ["klines"] * (missing_bars // 1_500)
        recorded = [hour for hour in found.certificate if "trades" in hour.rows]
        assert [hour.status for hour in recorded] == [Status.WHOLE, Status.WHOLE]
    stream = check_stream(paths, SYMBOLS)
    assert stream.has_holes is False
    for symbol in stream.symbols:
        assert sum(hour.trades_found for hour in symbol.hours) == sum(
            name == symbol.symbol for name, _ in sent.trades
        )
        assert all(hour.chain_breaks == 0 and hour.trade_lag for hour in symbol.hours)


def test_losses_are_certified_as_repaired_or_holed_with_their_cause(
    market_of: MarketOf, paths: LakePaths, data_dir: Path
) -> None:
    market = market_of("recorded")
    sent = sent_in(market.recording)
    kinds = [FaultKind.DISCONNECT, FaultKind.MISSING]
    plan = FaultPlan.random(
        3, market.length_ms, kinds, mean_interval_ms=5_000, quiet_tail_ms=20_000
    )
    record_through(market.recording, paths, sent, faults=plan)
    assert_reads_as_sent(data_dir, sent)
    report = completeness(paths)
    assert report.has_holes is False
    assert any(
        hour.status is Status.REPAIRED and hour.repaired_from == ["rest"]
        for found in report.symbols
        for hour in found.certificate
    )
    stream = check_stream(paths, SYMBOLS)
    lost = gaps(kind="depth", data_dir=data_dir)
    assert lost
    assert stream.has_holes is True
    for symbol in stream.symbols:
        assert {hole.kind for hole in symbol.holes} == {"depth"}
        assert {hole.cause for hole in symbol.holes} <= {gap.cause for gap in lost}


def test_stored_trades_are_compared_with_what_rest_still_has(
    market_of: MarketOf, paths: LakePaths
) -> None:
    market = market_of("recorded")
    sent = sent_in(market.recording)

    async def go() -> CompletenessReport:
        async with serving(SimulatorSettings(recording=market.recording, speed=0)) as exchange:
            async with recording_run(exchange, paths, run_settings(exchange)):
                await until_whole(paths, sent.trades)
            settings = RestSettings(base_url=exchange.rest_url, weight_limit=UNLIMITED_WEIGHT)
            async with RestClient(settings) as rest:
                return await check_completeness(paths, SYMBOLS, rest)

    for found in asyncio.run(go()).symbols:
        assert found.rest is not None
        assert found.rest.compared > 0
        assert (found.rest.missing, found.rest.differing, found.rest.note) == (0, 0, None)
