"""What ``run --record`` stored, replayed: the rows the live run stored, holes repaired, and again."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from pathlib import Path

import msgspec
import pytest

from config import Settings
from domain.events import GapState, Signal
from lake.gap_ledger import read_gaps
from lake.paths import LakePaths
from lake.signal_store import signal_store
from lake.stream_files import read_stream_file, stream_dates, stream_files
from market_orchestrator.market_orchestrator import replay
from simulator.ai_server import ScriptedAI
from simulator.faults import Fault, FaultKind, FaultPlan
from simulator.settings import SimulatorSettings
from tests.ai_samples import CANARY
from tests.integration.conftest import Market, MarketOf
from tests.integration.live_parity import (
    Rows,
    difference,
    differences,
    repeated_revisions,
    rows_of,
    running,
    serving,
)
from tests.integration.live_recordings import MIDNIGHT_MS, record_synthetic
from tests.integration.recorder_runs import stored_books
from tests.unit.test_replay_days import store

SPEED = 40.0
KEYS = {f"{name}_api_key": key for name, key in CANARY.items()}


def record(market: Market, folder: Path, plan: FaultPlan | None = None) -> Rows:
    """The bot with the recorder beside it, until both stores are whole; the bot's rows."""

    def is_repaired() -> bool:
        gaps = read_gaps(folder / "gaps", "recorder")
        return all(gap.state is GapState.REPAIRED for gap in gaps if gap.kind == "trades")

    async def go() -> None:
        simulated = SimulatorSettings(recording=market.recording, speed=SPEED, faults=plan)
        async with (
            serving(simulated) as exchange,
            running(exchange, folder, record=True, stream_flush_interval_seconds=0.5) as run,
        ):
            await run.until_equal(market.truth)
            if plan is not None:
                assert len(exchange.fault_log) >= len(plan.faults) > 0
                await run.until(lambda _: bool(sources(folder) == {"stream", "rest"}))
                await run.until(lambda _: is_repaired())

    asyncio.run(go())
    return rows_of(folder)


@pytest.fixture(scope="module")
def recorded(market_of: MarketOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a run without faults."""
    folder = tmp_path_factory.mktemp("recorded") / "live"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder.parent))
        record(market_of("synthetic"), folder)
    return folder


def sources(folder: Path) -> set[str]:
    paths = LakePaths.of(folder)
    return {
        str(source)
        for date in stream_dates(paths, "trades")
        for path in stream_files(paths, "trades", date)
        for source in read_stream_file(path, "trades", columns=["source"])["source"].to_pylist()
    }


def replay_days(folder: Path, into: Path, **given: object) -> Rows:
    settings = Settings(source=f"replay:{folder}", data_dir=into, headless=True, **given)
    assert settings.replay_path is not None
    assert asyncio.run(replay(settings, settings.replay_path)) == 0
    return rows_of(into)


def check(live: Rows, replayed: Rows) -> None:
    """Equal in every exactly-once column where both are complete, which all but the ends are.

    After the last trade nothing proves a window to a replay; the live run has asked REST.
    """
    end_ms = max(start_ms for _, start_ms in replayed)
    complete = {key for key, row in live.items() if row.complete and key[1] <= end_ms}
    assert complete <= {key for key, row in replayed.items() if row.complete}
    unlike = [(key, difference(live[key], replayed[key])) for key in sorted(complete)]
    assert not [entry for entry in unlike if entry[1]]
    assert len(complete) >= 24


def test_recorded_days_give_the_rows_the_live_run_stored(
    market_of: MarketOf, recorded: Path, tmp_path: Path
) -> None:
    market, live = market_of("synthetic"), rows_of(recorded)
    replayed = replay_days(recorded, tmp_path / "replayed")
    check(live, replayed)
    assert not differences(market.truth, replayed)
    seen = sum(row.depth_frames for row in replayed.values())
    assert seen > 0.9 * len(stored_books(LakePaths.of(recorded))) > 0
    again = replay_days(recorded / "raw" / "stream", tmp_path / "again")
    assert again == replayed  # to the last column
    replay_days(recorded, tmp_path / "replayed")  # adds nothing
    assert rows_of(tmp_path / "replayed") == replayed
    assert not repeated_revisions(tmp_path / "replayed")


def test_a_hole_repaired_from_rest_is_whole_when_replayed(
    market_of: MarketOf, tmp_path: Path
) -> None:
    market = market_of("synthetic")
    plan = FaultPlan(
        faults=(
            Fault(at_ms=20_000, kind=FaultKind.MISSING, route="trades", count=60),
            Fault(at_ms=62_000, kind=FaultKind.DISCONNECT, route="trades", mode="abort"),
        )
    )
    live = record(market, tmp_path / "live", plan)
    replayed = replay_days(tmp_path / "live", tmp_path / "replayed")
    check(live, replayed)
    assert not differences(market.truth, replayed)


def test_a_day_s_folder_replays_that_day(recorded: Path, tmp_path: Path) -> None:
    live = rows_of(recorded)
    days = recorded / "raw" / "stream"
    first, second = sorted(path.name for path in (days / "trades").iterdir())
    rows = replay_days(days / "depth" / second, tmp_path / "day")
    midnight_ms = min(start_ms for _, start_ms in rows)
    assert midnight_ms % 86_400_000 == 0
    later = {key: live[key] for key in rows if key[1] > midnight_ms}
    assert len(later) >= 10
    names = ["complete", "trade_count", "first_agg_id", "last_agg_id", "volume", "delta", "vwap"]
    for key, row in later.items():
        assert [getattr(rows[key], n) for n in names] == [getattr(row, n) for n in names]
    eve = replay_days(days / "trades" / first, tmp_path / "eve")
    assert max(start_ms for _, start_ms in eve) < midnight_ms


def test_recorded_days_replayed_with_recorded_answers_give_identical_signals(
    tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    lines = record_synthetic(
        tmp_path / "day.ndjson.gz", length_s=42.0, start_ms=MIDNIGHT_MS - 20_000
    )
    days = tmp_path / "recorded" / "raw" / "stream"
    store(LakePaths.of(tmp_path / "recorded"), gzip.decompress(lines.read_bytes()).splitlines())

    async def run(path: Path, name: str, **changes: object) -> list[Signal]:
        settings = Settings(
            source=f"replay:{path}", data_dir=tmp_path / name, headless=True, **KEYS, **changes
        )
        assert await replay(settings, path) == 0
        found = signal_store(settings.paths.signals).read_rows()
        return sorted(found, key=lambda s: (s.source == "rules", s.window_end_ms, s.symbol))

    async def scene() -> tuple[list[Signal], list[Signal], list[Signal]]:
        async with ScriptedAI() as server:
            for name, url in server.urls.items():
                clean_environment.setenv(f"{name.upper()}_BASE_URL", url)
            server.set_script("groq=ok*2,prose,ok*3,reset,ok")
            made = await run(days, "asked", ai="live", ai_min_interval_seconds=0)
            asked = len(server.requests)
            journal = tmp_path / "asked" / "ai"
            again = await run(days, "again", ai="replay", ai_journal_dir=journal)
            of_lines = await run(lines, "lines", ai="replay", ai_journal_dir=journal)
            assert len(server.requests) == asked
        return made, again, of_lines

    made, again, of_lines = asyncio.run(scene())
    assert {signal.source for signal in made} == {"groq", "dashscope", "rules"}
    assert len([signal for signal in made if signal.source != "rules"]) >= 12
    assert msgspec.json.encode(again) == msgspec.json.encode(made)
    # The frames the days were recorded from make the same contexts, so the same answers.
    assert [signal.context_hash for signal in of_lines] == [signal.context_hash for signal in made]
