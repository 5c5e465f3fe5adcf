"""What cannot be had back is told as lost; what can is had back; silence and loss are told apart."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from domain.events import ConnectionState, GapState
from domain.features import FeatureRow
from feature_store import FeatureStore
from lake.paths import LakePaths
from lake.quarantine import QuarantineEntry
from simulator.faults import (
    CORRUPTION_MODES,
    TRADE_ONLY_MODES,
    AppliedFault,
    Fault,
    FaultKind,
    FaultPlan,
)
from simulator.recording import RecordingSource
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
from tests.integration.live_recordings import MIDNIGHT_MS, cut, record_quiet, record_trades

LONG = pytest.mark.long
SPEED = 40.0
WINDOW_MS = 5_000


def run_through(
    recording: Path, folder: Path, truth: Rows, *faults: Fault, **given: object
) -> list[AppliedFault]:
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
        ids = sorted(number for f in faults for name, number in f.ids if name == symbol)
        found = by_symbol(rows, symbol)[
            1:
        ]  # the first one's beginning is unknown, as in the replay
        counts, touched = losses(market.recording, symbol, ids)
        assert {r.window_start_ms: r.missing_trades for r in found if r.missing_trades} == counts
        assert {r.window_start_ms for r in found if not r.complete} == touched
        assert listed_ids(data_dir, symbol, {GapState.LOST}) == ids
        told = sum(row.trade_count for row in by_symbol(market.truth, symbol)[1:])
        until_ms = max(start_ms for _, start_ms in market.truth)
        kept = sum(row.trade_count for row in found if row.window_start_ms <= until_ms)
        assert kept == told - len(ids)
    ether = by_symbol(rows, "ETHUSDT")
    assert all(row.cvd_complete for row in ether if row.window_start_ms >= MIDNIGHT_MS)
    assert not any(
        r.cvd_complete for r in ether if touched_from(ether) <= r.window_start_ms < MIDNIGHT_MS
    )


def losses(recording: Path, symbol: str, ids: list[int]) -> tuple[dict[int, int], set[int]]:
    """From the recording itself: ids missing by the window they begin in, and windows they may touch."""
    tape = RecordingSource(recording).trades(symbol).rows
    times = dict(zip(tape["agg_trade_id"].tolist(), tape["transact_time_ms"].tolist(), strict=True))
    counts: Counter[int] = Counter()
    touched: set[int] = set()
    for first in (number for number in ids if number - 1 not in ids):
        last = first
        while last + 1 in ids:
            last += 1
        begin_ms, end_ms = (
            times[number] // WINDOW_MS * WINDOW_MS for number in (first - 1, last + 1)
        )
        counts[begin_ms] += last - first + 1
        touched.update(range(begin_ms, end_ms + 1, WINDOW_MS))
    return dict(counts), touched


def listed_ids(folder: Path, symbol: str, states: set[GapState]) -> list[int]:
    """Every id of a symbol in the ledger, all of whose entries must be in one of these states."""
    gaps = [gap for gap in trade_gaps(folder) if gap.symbol == symbol]
    assert {gap.state for gap in gaps} <= states
    return sorted(i for g in gaps for i in range(g.first_id or 0, (g.last_id or 0) + 1))


def touched_from(rows: list[FeatureRow]) -> int:
    """Start of the first incomplete window after the first window."""
    return min(row.window_start_ms for row in rows[1:] if not row.complete)


def lost(at_ms: int, symbol: str, count: int) -> Fault:
    return Fault(at_ms=at_ms, kind=FaultKind.REST_LOST_TRADES, symbol=symbol, count=count)


def lost_ids(faults: list[AppliedFault]) -> Counter[str]:
    return Counter(symbol for fault in faults for symbol, _ in fault.ids)


def missing(rows: Rows) -> int:
    return sum(row.missing_trades or 0 for row in rows.values())


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


def dead_trades(at_ms: int, duration_ms: int, *, index: int | None = None) -> Fault:
    return Fault(
        at_ms=at_ms,
        kind=FaultKind.STALL,
        mode="drop",
        route="trades",
        duration_ms=duration_ms,
        connection_index=index,
    )


def claimed_silence(folder: Path, truth: Rows) -> list[tuple[str, int]]:
    """Windows that were stored as complete and silent, in any revision, though trades exist."""
    stored = all_stored(folder)
    silent = {key for key, complete, count, _ in stored if complete and count == 0}
    return sorted(key for key in silent if key in truth and truth[key].trade_count)


@pytest.mark.parametrize(
    "index",
    [pytest.param(None, id="every socket"), pytest.param(0, id="one socket", marks=LONG)],
)
@pytest.mark.parametrize(
    "is_rest_down",
    [pytest.param(False, id="rest up"), pytest.param(True, id="rest down", marks=LONG)],
)
def test_beside_a_dead_trade_socket_no_window_claims_silence(
    market_of: MarketOf, data_dir: Path, index: int | None, is_rest_down: bool
) -> None:
    market = market_of("synthetic")
    faults = [dead_trades(15_000, 40_000, index=index)]
    if is_rest_down:
        faults.append(rest_down(15_000, 40_000))
    run_through(market.recording, data_dir, market.truth, *faults, speed=12.0)
    assert claimed_silence(data_dir, market.truth) == []
    check_parity(data_dir, market.truth)


def test_with_rest_down_as_well_windows_are_told_to_be_incomplete_and_settled_later(
    market_of: MarketOf, tmp_path: Path, data_dir: Path
) -> None:
    """At the market's own speed, where the learned clock says that a window is over."""
    part = cut(market_of("synthetic").recording, tmp_path / "part.gz", from_s=10.0, length_s=13.0)
    truth = replayed(part, tmp_path / "truth", window_duration=2)
    faults = dead_trades(3_500, 5_000), rest_down(3_500, 5_000)
    run_through(
        part, data_dir, truth, *faults, speed=1.0, gap_repair_timeout=0.3, window_duration=2
    )
    stored = all_stored(data_dir)
    first_ms = min(start_ms for _, start_ms in truth)
    unknown = [key for key, complete, _, gone in stored if not complete and gone is None]
    assert [key for key in unknown if key[1] > first_ms + 2_000]
    assert claimed_silence(data_dir, truth) == []
    check_parity(data_dir, truth)


def rest_down(at_ms: int, duration_ms: int) -> Fault:
    return Fault(at_ms=at_ms, kind=FaultKind.REST_FAILURE, mode="503", duration_ms=duration_ms)


# --- quiet is not dead --------------------------------------------------------------------


@pytest.mark.parametrize("redundancy", [1, pytest.param(2, marks=LONG)])
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
        simulated = SimulatorSettings(recording=recording, speed=25.0)
        bot = {"symbols": (symbol,), "ws_max_reconnect_attempts": 2, "ws_redundancy": redundancy}
        async with serving(simulated) as exchange, running(exchange, data_dir, **bot) as run:
            await run.until_equal(truth)
            states.update(event.state for event in run.connection_events)

    asyncio.run(go())
    assert states[ConnectionState.CONNECTING] == 2 * redundancy
    assert states[ConnectionState.DISCONNECTED] == 0
    rows = by_symbol(rows_of(data_dir, [symbol]), symbol)
    quiet = [
        row for row in rows if row.trade_count == 0 and row.window_start_ms < start_ms + 235_000
    ]
    assert len(quiet) > 40
    assert all(row.complete and row.missing_trades == 0 for row in quiet)


def test_a_bot_started_in_silence_tells_it_and_fills_the_hole_before(
    tmp_path: Path, data_dir: Path
) -> None:
    symbol = "QUIETUSDT"
    start_ms = MIDNIGHT_MS - 120_000 + 1_000
    times = [0, 900, 2_500, 60_000, 61_000, 61_500, 900_000]
    recording = record_quiet(
        tmp_path / "quiet.ndjson.gz", symbol=symbol, start_ms=start_ms, trade_ms=times
    )
    truth = replayed(recording, tmp_path / "truth", [symbol])
    silent = {key: row for key, row in truth.items() if key[1] < start_ms + 180_000}

    async def go() -> None:
        simulated = SimulatorSettings(recording=recording, speed=25.0)
        bot = {"symbols": (symbol,), "feature_flush_seconds": 0.3}
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir, **bot) as run:
                await run.until(lambda run: bool(run.rows()))
            while exchange.clock.elapsed_ms() < 80_000:
                await asyncio.sleep(0.05)
            async with running(exchange, data_dir, **bot) as run:
                await run.until_equal(silent)
                assert exchange.clock.elapsed_ms() < times[-1]

    asyncio.run(go())
    found = rows_of(data_dir, [symbol])
    assert differences(silent, {key: row for key, row in found.items() if key in silent}) == []


# --- garbage ------------------------------------------------------------------------------


def test_frames_no_one_can_read_are_kept_and_counted_and_the_feed_goes_on(
    market_of: MarketOf, data_dir: Path
) -> None:
    market = market_of("synthetic")
    faults = [
        Fault(at_ms=4_000 + 4_000 * n, kind=FaultKind.CORRUPTED, mode=mode, count=3, route=route)
        for n, (mode, route) in enumerate(
            (mode, route)
            for route in ("trades", "depth")  # trades first: depth is subscribed to later
            for mode in CORRUPTION_MODES
            if route == "trades" or mode not in TRADE_ONLY_MODES
        )
    ]
    log = run_through(market.recording, data_dir, market.truth, *faults)
    damaged = sum(applied.frame_count for applied in log)
    assert damaged == 3 * len(faults)
    entries = quarantined(data_dir)
    # A bit flipped behind the best level of a book is seen only where that level is read: in the
    # last frame of a window. Everything else is rejected, frame by frame.
    flipped_books = sum(fault.mode == "bit_flip" and fault.route == "depth" for fault in faults) * 3
    assert flipped_books == 3
    missed = damaged - len(entries)
    assert 0 <= missed <= flipped_books, Counter(entry.reason for entry in entries)
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


def test_a_last_window_stored_without_its_last_trade_is_completed_after_the_restart(
    market_of: MarketOf, data_dir: Path
) -> None:
    """The socket lost the trade and the run ended before the next id told."""
    market = market_of("synthetic")

    async def go() -> None:
        simulated = SimulatorSettings(recording=market.recording, speed=20.0)
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir) as run:
                await run.until(lambda run: len(run.rows()) >= 10)
            store = FeatureStore(data_dir)
            last = max(store.last_rows(SYMBOLS).values(), key=lambda row: row.trade_count)
            assert last.trade_count >= 2
            assert last.last_agg_id is not None
            lacking = msgspec.structs.replace(
                last,
                revision=last.revision + 1,
                trade_count=last.trade_count - 1,
                last_agg_id=last.last_agg_id - 1,
                volume=last.volume / 2,
                delta=last.delta / 2,
            )
            store.write_batch([lacking])
            async with running(exchange, data_dir) as run:
                await run.until_equal(market.truth)

    asyncio.run(go())
    check_parity(data_dir, market.truth)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hours", [1.5, pytest.param(6.0, marks=LONG)])
def test_after_hours_without_the_bot_the_hole_is_filled_from_rest(
    tmp_path: Path, data_dir: Path, hours: float
) -> None:
    """Over midnight, and in more than one part."""
    away_ms = int(hours * 3_600_000)
    start_ms = MIDNIGHT_MS - away_ms // 2
    settings = SimulatorSettings(seed=11, start_ms=start_ms, speed=10.0, rate_multiplier=0.1)
    found = asyncio.run(leave_and_return(settings, data_dir, away_ms))
    first_ms, left_ms, last_ms, wanted, done = found
    market = SyntheticMarket(11, SYMBOLS, start_ms=start_ms, rate_multiplier=0.1)
    recording = record_trades(
        tmp_path / "all.ndjson.gz", market, start_ms=first_ms, end_ms=last_ms + 20_000
    )
    truth = replayed(recording, tmp_path / "truth")
    first = {(symbol, first_ms) for symbol in SYMBOLS}  # the replay cannot know what came before
    rows = rows_of(data_dir)
    assert all(
        rows[key].complete and rows[key].trade_count == truth[key].trade_count for key in first
    )
    expected = {key: row for key, row in truth.items() if key not in first and key[1] <= last_ms}
    assert differences(expected, {key: rows[key] for key in rows if key not in first}) == []
    between = 2 * ((start_ms + away_ms - left_ms) // 5_000 - 1)
    assert between > 1_000
    assert done == wanted >= between
    recovered = [row for row in rows.values() if row.origin == "recovered"]
    assert len(recovered) >= between
    assert any(row.revision > 0 for row in rows.values() if row.window_start_ms > MIDNIGHT_MS)
    told = {(row.symbol, row.window_end_ms) for row in recovered}
    assert not told & signalled(data_dir)


def signalled(folder: Path) -> set[tuple[str, int]]:
    """Symbols and window ends that the analyst was asked about."""
    tables = [pq.read_table(path) for path in (folder / "signals").rglob("*.parquet")]
    assert tables
    return {
        (row["symbol"], row["window_end_ms"])
        for table in tables
        for row in table.select(["symbol", "window_end_ms"]).to_pylist()
    }


async def leave_and_return(
    settings: SimulatorSettings, folder: Path, away_ms: int, **given: object
) -> tuple[int, int, int, int, int]:
    """Start of the first window, of the last before the break and of the last of all.

    And how many windows were wanted and recovered.
    """
    async with serving(settings) as exchange, running(exchange, folder, **given) as run:
        await run.until(lambda run: len(run.rows()) >= 10)
        first_ms = run.parts.flow.builder.first_start_ms
        port = int(exchange.rest_url.rpartition(":")[2])
    assert first_ms is not None
    left_ms = max(start_ms for _, start_ms in rows_of(folder))
    later = {name: getattr(settings, name) for name in settings.__struct_fields__}
    later |= {"start_ms": (settings.start_ms or 0) + away_ms, "port": port}
    async with (
        serving(SimulatorSettings(**later)) as exchange,
        running(exchange, folder, **given) as run,
    ):

        def is_back(run: LiveRun) -> bool:
            counts = run.parts.recovery.statistics()
            is_done = 0 < int(counts["windows_wanted"] or 0) == counts["windows_done"]
            live = run.parts.flow.builder.emitted_count
            return is_done and live >= 10 and not run.parts.storage.statistics()["waiting_repairs"]

        await run.until(is_back, timeout_s=200.0)
        last_ms = max(start_ms for _, start_ms in run.rows())
        counts = run.parts.recovery.statistics()
        await asyncio.sleep(1.0)  # revisions that were being written
    wanted, done = int(counts["windows_wanted"] or 0), int(counts["windows_done"] or 0)
    return first_ms, left_ms, last_ms, wanted, done


@pytest.mark.parametrize("which", ["last", "first", pytest.param("middle", marks=LONG)])
def test_lost_and_damaged_part_files_are_named_and_rebuilt(
    market_of: MarketOf, data_dir: Path, which: str
) -> None:
    market = market_of("synthetic")
    gone = damaged = Path()

    def part_files() -> list[Path]:
        return sorted((data_dir / "features").glob("date=*/part-*.parquet"))

    async def go() -> None:
        nonlocal gone, damaged
        simulated = SimulatorSettings(recording=market.recording, speed=20.0)
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir, feature_flush_seconds=0.2) as run:
                await run.until(lambda run: len(run.rows()) >= 24 and len(part_files()) >= 5)
            parts = part_files()
            at = {"first": 0, "middle": len(parts) // 2, "last": len(parts) - 1}[which]
            gone, damaged = parts[at], parts[at - 1 if which == "last" else at + 1]
            gone.unlink()
            damaged.write_bytes(damaged.read_bytes()[:-40])
            async with running(exchange, data_dir) as run:
                await run.until_equal(market.truth)

    asyncio.run(go())
    check_parity(data_dir, market.truth)
    assert not damaged.exists()
    assert [path.name for path in data_dir.rglob("*.damaged")] == [f"{damaged.name}.damaged"]


# --- holes across runs --------------------------------------------------------------------


def test_a_hole_left_open_by_one_run_is_closed_by_the_next(
    market_of: MarketOf, data_dir: Path
) -> None:
    market = market_of("synthetic")
    plan = FaultPlan(
        faults=(
            Fault(at_ms=10_000, kind=FaultKind.MISSING, route="trades", count=6),
            rest_down(10_000, 50_000),  # longer than the first run
        )
    )

    async def go() -> None:
        simulated = SimulatorSettings(recording=market.recording, speed=10.0, faults=plan)
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir) as run:
                await run.until(lambda _: bool(trade_gaps(data_dir)))
            assert {gap.state for gap in trade_gaps(data_dir)} == {GapState.OPEN}
            async with running(exchange, data_dir) as run:
                await run.until_equal(market.truth)

    asyncio.run(go())
    check_parity(data_dir, market.truth)


def test_trades_lost_while_the_bot_was_away_are_counted_and_listed(
    market_of: MarketOf, data_dir: Path
) -> None:
    market = market_of("synthetic")
    plan = FaultPlan(faults=(lost(24_000, "BTCUSDT", 30), lost(30_000, "ETHUSDT", 1)))

    async def go() -> list[AppliedFault]:
        simulated = SimulatorSettings(recording=market.recording, speed=20.0, faults=plan)
        async with serving(simulated) as exchange:
            async with running(exchange, data_dir) as run:
                await run.until(lambda run: len(run.rows()) >= 4)
            while exchange.clock.elapsed_ms() < 50_000:
                await asyncio.sleep(0.05)
            async with running(exchange, data_dir) as run:
                await run.until(lambda run: missing(run.rows()) == 31)
            return exchange.fault_log

    faults = asyncio.run(go())
    for symbol in SYMBOLS:
        ids = sorted(number for f in faults for name, number in f.ids if name == symbol)
        counts, touched = losses(market.recording, symbol, ids)
        found = by_symbol(rows_of(data_dir), symbol)[1:]
        assert {r.window_start_ms: r.missing_trades for r in found if r.missing_trades} == counts
        assert {r.window_start_ms for r in found if not r.complete} == touched
        assert listed_ids(data_dir, symbol, {GapState.LOST}) == ids


@LONG
def test_what_lies_beyond_the_history_is_told_as_out_of_reach(data_dir: Path) -> None:
    """50 hours away: two hours are gone, the rest is rebuilt."""
    away_ms = 50 * 3_600_000
    settings = SimulatorSettings(
        seed=3, start_ms=MIDNIGHT_MS, speed=600.0, rate_multiplier=0.002, weight_limit=10**6
    )
    found = asyncio.run(leave_and_return(settings, data_dir, away_ms, window_duration=300))
    first_ms, left_ms, last_ms, wanted, done = found
    back_ms = MIDNIGHT_MS + away_ms
    assert done == wanted
    rows = rows_of(data_dir)
    for symbol in SYMBOLS:
        gaps = [gap for gap in trade_gaps(data_dir) if gap.symbol == symbol]
        (gap,) = (gap for gap in gaps if gap.state is not GapState.REPAIRED)
        assert gap.state is GapState.EXPIRED
        assert gap.from_ms is not None
        assert gap.until_ms is not None
        own = by_symbol(rows, symbol)
        inside = [r for r in own if gap.from_ms <= r.window_start_ms < gap.until_ms]
        assert inside == []
        assert left_ms <= gap.from_ms < gap.until_ms
        assert gap.until_ms >= back_ms - 48 * 3_600_000
        assert wanted >= 2 * ((back_ms - gap.until_ms) // 300_000 - 1)
        after = [r.window_start_ms for r in own if gap.until_ms <= r.window_start_ms <= last_ms]
        assert after == list(range(gap.until_ms, last_ms + 1, 300_000))
        next_midnight_ms = -(-gap.until_ms // 86_400_000) * 86_400_000
        assert not any(
            r.cvd_complete
            for r in own
            if first_ms < gap.until_ms <= r.window_start_ms < next_midnight_ms
        )
        assert all(r.cvd_complete for r in own if next_midnight_ms <= r.window_start_ms <= last_ms)
