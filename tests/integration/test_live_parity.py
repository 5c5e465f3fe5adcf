"""Live rows over a broken connection, and after crashes, equal the replay's, column by column."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from simulator.faults import FaultKind, FaultPlan
from tests.integration.conftest import Market, MarketOf
from tests.integration.live_parity import check_parity, run_live
from tests.integration.live_processes import crash_through

MARKETS = ("synthetic", "recorded")
QUIET_TAIL_MS = 15_000
RECOVERABLE: list[FaultKind] = [
    kind for kind in FaultKind if kind is not FaultKind.REST_LOST_TRADES
]
LONG = pytest.mark.long


def check(
    market: Market,
    folder: Path,
    plan: FaultPlan | None = None,
    *,
    speed: float = 60.0,
    redundancy: int = 1,
    hold_s: float = 3.0,
) -> None:
    """Run the bot through a market with these faults, then compare."""
    exchange = asyncio.run(
        run_live(
            market.recording,
            folder,
            until=market.truth,
            faults=plan,
            speed=speed,
            timeout_s=market.length_ms / 1_000 / speed + 150.0,
            ws_redundancy=redundancy,
            gap_repair_timeout=hold_s,
        )
    )
    if plan is not None:
        assert len(exchange.fault_log) >= len(plan.faults) > 0
    check_parity(folder, market.truth)


def faults(
    market: Market, seed: int, kind: FaultKind | None = None, every_ms: int = 6_000
) -> FaultPlan:
    kinds = None if kind is None else [kind]
    return FaultPlan.random(
        seed, market.length_ms, kinds, mean_interval_ms=every_ms, quiet_tail_ms=QUIET_TAIL_MS
    )


@pytest.mark.parametrize("name", MARKETS)
def test_a_sound_connection_gives_the_replays_rows(
    market_of: MarketOf, data_dir: Path, name: str
) -> None:
    check(market_of(name), data_dir)


@pytest.mark.parametrize("kind", RECOVERABLE)
def test_after_one_kind_of_fault_the_rows_are_the_replays(
    market_of: MarketOf, data_dir: Path, kind: FaultKind
) -> None:
    market = market_of("synthetic")
    check(market, data_dir, faults(market, 7, kind))


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize("redundancy", [1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_after_mixed_faults_the_rows_are_the_replays(
    market_of: MarketOf, data_dir: Path, name: str, redundancy: int, seed: int
) -> None:
    """Windows wait a tenth of a second for repairs, so that most come as revisions."""
    market = market_of(name)
    check(market, data_dir, faults(market, seed), redundancy=redundancy, hold_s=0.1)


def test_after_kill_9_and_restart_the_rows_are_the_replays(
    market_of: MarketOf, tmp_path: Path, data_dir: Path
) -> None:
    market = market_of("synthetic")
    crash_through(
        tmp_path / "logs",
        data_dir,
        market.truth,
        recording=market.recording,
        seed=1,
        kills=2,
        market_s=market.length_ms / 1_000,
        speed=10.0,
    )
    check_parity(data_dir, market.truth)


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("redundancy", [1, 2])
@pytest.mark.parametrize("kind", RECOVERABLE)
def test_every_kind_of_fault_over_the_whole_recording(
    market_of: MarketOf, data_dir: Path, kind: FaultKind, redundancy: int
) -> None:
    number = RECOVERABLE.index(kind)
    market = market_of("recorded", is_whole=True)
    check(
        market,
        data_dir,
        faults(market, 100 + number, kind, every_ms=15_000),
        speed=(40.0, 80.0, 120.0)[(number + redundancy) % 3],
        redundancy=redundancy,
        hold_s=(0.1, 3.0)[number % 2],
    )


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("redundancy", [1, 2])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", MARKETS)
def test_mixed_faults_over_the_whole_recording(
    market_of: MarketOf, data_dir: Path, name: str, seed: int, redundancy: int
) -> None:
    market = market_of(name, is_whole=True)
    check(
        market,
        data_dir,
        faults(market, 1_000 + seed),
        speed=(30.0, 60.0, 120.0)[seed % 3],
        redundancy=redundancy,
        hold_s=(0.1, 1.0, 3.0)[seed % 3],
    )


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [FaultKind.STALL, FaultKind.DELAYED, FaultKind.REFUSED])
@pytest.mark.parametrize("redundancy", [1, 2])
def test_faults_long_enough_for_the_wall_clock_to_notice(
    market_of: MarketOf, data_dir: Path, kind: FaultKind, redundancy: int
) -> None:
    """At a fast market seconds pass in milliseconds: here stalls outlast the liveness limits."""
    market = market_of("synthetic")
    plan = faults(market, 31, kind, every_ms=15_000)
    longer = [msgspec.structs.replace(f, duration_ms=4 * f.duration_ms) for f in plan.faults]
    check(market, data_dir, FaultPlan(faults=tuple(longer)), speed=5.0, redundancy=redundancy)


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(6))
def test_kill_9_under_faults_over_the_whole_recording(
    market_of: MarketOf, tmp_path: Path, data_dir: Path, seed: int
) -> None:
    market = market_of(MARKETS[seed % 2], is_whole=True)
    plan = tmp_path / "faults.json"
    plan.write_bytes(msgspec.json.encode(faults(market, 2_000 + seed, every_ms=20_000)))
    speed = market.length_ms / 1_000 / 24.0
    crash_through(
        tmp_path / "logs",
        data_dir,
        market.truth,
        recording=market.recording,
        seed=seed,
        kills=2 + seed % 3,
        market_s=market.length_ms / 1_000,
        speed=speed,
        faults=plan,
        redundancy=1 + seed % 2,
    )
    check_parity(data_dir, market.truth)
