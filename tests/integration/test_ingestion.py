"""Candles from the simulated exchange over real sockets, into files: what users rely on."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import talib

from binance_api.errors import InvalidSymbol
from config import Settings
from domain.errors import FolderInUse
from domain.intervals import INTERVAL_MS, open_times_ms
from domain.market import Market
from ingestion import DataCuration, DataIngestion
from ingestion.ingest_run import IngestionSettings, Timing
from lake.kline_files import RAW_COLUMNS, read_curated, read_raw
from lake.lock import FolderLock
from simulator.candle_table import CandleTable
from simulator.faults import FaultPlan
from simulator.rest_faults import RestFault
from simulator.server import SimulatedExchange, SimulatorSettings
from tests.kline_samples import (
    DAY_MS,
    MONDAY_MS,
    candle_table,
    columns_of_rows,
    contents,
    spec_of,
    table_rows,
)

QUICK = IngestionSettings(again_after_s=0.01)
HOUR_MS = 3_600_000
SIX = ("15m", "30m", "1h", "4h", "1d", "1w")
Scenario = Callable[[SimulatedExchange, Settings], Awaitable[Any]]


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable and no ``.env`` of this machine."""


def serve(table: CandleTable, scenario: Scenario, data_dir: Path, **options: Any) -> Any:
    """Run a scenario against an exchange whose clock stands at the end of the table."""
    options = {"start_ms": table.end_ms, "symbols": table.symbols, **options}
    market = options.get("market", Market.UM)

    async def main() -> Any:
        async with SimulatedExchange(SimulatorSettings(candles=table, **options)) as exchange:
            url = "binance_rest_url" if market is Market.UM else "binance_spot_rest_url"
            settings = Settings(
                data_dir=data_dir,
                market=market,
                symbols=table.symbols,
                **{url: exchange.rest_url},
            )
            return await scenario(exchange, settings)

    return asyncio.run(main())


def stored(settings: Settings, symbol: str, interval: str) -> dict[str, np.ndarray]:
    end_ms = MONDAY_MS + 40 * DAY_MS
    columns, damaged = read_raw(settings.paths, symbol, interval, MONDAY_MS, end_ms)
    assert damaged == []
    return columns


def test_every_timeframe_is_stored_exactly_and_a_second_run_asks_and_writes_nothing(data_dir):
    table = candle_table(("BTCUSDT",), 96 * 21)

    async def scenario(exchange: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=QUICK)
        reports = await ingestion.ingest(SIX, days=21)
        assert [report.rows for report in reports] == [2_016, 1_008, 504, 126, 21, 3]
        assert all(report.gaps == () for report in reports)
        expected = columns_of_rows(table.rows("BTCUSDT"), "15m")
        found = stored(settings, "BTCUSDT", "15m")
        for name in RAW_COLUMNS:
            np.testing.assert_array_equal(found[name], expected[name])
        assert stored(settings, "BTCUSDT", "1w")["open_time_ms"].tolist() == [
            MONDAY_MS + week * 7 * DAY_MS for week in range(3)
        ]
        before = contents(settings.paths.raw)
        again = await ingestion.ingest(SIX, days=21)
        assert sum(report.rows + report.requests for report in again) == 0
        assert contents(settings.paths.raw) == before

    serve(table, scenario, data_dir)


def test_the_open_candle_is_left_out_whatever_its_place_in_the_reply(data_dir):
    table = candle_table(("BTCUSDT",), 96)

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("1h")
        assert (report.rows, report.gaps) == (10, ())
        assert stored(settings, "BTCUSDT", "1h")["open_time_ms"][-1] == MONDAY_MS + 9 * HOUR_MS

    serve(table, scenario, data_dir, start_ms=MONDAY_MS + 10 * HOUR_MS + 1_900_000)


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2024-07-02", "2024-07-03", 24),
        ("2024-07-02T06:00", "2024-07-02T12:00Z", 6),
        ("2024-07-02 06:00:00+02:00", dt.datetime(2024, 7, 2, 12), 8),  # noqa: DTZ001
        ("2024-07", dt.date(2024, 7, 3), 48),
        (dt.datetime(2024, 7, 3, tzinfo=dt.UTC), None, 24),
        ("1999-12-31", "2024-07-02", 24),
    ],
)
def test_times_may_be_written_in_any_iso_form(data_dir, start, end, rows):
    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("1h", start, end)
        assert (report.rows, report.gaps) == (rows, ())

    serve(candle_table(("BTCUSDT",), 96 * 3), scenario, data_dir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1h", "2024-07-02", "2024-07-01"), "the end must lie after the start"),
        (("1h", "2024-07-02", "2024-07-02"), "the end must lie after the start"),
        (("1h", "2030-01-01"), "the start lies in the future"),
        (("1h", "last week"), "is no time"),
        (("7m", "2024-07-01"), "unknown interval '7m'"),
    ],
)
def test_a_range_or_interval_that_cannot_be_is_refused(data_dir, arguments, message):
    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        with pytest.raises(ValueError, match=message):
            await DataIngestion(settings).ingest_timeframe(*arguments)

    serve(candle_table(("BTCUSDT",), 96), scenario, data_dir)


def test_an_unknown_symbol_is_one_error_and_frees_the_folder(data_dir):
    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=QUICK)
        with pytest.raises(InvalidSymbol) as caught:
            await ingestion.ingest(SIX, symbols=["NOSUCHUSDT"])
        assert (caught.value.code, caught.value.exit_code) == (-1121, 2)
        assert (await ingestion.ingest_timeframe("1h")).rows == 24

    serve(candle_table(("BTCUSDT",), 96), scenario, data_dir)


def test_one_process_at_a_time_ingests_but_one_object_may_be_called_twice_at_once(data_dir):
    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        with FolderLock(settings.paths.root, "ingestion"), pytest.raises(FolderInUse):
            await DataIngestion(settings).ingest_timeframe("1h")
        ingestion = DataIngestion(settings, ingestion=QUICK)
        reports = await asyncio.gather(*map(ingestion.ingest_timeframe, ("1h", "4h")))
        assert [report.rows for report in reports] == [24, 6]

    serve(candle_table(("BTCUSDT",), 96), scenario, data_dir)


def test_a_listings_first_bar_and_silent_bars_are_no_gaps(data_dir):
    rows = table_rows(96, "15m")[40:]
    for name in ("volume", "taker_buy_volume", "fills", "quote_high", "quote_low"):
        rows[name][10:20] = 0
    table = CandleTable({"NEWUSDT": (rows, spec_of("NEWUSDT"))}, "15m")

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=QUICK)
        report = await ingestion.ingest_timeframe("15m", "2020-01-01")
        assert (report.rows, report.requests, report.gaps) == (56, 1, ())
        assert ingestion.check_gaps("15m", "2020-01-01", "2024-07-02") == []

    serve(table, scenario, data_dir)


def test_a_halted_market_is_told_apart_from_a_gap(data_dir):
    rows = table_rows(96, "15m")
    open_rows = rows[: 96 - 8]
    tables = {s: (open_rows, spec_of(s)) for s in ("HALTUSDT", "OPENUSDT")}
    table = CandleTable(tables, "15m")

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("15m")
        assert [(gap.symbol, gap.bar_count, gap.at_exchange) for gap in report.gaps] == [
            ("HALTUSDT", 8, True),
            ("OPENUSDT", 8, False),
        ]

    serve(table, scenario, data_dir, start_ms=MONDAY_MS + DAY_MS, halted=("HALTUSDT",))


def test_prices_with_eight_decimals_keep_them(data_dir):
    spec = spec_of("PEPEUSDT")
    rows = table_rows(24, "1h")
    for name in ("open", "high", "low", "close"):
        rows[name] = 1_234 + np.arange(24)
    exact = type(spec)(
        symbol="PEPEUSDT",
        price_decimals=8,
        tick_mantissa=1,
        quantity_decimals=2,
        step_mantissa=1,
    )
    table = CandleTable({"PEPEUSDT": (rows, exact)}, "1h")

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("1h")
        assert stored(settings, "PEPEUSDT", "1h")["close"].tolist() == [
            float(f"0.0000{1_234 + at}") for at in range(24)
        ]
        path = settings.paths.raw / "1h" / "PEPEUSDT_1h_20240701.parquet"
        assert path.parent.parent == data_dir / "spot" / "raw"
        assert path.exists()

    serve(table, scenario, data_dir, market=Market.SPOT)


@pytest.mark.parametrize("mode", ["empty", "short", "500", "html"])
def test_a_page_that_is_lost_cut_or_broken_is_asked_for_again(data_dir, mode):
    plan = FaultPlan(rest=(RestFault(endpoint="klines", mode=mode, after=2, count=1),))

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("15m", days=20)
        assert (report.rows, report.gaps) == (1_920, ())

    serve(candle_table(("BTCUSDT",), 96 * 20), scenario, data_dir, faults=plan)


def test_what_two_replies_lack_is_absent_if_old_and_still_missing_if_young(data_dir):
    one_at_a_time = IngestionSettings(again_after_s=0.0, concurrency=1, page_bars=96)
    plan = FaultPlan(
        rest=(
            RestFault(endpoint="klines", mode="empty", after=1, count=2),
            RestFault(endpoint="klines", mode="empty", after=4, count=2),
        )
    )

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=one_at_a_time)
        report = await ingestion.ingest_timeframe("15m", days=3)
        named = [
            ((g.start_ms - MONDAY_MS) // DAY_MS, g.bar_count, g.at_exchange) for g in report.gaps
        ]
        assert named == [(0, 96, True), (2, 96, False)]
        again = await ingestion.ingest_timeframe("15m", days=3)
        assert (again.rows, again.missing, again.absent) == (96, 0, 96)
        await ingestion.backfill("15m", report.gaps, ask_again=True)
        assert ingestion.check_gaps("15m", MONDAY_MS, MONDAY_MS + 3 * DAY_MS) == []

    serve(candle_table(("BTCUSDT",), 96 * 3), scenario, data_dir, faults=plan)


@pytest.mark.parametrize("mode", ["429", "418"])
def test_a_refusal_in_the_middle_of_a_backfill_is_waited_out_as_told(data_dir, mode):
    plan = FaultPlan(rest=(RestFault(endpoint="klines", mode=mode, after=3, wait_s=1),))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(seconds)

    async def scenario(exchange: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=QUICK, timing=Timing(sleep=sleep))
        with structlog.testing.capture_logs() as logs:
            report = await ingestion.ingest_timeframe("15m", days=30)
        assert (report.rows, report.gaps) == (2_880, ())
        told = [entry for entry in logs if entry["event"] == "ingestion.waiting"]
        if mode == "418":
            assert len(told) == 1  # six requests wait, one line says until when
            until = dt.datetime.strptime(told[0]["until"] + "+0000", "%Y-%m-%d %H:%M:%S UTC%z")
            assert abs((until - dt.datetime.now(dt.UTC)).total_seconds()) < 30
        refused = [int(exchange.statistics().get(f"status_{n}") or 0) for n in (429, 418)]
        assert 1 <= sum(refused) <= 6  # only what was under way when it came
        assert refused[mode == "418"] > 0

    serve(candle_table(("BTCUSDT",), 96 * 30), scenario, data_dir, faults=plan)


def test_a_ban_met_by_the_first_request_is_waited_out(data_dir):
    plan = FaultPlan(rest=(RestFault(endpoint="time", mode="418", wait_s=1),))

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("1h")
        assert report.rows == 24

    serve(candle_table(("BTCUSDT",), 96), scenario, data_dir, faults=plan)


def test_cancelling_during_a_ban_ends_at_once_and_the_next_run_goes_on(data_dir):
    plan = FaultPlan(rest=(RestFault(endpoint="klines", mode="418", after=4, wait_s=3_600),))
    table = candle_table(("BTCUSDT",), 96 * 30)

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        waiting = asyncio.Event()

        async def sleep(_seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        ingestion = DataIngestion(settings, ingestion=QUICK, timing=Timing(sleep=sleep))
        running = asyncio.create_task(ingestion.ingest_timeframe("15m", days=30))
        async with asyncio.timeout(20):
            await waiting.wait()
            while not any(settings.paths.root.rglob("BTCUSDT_15m_*.parquet")):
                await asyncio.sleep(0.01)  # what came before the ban is being written
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        with FolderLock(settings.paths.root, "ingestion"):
            pass

    async def later(_: SimulatedExchange, settings: Settings) -> None:
        report = await DataIngestion(settings, ingestion=QUICK).ingest_timeframe("15m", days=30)
        assert 0 < report.rows < 2_880
        assert len(stored(settings, "BTCUSDT", "15m")["close"]) == 2_880
        assert report.gaps == ()

    serve(table, scenario, data_dir, faults=plan)
    serve(table, later, data_dir)


def test_one_line_per_batch_and_one_per_interval_tell_what_came(data_dir):
    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        seen: list[tuple[int, int]] = []
        with structlog.testing.capture_logs() as logs:
            await DataIngestion(settings, ingestion=QUICK).ingest(
                ["15m", "1h"], days=20, on_progress=lambda done, of: seen.append((done, of))
            )
        batches = [entry for entry in logs if entry["event"] == "ingestion.batch"]
        assert sum(entry["rows"] for entry in batches) == 1_920 + 480
        assert all(entry["latency_ms"] > 0 and entry["status"] == "ok" for entry in batches)
        assert sorted(e["interval"] for e in logs if e["event"] == "ingestion.interval") == [
            *("15m", "1h")
        ]
        assert seen[-1] == (len(batches), len(batches))

    serve(candle_table(("BTCUSDT",), 96 * 20), scenario, data_dir)


# --- recorded candles ---


def rebuilt(minutes: dict[str, np.ndarray], interval: str, decimals: int) -> dict[str, np.ndarray]:
    """Longer candles from stored minutes; exact sums, whole candles only."""
    buckets = open_times_ms(minutes["open_time_ms"], interval)
    found: dict[str, list[float]] = {name: [] for name in RAW_COLUMNS}
    for at in np.unique(buckets).tolist():
        rows = np.flatnonzero(buckets == at)
        if len(rows) != INTERVAL_MS[interval] // 60_000:
            continue
        part = {name: values[rows] for name, values in minutes.items()}
        found["open_time_ms"].append(at)
        found["close_time_ms"].append(at + INTERVAL_MS[interval] - 1)
        found["open"].append(part["open"][0])
        found["close"].append(part["close"][-1])
        found["high"].append(part["high"].max())
        found["low"].append(part["low"].min())
        found["trade_count"].append(int(part["trade_count"].sum()))
        for name in ("volume", "taker_buy_volume", "quote_volume", "taker_buy_quote_volume"):
            scale = 10 ** (3 if name.endswith("y_volume") or name == "volume" else decimals)
            total = sum(round(value * scale) for value in part[name].tolist())
            found[name].append(total / scale)
    return {name: np.array(values) for name, values in found.items()}


def test_recorded_minutes_higher_timeframes_holes_and_atr(recordings_dir, data_dir, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # durability is tested elsewhere
    files = [recordings_dir / "klines" / f"{s}USDT-1m-2024-07.csv.gz" for s in ("BTC", "ETH")]
    table = CandleTable.from_files(files)
    intervals = ("1m", *SIX)
    july = ("2024-07-01", "2024-08-01")

    async def scenario(_: SimulatedExchange, settings: Settings) -> None:
        ingestion = DataIngestion(settings, ingestion=QUICK)
        reports = {r.interval: r for r in await ingestion.ingest(intervals, *july)}
        assert reports["1m"].rows == 2 * 44_640 - 4_500
        holes = ingestion.check_gaps("1m", *july)
        assert [(gap.symbol, gap.bar_count, gap.at_exchange) for gap in holes] == [
            ("ETHUSDT", 1_500, True)
        ] * 3
        for symbol, decimals in (("BTCUSDT", 4), ("ETHUSDT", 5)):
            minutes = stored(settings, symbol, "1m")
            for interval in SIX:
                found = stored(settings, symbol, interval)
                wanted = rebuilt(minutes, interval, decimals)
                for name in RAW_COLUMNS:
                    np.testing.assert_array_equal(found[name], wanted[name], f"{interval} {name}")
        for interval in SIX:
            DataCuration(settings).curate_timeframe(interval)
        check_atr(settings)

        for hole in holes:  # the exchange has the bars now
            count = hole.bar_count
            table.add("ETHUSDT", table_rows(count, "1m", start_ms=hole.start_ms, seed=count))
        refilled = await ingestion.ingest(intervals, *july, ask_again=True)
        assert all(report.gaps == () for report in refilled)
        assert refilled[0].rows == 4_500
        assert ingestion.check_gaps("1m", *july) == []
        for interval in SIX:
            assert DataCuration(settings).curate_timeframe(interval).rows > 0
        check_atr(settings)

    serve(table, scenario, data_dir)


def check_atr(settings: Settings) -> None:
    for interval in ("15m", "1h", "1d"):
        names = ("high", "low", "close", "atr")
        curated = read_curated(settings.paths, interval, ("BTCUSDT", "ETHUSDT"), names)
        for columns in curated.values():
            expected = talib.ATR(columns["high"], columns["low"], columns["close"], timeperiod=14)
            np.testing.assert_allclose(columns["atr"], expected, rtol=1e-12)


# --- weight ---


class SimulatedTime:
    """The exchange's own clock, which a wait sets forward."""

    def __init__(self, exchange: SimulatedExchange) -> None:
        self._clock = exchange.clock
        self.waited_s = 0.0

    async def sleep(self, seconds: float) -> None:
        self.waited_s += seconds
        self._clock.advance_to(self._clock.now_ns() + int(seconds * 1e9))
        await asyncio.sleep(0)

    def wall_ns(self) -> int:
        return self._clock.now_ns()

    def seconds(self) -> float:
        return self._clock.now_ns() / 1e9


def ingest_at_full_speed(
    data_dir: Path, symbol_count: int, days: int, weight_limit: int
) -> tuple[dict[str, Any], float, int, int]:
    """Six timeframes at simulated time: statuses, seconds waited, rows, and the limit's minutes."""
    from binance_api.rest import RestClient  # noqa: PLC0415
    from binance_api.weight_budget import WeightBudgetSettings  # noqa: PLC0415

    table = candle_table(tuple(f"S{n:02}USDT" for n in range(symbol_count)), 96 * days)

    async def scenario(exchange: SimulatedExchange, settings: Settings) -> Any:
        import msgspec  # noqa: PLC0415

        time_ = SimulatedTime(exchange)
        rest_settings = msgspec.structs.replace(
            settings.rest_settings,
            budget=WeightBudgetSettings(folder=data_dir / "budget"),
            weight_limit=weight_limit,
        )
        rest = RestClient(
            rest_settings,
            monotonic=time_.seconds,
            wall_ns=time_.wall_ns,
            sleep=time_.sleep,
        )
        async with rest:
            ingestion = DataIngestion(
                settings,
                rest=rest,
                ingestion=QUICK,
                timing=Timing(sleep=time_.sleep, wall_s=time_.seconds),
            )
            reports = await ingestion.ingest(SIX, days=days)
        rows = sum(report.rows for report in reports)
        assert all(report.gaps == () for report in reports)
        return exchange.statistics(), time_.waited_s, rows, sum(r.requests for r in reports)

    return serve(
        table, scenario, data_dir, speed=0, weight_clock="market", weight_limit=weight_limit
    )


def test_an_ingestion_at_full_speed_keeps_to_the_weight_limit(data_dir):
    statuses, waited_s, rows, requests = ingest_at_full_speed(data_dir, 5, 14, 40)
    assert rows == 5 * 14 * (96 + 48 + 24 + 6 + 1) + 5 * 2
    assert statuses.get("status_429", 0) == statuses.get("status_418", 0) == 0
    assert waited_s > 60 * (requests / 32 - 1)  # 80 % of the limit a minute, and no faster


@pytest.mark.long
def test_a_year_of_six_timeframes_of_twenty_symbols_without_one_429(data_dir, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # 37,000 files
    statuses, waited_s, rows, _ = ingest_at_full_speed(data_dir, 20, 364, 2_400)
    assert rows == 20 * 364 * (96 + 48 + 24 + 6 + 1) + 20 * 52
    assert statuses.get("status_429", 0) == statuses.get("status_418", 0) == 0
    assert 60 < waited_s < 600
