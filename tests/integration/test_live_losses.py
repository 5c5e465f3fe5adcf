"""What cannot be had back is told as lost; what can is had back; silence and loss are told apart."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from domain.events import ConnectionState, GapState
from feature_store import FeatureStore
from lake.paths import LakePaths
from lake.quarantine import QuarantineEntry
from simulator.faults import CORRUPTION_MODES, TRADE_ONLY_MODES, AppliedFault, Fault, FaultKind, FaultPlan
from simulator.settings import SimulatorSettings
from simulator.synthetic import SyntheticMarket
from tests.integration.conftest import MarketOf
from tests.integration.live_parity import (
    SYMBOLS,
    LiveRun,
    Rows,
    by_symbol,
    check_parity,
    differences,
    replayed,
    rows_of,
    running,
    serving,
    trade_gaps,
)
from tests.integration.live_recordings import MIDNIGHT_MS, record_quiet, record_trades

pytestmark = pytest.mark.usefixtures("own_weight_budget")

SPEED = 40.0
DAY_MS = 86_400_000


def run_through(recording: Path, folder: Path, truth: Rows, *faults: Fault, **given: object) -> list[AppliedFault]:
    """The bot through a market until its rows equal the truth; returns the applied faults."""

    async def go() -> list[AppliedFault]:
        speed = float(str(given.pop("speed", SPEED)))
        plan = FaultPlan(faults=faults)
        simulated = SimulatorSettings(recording=recording, speed=speed, faults=plan)
        async with serving(simulated) as exchange, running(exchange, folder, **given) as run:
            await run.until_equal(truth)
            return exchange.fault_log

    return asyncio.run(go())


# --- trades nobody can give back ----------------------------------------------------------


def test_trades_rest_cannot_give_back_are_counted_once_and_listed(
    market_of: MarketOf, data_dir: Path
) -> None:
    market = market_of("synthetic")
    plan = FaultPlan(
        faults=(
            lost(8_000, "BTCUSDT", 5),
            lost(16_000, "ETHUSDT", 1),
            lost(28_000, "ETHUSDT", 60),  # several windows long
            lost(46_500, "BTCUSDT", 40),  # over midnight, at 48 s
        )
    )
    last_ms = max(start_ms for _, start_ms in market.truth)

    def is_settled(run: LiveRun) -> bool:
        rows = run.rows()
        gaps = run.parts.storage._ledger
        return (
            all((symbol, last_ms) in rows for symbol in SYMBOLS)
            and not gaps.open_gaps(kind="trades")
            and missing(rows) == lost_ids(run.exchange.fault_log).total()
        )

    async def go() -> list[AppliedFault]:
        simulated = SimulatorSettings(recording=market.recording, speed=SPEED, faults=plan)
        async with serving(simulated) as exchange, running(exchange, data_dir) as run:
            await run.until(is_settled)
            return exchange.fault_log

    faults = asyncio.run(go())
    rows = rows_of(data_dir)
    for symbol in SYMBOLS:
        ids = {number for f in faults for name, number in f.ids if name == symbol}
        touched = {
            row.window_start_ms
            for row in by_symbol(market.truth, symbol)
            if row.first_agg_id and ids & set(range(row.first_agg_id, (row.last_agg_id or 0) + 1))
        }
        found = by_symbol(rows, symbol)
        assert missing({(symbol, r.window_start_ms): r for r in found[1:]}) == len(ids)
        assert {r.window_start_ms for r in found[1:] if not r.complete} == touched
        listed = [gap for gap in trade_gaps(data_dir) if gap.symbol == symbol]
        assert {gap.state for gap in listed} == {GapState.LOST}
        assert sorted(i for g in listed for i in range(g.first_id or 0, (g.last_id or 0) + 1)) == sorted(ids)
        assert kept_ids(found) == kept_ids(by_symbol(market.truth, symbol)) - len(ids)
    midnight = [row for row in by_symbol(rows, "ETHUSDT") if row.window_start_ms >= MIDNIGHT_MS]
    assert all(row.cvd_complete for row in midnight)
    assert not any(r.cvd_complete for r in by_symbol(rows, "ETHUSDT") if 28_000 < r.window_start_ms - (MIDNIGHT_MS - 48_000) < 48_000)


def lost(at_ms: int, symbol: str, count: int) -> Fault:
    return Fault(at_ms=at_ms, kind=FaultKind.REST_LOST_TRADES, symbol=symbol, count=count)


def lost_ids(faults: list[AppliedFault]) -> Counter[str]:
    return Counter(symbol for fault in faults for symbol, _ in fault.ids)


def missing(rows: Rows) -> int:
    return sum(row.missing_trades or 0 for row in rows.values())


def kept_ids(rows: list[object]) -> int:
    return sum(row.trade_count for row in rows)  # type: ignore[attr-defined]


# --- a dead trade socket ------------------------------------------------------------------


def all_stored(folder: Path) -> list[tuple[tuple[str, int], bool, int, int | None]]:
    """Every revision on disk: (key, complete, trade_count, missing_trades)."""
    names = ("symbol", "window_start_ms", "complete", "trade_count", "missing_trades")
    table = FeatureStore(folder).read(columns=names, latest_only=False)
    return [
        ((symbol, start_ms), complete, count, gone)
        for symbol, start_ms, complete, count, gone in zip(
            *(table.column(name).to_pylist() for name in names), strict=True
        )
    ]


@pytest.mark.parametrize("index", [None, 0], ids=["every socket", "the first socket"])
@pytest.mark.parametrize("is_rest_down", [False, True], ids=["rest up", "rest down"])
def test_beside_a_dead_trade_socket_no_window_claims_silence(
    market_of: MarketOf, data_dir: Path, index: int | None, is_rest_down: bool
) -> None:
    market = market_of("synthetic")
    faults = [
        Fault(
            at_ms=15_000,
            kind=FaultKind.STALL,
            route="trades",
            duration_ms=40_000,
            connection_index=index,
        )
    ]
    if is_rest_down:
        faults.append(
            Fault(at_ms=15_000, kind=FaultKind.REST_FAILURE, mode="503", duration_ms=40_000)
        )
    run_through(
        market.recording, data_dir, market.truth, *faults, speed=10.0, gap_repair_timeout=0.3
    )
    stored = all_stored(data_dir)
    silent = [key for key, complete, count, _ in stored if complete and count == 0]
    assert [key for key in silent if market.truth[key].trade_count] == []
    if is_rest_down and index is None:
        unknown = [key for key, complete, _, gone in stored if not complete and gone is None]
        first_ms = min(start_ms for _, start_ms in market.truth)
        assert [key for key in unknown if key[1] > first_ms]
    check_parity(data_dir, market.truth)


# --- quiet is not dead --------------------------------------------------------------------


@pytest.mark.parametrize("redundancy", [1, 2])
def test_an_altcoin_without_a_trade_for_minutes_is_left_alone(
    tmp_path: Path, data_dir: Path, redundancy: int
) -> None:
    symbol = "QUIETUSDT"
    times = [0, 900, 2_500, 240_000, 240_300, 251_000]
    start_ms = MIDNIGHT_MS - 120_000 + 1_000
    recording = record_quiet(
        tmp_path / "quiet.ndjson.gz", symbol=symbol, start_ms=start_ms, trade_ms=times
    )
    truth = replayed(recording, tmp_path / "truth", [symbol])
    states: Counter[ConnectionState] = Counter()

    async def go() -> None:
        simulated = SimulatorSettings(recording=recording, speed=20.0)
        bot = {"symbols": (symbol,), "ws_max_reconnect_attempts": 2, "ws_redundancy": redundancy}
        async with serving(simulated) as exchange, running(exchange, data_dir, **bot) as run:
            await run.until_equal(truth)
            states.update(event.state for event in run.connection_events)

    asyncio.run(go())
    assert states[ConnectionState.CONNECTING] == 2 * redundancy
    assert states[ConnectionState.DISCONNECTED] == 0
    rows = by_symbol(rows_of(data_dir, [symbol]), symbol)
    quiet = [row for row in rows if row.trade_count == 0 and row.window_start_ms < start_ms + 235_000]
    assert len(quiet) > 40
    assert all(row.complete and row.missing_trades == 0 for row in quiet)


# --- garbage ------------------------------------------------------------------------------


def test_frames_no_one_can_read_are_kept_and_counted_and_the_feed_goes_on(
    market_of: MarketOf, data_dir: Path
) -> None:
    market = market_of("synthetic")
    faults = [
        Fault(at_ms=4_000 + 4_000 * n, kind=FaultKind.CORRUPTED, mode=mode, count=3, route=route)
        for n, (mode, route) in enumerate(
            (mode, route)
            for mode in CORRUPTION_MODES
            for route in ("trades", "depth")
            if route == "trades" or mode not in TRADE_ONLY_MODES
        )
    ]
    log = run_through(market.recording, data_dir, market.truth, *faults)
    damaged = sum(applied.frame_count for applied in log)
    assert damaged == 3 * len(faults)
    entries = quarantined(data_dir)
    assert len(entries) == damaged, Counter(entry.reason for entry in entries)
    assert all(entry.payload or entry.payload_base64 for entry in entries)
    check_parity(data_dir, market.truth)


def quarantined(folder: Path) -> list[QuarantineEntry]:
    return [
        msgspec.json.decode(line, type=QuarantineEntry)
        for path in sorted(LakePaths.of(folder).quarantine.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


# --- stop and go --------------------------------------------------------------------------


def test_after_a_clean_stop_ids_and_cvd_go_on(market_of: MarketOf, data_dir: Path) -> None:
    market = market_of("synthetic")

    async def go() -> None:
        simulated = SimulatorSettings(recording=market.recording, speed=20.0)
        async with serving(simulated) as exchange:
            for count in (6, 16):
                async with running(exchange, data_dir) as run:
                    await run.until(lambda run, count=count: len(run.rows()) >= count)  # type: ignore[misc]
                await asyncio.sleep(0.5)  # ten seconds of market without a bot
            async with running(exchange, data_dir) as run:
                await run.until_equal(market.truth)

    asyncio.run(go())
    check_parity(data_dir, market.truth)
    assert any(row.origin == "recovered" for row in rows_of(data_dir).values())


def test_after_hours_without_the_bot_the_hole_is_filled_from_rest(
    tmp_path: Path, data_dir: Path
) -> None:
    start_ms, away_ms = MIDNIGHT_MS - 2 * 3_600_000, 3 * 3_600_000
    settings = SimulatorSettings(seed=11, start_ms=start_ms, speed=30.0, rate_multiplier=0.1)
    first_ms, last_ms, wanted, done = asyncio.run(leave_and_return(settings, data_dir, away_ms))
    market = SyntheticMarket(11, SYMBOLS, start_ms=start_ms, rate_multiplier=0.1)
    recording = record_trades(
        tmp_path / "all.ndjson.gz", market, start_ms=first_ms, end_ms=last_ms + 20_000
    )
    truth = replayed(recording, tmp_path / "truth")
    first = {(symbol, first_ms) for symbol in SYMBOLS}  # the replay cannot know what came before
    found = rows_of(data_dir)
    assert all(found[key].complete and found[key].trade_count == truth[key].trade_count for key in first)
    expected = {key: row for key, row in truth.items() if key not in first and key[1] <= last_ms}
    assert differences(expected, {key: found[key] for key in found if key not in first}) == []
    assert done == wanted >= 2 * (away_ms // 5_000 - 20)
    recovered = [row for row in found.values() if row.origin == "recovered"]
    assert len(recovered) >= 2 * (away_ms // 5_000 - 20)
    assert any(row.revision > 0 for row in found.values() if row.window_start_ms > MIDNIGHT_MS)


async def leave_and_return(
    settings: SimulatorSettings, folder: Path, away_ms: int
) -> tuple[int, int, int, int]:
    """Start of the first and of the last compared window, windows wanted and recovered."""
    async with serving(settings) as exchange, running(exchange, folder) as run:
        await run.until(lambda run: len(run.rows()) >= 10)
        first_ms = run.parts.flow.builder.first_start_ms
        port = int(exchange.rest_url.rpartition(":")[2])
    assert first_ms is not None
    later = {name: getattr(settings, name) for name in settings.__struct_fields__}
    later |= {"start_ms": (settings.start_ms or 0) + away_ms, "port": port}
    async with (
        serving(SimulatorSettings(**later)) as exchange,
        running(exchange, folder) as run,
    ):

        def is_back(run: LiveRun) -> bool:
            counts = run.parts.recovery.statistics()
            is_done = 0 < int(counts["windows_wanted"] or 0) == counts["windows_done"]
            live = run.parts.flow.builder.emitted_count
            return is_done and live >= 10 and not run.parts.storage.statistics()["waiting_repairs"]

        await run.until(is_back)
        last_ms = max(start_ms for _, start_ms in run.rows())
        counts = run.parts.recovery.statistics()
        await asyncio.sleep(1.0)  # revisions that were being written
    return first_ms, last_ms, int(counts["windows_wanted"] or 0), int(counts["windows_done"] or 0)


@pytest.mark.parametrize("which", ["last", "first", "middle"])
def test_lost_and_damaged_part_files_are_named_and_rebuilt(
    market_of: MarketOf, data_dir: Path, which: str
) -> None:
    market = market_of("synthetic")
    gone = damaged = Path()

    async def go() -> None:
        nonlocal gone, damaged
        simulated = SimulatorSettings(recording=market.recording, speed=20.0)
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir, feature_flush_seconds=0.4) as run:
                await run.until(lambda run: len(run.rows()) >= 24)
            parts = sorted((data_dir / "features").glob("date=*/part-*.parquet"))
            assert len(parts) >= 5
            at = {"first": 0, "middle": len(parts) // 2, "last": len(parts) - 1}[which]
            gone, damaged = parts[at], parts[at - 1 if which == "last" else at + 1]
            gone.unlink()
            damaged.write_bytes(damaged.read_bytes()[:-40])
            async with running(exchange, data_dir) as run:
                await run.until_equal(market.truth)

    asyncio.run(go())
    check_parity(data_dir, market.truth)
    assert not damaged.exists()
    assert damaged.with_name(damaged.name + ".damaged").exists()
