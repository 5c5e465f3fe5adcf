"""Live rows over a broken connection equal the replay's, column by column."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from simulator.faults import Fault, FaultKind, FaultPlan
from tests.integration.live_parity import (
    Rows,
    check_parity,
    describe,
    replayed,
    run_live,
)
from tests.integration.live_recordings import MIDNIGHT_MS, cut, record_synthetic

RECORDING = "recordings/usdm_20240718.ndjson.gz"
MARKETS = ("synthetic", "recorded")
SHORT_S = 80.0  # over midnight
QUIET_TAIL_MS = 15_000
RECOVERABLE = [kind for kind in FaultKind if kind is not FaultKind.REST_LOST_TRADES]


class Market(msgspec.Struct):
    """A recording and what its replay stores."""

    recording: Path
    truth: Rows
    length_ms: int


@pytest.fixture(scope="module")
def market_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str, bool], Market]:
    """Recordings by name, short or whole; made and replayed once per process."""
    made: dict[tuple[str, bool], Market] = {}

    def market(name: str, is_short: bool) -> Market:
        if (name, is_short) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{'short' if is_short else 'whole'}")
            path, length_s = folder / "recording.ndjson.gz", SHORT_S if is_short else 180.0
            if name == "synthetic":
                start_ms = MIDNIGHT_MS - int(length_s * 600)
                record_synthetic(path, length_s=length_s, start_ms=start_ms)
            else:
                whole = request.getfixturevalue("recordings_dir") / RECORDING
                if is_short:
                    cut(whole, path, from_s=135.0, length_s=length_s)
                else:
                    path, length_s = whole, 480.0
            truth = replayed(path, folder / "truth")
            made[name, is_short] = Market(path, truth, int(length_s * 1_000))
        return made[name, is_short]

    return market


@pytest.fixture(autouse=True)
def _own_weight_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are used again: no test may inherit another one's ban."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def check(market: Market, folder: Path, plan: FaultPlan | None = None, **given: object) -> None:
    """Run the bot through a market with these faults, then compare."""
    speed = given.pop("speed", 40.0)
    exchange = asyncio.run(
        run_live(
            market.recording,
            folder,
            until=market.truth,
            faults=plan,
            speed=float(str(speed)),
            **given,
        )
    )
    if plan is not None:
        assert len(exchange.fault_log) >= len(plan.faults)
    check_parity(folder, market.truth)


@pytest.mark.parametrize("name", MARKETS)
def test_a_sound_connection_gives_the_replays_rows(
    market_of: Callable[[str, bool], Market], data_dir: Path, name: str
) -> None:
    check(market_of(name, True), data_dir, speed=60.0)


@pytest.mark.parametrize("kind", RECOVERABLE)
def test_after_one_kind_of_fault_the_rows_are_the_replays(
    market_of: Callable[[str, bool], Market], data_dir: Path, kind: FaultKind
) -> None:
    market = market_of("synthetic", True)
    plan = FaultPlan.random(
        7, market.length_ms, [kind], mean_interval_ms=8_000, quiet_tail_ms=QUIET_TAIL_MS
    )
    assert plan.faults
    check(market, data_dir, plan, speed=60.0)


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize("redundancy", [1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_after_mixed_faults_the_rows_are_the_replays(
    market_of: Callable[[str, bool], Market],
    data_dir: Path,
    name: str,
    redundancy: int,
    seed: int,
) -> None:
    market = market_of(name, True)
    plan = FaultPlan.random(
        seed, market.length_ms, mean_interval_ms=5_000, quiet_tail_ms=QUIET_TAIL_MS
    )
    check(market, data_dir, plan, speed=60.0, ws_redundancy=redundancy)
