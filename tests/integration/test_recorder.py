"""What the recorder stored over a broken connection is what was sent, minus what its ledger names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from lake.paths import LakePaths
from simulator.faults import FaultKind, FaultPlan
from tests.integration.conftest import Market, MarketOf
from tests.integration.recorder_runs import (
    Sent,
    check_lake,
    holes,
    record_through,
    sent_in,
    stored_books,
)

LONG = pytest.mark.long
QUIET_TAIL_MS = 15_000
RECOVERABLE = [kind for kind in FaultKind if kind is not FaultKind.REST_LOST_TRADES]


@pytest.fixture
def paths(data_dir: Path) -> LakePaths:
    return LakePaths.of(data_dir)


@functools.cache
def _sent(recording: Path) -> Sent:
    return sent_in(recording)


def check(market: Market, paths: LakePaths, plan: FaultPlan | None = None, **given: Any) -> None:
    sent = _sent(market.recording)
    exchange = record_through(market.recording, paths, sent, faults=plan, **given)
    if plan is not None:
        assert len(exchange.fault_log) >= len(plan.faults) > 0
    check_lake(paths, sent)


def plan_of(
    market: Market, seed: int, kind: FaultKind | None = None, every_ms: int = 6_000
) -> FaultPlan:
    kinds = None if kind is None else [kind]
    return FaultPlan.random(
        seed, market.length_ms, kinds, mean_interval_ms=every_ms, quiet_tail_ms=QUIET_TAIL_MS
    )


@pytest.mark.parametrize("name", ["recorded", pytest.param("synthetic", marks=LONG)])
def test_a_sound_connection_is_recorded_exactly(
    market_of: MarketOf, paths: LakePaths, name: str
) -> None:
    market = market_of(name)
    check(market, paths)
    sent, found = _sent(market.recording).books, stored_books(paths)
    assert holes(paths, "depth") == holes(paths, "trades") == []
    first = min(sent[key][0] for key in found)  # trades are subscribed to first
    assert {key for key, book in sent.items() if book[0] >= first} == set(found)


@pytest.mark.parametrize(
    ("seed", "redundancy"),
    [(1, 1), (2, 2), *(pytest.param(s, r, marks=LONG) for s in range(3, 8) for r in (1, 2))],
)
def test_under_mixed_faults_what_is_missing_is_repaired_or_named(
    market_of: MarketOf, paths: LakePaths, seed: int, redundancy: int
) -> None:
    market = market_of("synthetic")
    check(market, paths, plan_of(market, seed), redundancy=redundancy)


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize("redundancy", [1, 2])
@pytest.mark.parametrize("kind", RECOVERABLE)
def test_every_kind_of_fault_is_survived(
    market_of: MarketOf, paths: LakePaths, kind: FaultKind, redundancy: int
) -> None:
    market = market_of("synthetic")
    check(market, paths, plan_of(market, 7, kind), redundancy=redundancy)
