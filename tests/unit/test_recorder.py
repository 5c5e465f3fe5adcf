"""The recorder's promises, one by one: each frame once, what is missing named, memory bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from binance_api.endpoints import Route
from collectors.recorder import Recorder
from collectors.recording import open_folder
from domain.errors import DataFolderError, StorageError
from domain.events import ConnectionEvent, ConnectionState, GapState
from domain.market import Market
from lake.atomic import Step
from lake.frame_journal import segments_in
from lake.gap_ledger import Gap, read_gaps
from lake.lock import FolderLock
from lake.paths import LakePaths
from lake.stream_files import Kind, read_stream_file, stream_dates, stream_files
from tests.lake_fakes import FullDisk
from tests.recorder_frames import (
    START_MS,
    STEP_MS,
    SYMBOL,
    batch_of,
    books_of,
    depth_frame,
    record,
    recorder_of,
    trade_frame,
    trades_of,
)

PATIENCE_S = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> LakePaths:
    return LakePaths.of(tmp_path)


def at(number: int) -> int:
    return START_MS + STEP_MS * number


def stored(paths: LakePaths, kind: Kind, column: str) -> list[Any]:
    return [
        value
        for date in stream_dates(paths, kind)
        for path in stream_files(paths, kind, date)
        for value in read_stream_file(path, kind).column(column).to_pylist()
    ]


def trade_ids(paths: LakePaths) -> list[int]:
    return stored(paths, "trades", "agg_trade_id")


def book_times(paths: LakePaths) -> list[int]:
    return stored(paths, "depth", "transact_time_ms")


def named(paths: LakePaths, kind: Kind) -> list[Gap]:
    return [gap for gap in read_gaps(paths.gaps, "recorder") if gap.kind == kind]


def lost(route: Route, socket_id: int, reason: str) -> ConnectionEvent:
    return connection(route, socket_id, ConnectionState.DISCONNECTED, reason)


def connection(
    route: Route, socket_id: int, state: ConnectionState, reason: str = ""
) -> ConnectionEvent:
    return ConnectionEvent(
        route=route.value, socket_id=socket_id, state=state, reason=reason, at_ns=0
    )


# --- trades -------------------------------------------------------------------------------


def test_what_two_sockets_bring_is_stored_once(paths: LakePaths) -> None:
    recorder = record(paths, trades_of(range(5)), trades_of(range(3, 8)), trades_of([1]))
    assert trade_ids(paths) == list(range(8))
    assert recorder.statistics()["duplicates"] == 3
    assert named(paths, "trades") == []


def test_missing_ids_are_named_with_the_times_around_them(paths: LakePaths) -> None:
    record(paths, trades_of([1, 2, 6, 7]))
    (gap,) = named(paths, "trades")
    assert (gap.symbol, gap.first_id, gap.last_id) == (SYMBOL, 3, 5)
    assert (gap.from_ms, gap.until_ms) == (at(2), at(6))
    assert gap.repairable_until_ms == at(6) + 48 * 3_600_000
    assert gap.state is GapState.OPEN
    assert gap.cause == "missing in the stream"


def test_trades_that_come_late_fill_the_hole_that_was_entered(paths: LakePaths) -> None:
    async def go() -> None:
        recorder = recorder_of(paths)
        await recorder.open()
        recorder.on_frames(trades_of([1, 2, 6, 7]))
        await recorder.flush()
        recorder.on_frames(trades_of([4, 5]))
        await recorder.finish()

    asyncio.run(go())
    assert sorted(trade_ids(paths)) == [1, 2, 4, 5, 6, 7]
    found = {
        (gap.first_id, gap.last_id): (gap.state, gap.repaired_by) for gap in named(paths, "trades")
    }
    assert found == {(3, 3): (GapState.OPEN, None), (4, 5): (GapState.REPAIRED, "stream")}


def test_reordered_trades_are_no_hole(paths: LakePaths) -> None:
    async def go() -> None:
        recorder = recorder_of(paths)
        await recorder.open()
        recorder.on_frames(trades_of([1, 4]))
        recorder.holes.enter(min_age_s=1.0)
        recorder.on_frames(trades_of([3, 2]))
        await recorder.finish()

    asyncio.run(go())
    assert trade_ids(paths) == [1, 2, 3, 4]
    assert named(paths, "trades") == []


def test_a_hole_says_which_loss_caused_it(paths: LakePaths) -> None:
    async def go() -> None:
        recorder = recorder_of(paths)
        await recorder.open()
        for route, socket_id in ((Route.TRADES, 1), (Route.DEPTH, 2)):
            recorder.on_connection(connection(route, socket_id, ConnectionState.HEALTHY))
        recorder.on_frames(trades_of([1]))
        recorder.on_frames(books_of([1]))
        recorder.on_connection(lost(Route.TRADES, 1, "closed with code 1006"))
        recorder.on_connection(lost(Route.DEPTH, 2, "no pong"))
        recorder.on_frames(trades_of([3, 6]))
        recorder.on_frames(books_of([3, 6]))
        await recorder.finish()

    asyncio.run(go())
    causes = [(g.first_id, g.cause) for g in named(paths, "trades")]
    assert [first for first, _ in causes] == [2, 4]
    assert causes[0][1] == "disconnected: closed with code 1006"
    assert [(g.from_ms, g.until_ms, g.cause) for g in named(paths, "depth")] == [
        (at(1), at(3), "disconnected: no pong"),
        (at(3), at(6), "update chain broken"),
    ]


def test_a_second_payload_of_a_known_id_is_quarantined(paths: LakePaths) -> None:
    changed = batch_of(Route.TRADES, [trade_frame(2, q="9.999")])
    record(paths, trades_of([1, 2, 3]), changed)
    assert trade_ids(paths) == [1, 2, 3]
    assert stored(paths, "trades", "quantity") == [0.002, 0.003, 0.004]
    (file,) = paths.quarantine.glob("*.jsonl")
    assert "id already seen" in json.loads(file.read_text())["reason"]


# --- depth --------------------------------------------------------------------------------


def test_a_broken_update_chain_is_named(paths: LakePaths) -> None:
    record(paths, books_of([1, 2, 5, 6]))
    assert book_times(paths) == [at(n) for n in (1, 2, 5, 6)]
    (gap,) = named(paths, "depth")
    assert (gap.from_ms, gap.until_ms, gap.state) == (at(2), at(5), GapState.LOST)


def test_another_sockets_book_that_overlaps_is_no_hole(paths: LakePaths) -> None:
    """Two sockets batch updates differently: its ``pu`` lies before our last ``u``."""
    other = depth_frame(3).replace(b'"pu":30', b'"pu":25')
    record(paths, books_of([1, 2]), batch_of(Route.DEPTH, [other], socket_id=9), books_of([4]))
    assert book_times(paths) == [at(n) for n in (1, 2, 3, 4)]
    assert named(paths, "depth") == []


@pytest.mark.parametrize(
    "bids",
    [
        '[["64002.00","1"],["64001.00","0"]]',
        '[["64002.00","1"],["64003.00","1"]]',
        '[["64002.00","1"],["nan","1"]]',
        '[["64002.00","1"],["x","1"]]',
        '[["64002.00","1"],["64001.00"]]',
        '[["64002.00","1"],["64001.00","1","7"]]',
    ],
)
def test_a_book_with_a_faulty_level_is_left_out_and_named(paths: LakePaths, bids: str) -> None:
    frames = [depth_frame(1), depth_frame(2, bids=bids), depth_frame(3)]
    record(paths, batch_of(Route.DEPTH, frames))
    assert book_times(paths) == [at(1), at(3)]
    (gap,) = named(paths, "depth")
    assert gap.from_ms is not None
    assert gap.until_ms is not None
    assert gap.from_ms <= at(2) < gap.until_ms
    assert len(list(paths.quarantine.glob("*.jsonl"))) == 1


def test_books_with_one_side_or_none_are_stored(paths: LakePaths) -> None:
    record(paths, batch_of(Route.DEPTH, [depth_frame(1, bids="[]"), depth_frame(2)]))
    assert stored(paths, "depth", "bids") == [[], [[64002.0, 1.5], [64001.0, 2.0]]]


def test_spot_books_have_no_chain_so_that_lost_connections_name_their_holes(
    paths: LakePaths,
) -> None:
    def books(*numbers: int) -> list[bytes]:
        return [
            f'{{"stream":"btcusdt@depth20@100ms","data":{{"lastUpdateId":{n},'
            f'"bids":[["1","2"]],"asks":[["2","2"]]}}}}'.encode()
            for n in numbers
        ]

    async def go() -> None:
        recorder = recorder_of(paths, market=Market.SPOT)
        await recorder.open()
        recorder.on_connection(connection(Route.DEPTH, 1, ConnectionState.HEALTHY))
        recorder.on_frames(batch_of(Route.DEPTH, books(1, 5)))
        recorder.on_connection(lost(Route.DEPTH, 1, "reset"))
        recorder.on_frames(batch_of(Route.DEPTH, books(9, 12)))
        await recorder.finish()

    asyncio.run(go())
    assert stored(paths, "depth", "final_update_id") == [1, 5, 9, 12]
    assert [gap.cause for gap in named(paths, "depth")] == ["disconnected: reset"]


# --- restarts -----------------------------------------------------------------------------


def test_the_time_between_two_runs_is_named(paths: LakePaths) -> None:
    record(paths, trades_of(range(5)), books_of(range(5)))
    record(paths, trades_of(range(8, 10)), books_of(range(8, 10)))
    (trades,), (books,) = named(paths, "trades"), named(paths, "depth")
    assert (trades.first_id, trades.last_id) == (5, 7)
    assert (books.from_ms, books.until_ms) == (at(4), at(8))
    assert trades.cause == books.cause == "recorder was not running"


def test_a_run_that_missed_nothing_names_nothing(paths: LakePaths) -> None:
    record(paths, trades_of(range(5)), books_of(range(5)))
    record(paths, trades_of(range(3, 8)), books_of(range(3, 8)))
    assert sorted(trade_ids(paths)) == list(range(8))
    assert len(book_times(paths)) == 8
    assert read_gaps(paths.gaps, "recorder") == []


def test_a_symbol_left_out_for_a_while_has_a_hole(paths: LakePaths) -> None:
    both = (SYMBOL, "ETHUSDT")
    record(paths, trades_of([1]), trades_of([1], "ETHUSDT"), symbols=both)
    record(paths, trades_of([2]), symbols=(SYMBOL,))
    record(paths, trades_of([3]), trades_of([3], "ETHUSDT"), symbols=both)
    (gap,) = named(paths, "trades")
    assert (gap.symbol, gap.first_id, gap.last_id) == ("ETHUSDT", 2, 2)


def test_frames_of_symbols_no_longer_recorded_are_recovered_all_the_same(paths: LakePaths) -> None:
    async def die() -> None:
        recorder = recorder_of(paths, symbols=(SYMBOL, "ETHUSDT"))
        await recorder.open()
        recorder.on_frames(trades_of([1], "ETHUSDT"))
        await recorder.sync()

    asyncio.run(die())
    record(paths, symbols=("SOLUSDT",))
    assert stored(paths, "trades", "symbol") == ["ETHUSDT"]


def test_a_damaged_file_is_written_anew_from_the_journal(paths: LakePaths) -> None:
    """A flush that died after its rename left both; the file was then damaged by somebody."""

    async def die() -> None:
        recorder = recorder_of(paths)
        await recorder.open()
        recorder.on_frames(trades_of(range(5)))
        await recorder.flush()  # its segment goes with the next sync, which never comes

    asyncio.run(die())
    (file,) = stream_files(paths, "trades", "2024-07-18")
    file.write_bytes(file.read_bytes()[:-9])
    record(paths)
    assert trade_ids(paths) == list(range(5))


# --- flushing and the disk ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[asyncio.Task[None]]:
    await recorder.open()
    task = asyncio.ensure_future(recorder.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(StorageError):
            await recorder.finish()


async def until_flushed(recorder: Recorder) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not recorder.statistics()["flushes"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "trigger", [{"flush_max_items": 10}, {"flush_max_bytes": 2_000}, {"flush_interval_s": 0.05}]
)
def test_frames_are_flushed_by_count_size_or_time(
    paths: LakePaths, trigger: dict[str, Any]
) -> None:
    async def go() -> None:
        recorder = recorder_of(paths, **({"flush_interval_s": 600.0} | trigger))
        async with running(recorder):
            recorder.on_frames(trades_of(range(20)))
            await until_flushed(recorder)

    asyncio.run(go())
    assert trade_ids(paths) == list(range(20))


def test_while_the_disk_refuses_frames_are_kept_and_written_later(paths: LakePaths) -> None:
    disk = FullDisk(Step.SYNCED)
    disk.is_full = False

    async def go() -> Recorder:
        recorder = recorder_of(paths, hook=disk, journal_sync_s=0.01, retry_s=0.01)
        async with running(recorder):
            disk.is_full = True
            recorder.on_frames(trades_of(range(5)))
            recorder._flush_now.set()
            async with asyncio.timeout(PATIENCE_S):
                while not recorder.statistics()["failed_flushes"]:
                    await asyncio.sleep(0.01)
            recorder.on_frames(trades_of(range(5, 9)))
            disk.is_full = False
            await until_flushed(recorder)
        return recorder

    recorder = asyncio.run(go())
    assert recorder.statistics()["waiting_bytes"] == 0
    assert sorted(trade_ids(paths)) == list(range(9))
    assert len(segments_in(paths.stream_journal)) == 1


def test_a_disk_that_goes_on_refusing_ends_the_run_before_memory_does(paths: LakePaths) -> None:
    disk = FullDisk(Step.SYNCED)
    disk.is_full = False

    async def go() -> None:
        recorder = recorder_of(
            paths, hook=disk, journal_sync_s=0.01, retry_s=0.01, max_pending_bytes=3_000
        )
        async with running(recorder) as task:
            disk.is_full = True
            recorder.on_frames(trades_of(range(100)))
            await asyncio.wait([task], timeout=PATIENCE_S)
            error = task.exception()
            assert isinstance(error, ExceptionGroup)
            assert "too many frames wait for the disk" in str(error.exceptions[0])
            assert "No space left" in str(error.exceptions[0])

    asyncio.run(go())


# --- who may record -----------------------------------------------------------------------


def test_a_second_recorder_is_refused_and_a_bot_is_not(paths: LakePaths) -> None:
    source = {"market": "um", "host": "somewhere"}
    refused = pytest.raises(DataFolderError, match="in use by the recorder with pid")
    with FolderLock(paths.root, "bot"), open_folder(paths, source), refused:
        open_folder(paths, source).__enter__()
    with open_folder(paths, source):
        pass


def test_two_data_folders_with_one_raw_folder_are_one_place(tmp_path: Path) -> None:
    first, second = (LakePaths.of(tmp_path / name, raw=tmp_path / "raw") for name in ("one", "two"))
    source = {"market": "um", "host": "somewhere"}
    refused = pytest.raises(DataFolderError, match="in use by the recorder with pid")
    with open_folder(first, source), refused:
        open_folder(second, source).__enter__()
