"""Holes of a recording are filled from a real REST server; each trade is stored once."""

from __future__ import annotations

import asyncio
import errno
import os

import numpy as np
import pytest

from binance_api.rest import RestClient, RestSettings
from binance_api.weight_budget import WeightBudgetSettings
from collectors.repair import RecorderRepair, RepairSettings
from domain.errors import StorageError
from domain.market import Market
from lake.atomic import Step
from lake.paths import LakePaths
from lake.repaired_rows import runs_of
from lake.stream_files import trade_table
from tests.integration.repair_scene import (
    DAY_MS,
    HOLE,
    HOUR_MS,
    LOST,
    MIDNIGHT_MS,
    NOON_MS,
    OPEN,
    REPAIRED,
    SYMBOL,
    Scene,
    expected_rows,
    run,
    until,
)
from tests.lake_fakes import DyingWriter, FullDisk, Killed
from tests.stream_samples import read_all, sources, stored_ids, write


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_a_hole_within_reach_is_filled_from_rest_with_exactly_the_missing_trades(scene):
    async def go():
        async with scene.at():
            rows = scene.trades(NOON_MS - 4 * HOUR_MS, NOON_MS - HOUR_MS)
            ids = scene.lack(rows)
            assert len(ids) > 1_000  # more than a page
            await scene.repair().work_off()
            assert read_all(scene.paths) == expected_rows(rows[1:-1], "rest")
            assert scene.states() == [(ids[0], ids[-1], REPAIRED, "rest")]
            assert len(scene.files()) == 1
            scene.restart()
            assert scene.states() == [(ids[0], ids[-1], REPAIRED, "rest")]

    run(go())


def test_small_holes_of_several_symbols_go_into_one_file(scene):
    async def go():
        async with scene.at():
            wanted = {}
            for symbol in (SYMBOL, "ETHUSDT"):
                for hours in (3, 2):
                    start_ms = NOON_MS - hours * HOUR_MS
                    rows = scene.trades(start_ms, start_ms + 60_000, symbol)
                    wanted.setdefault(symbol, []).extend(scene.lack(rows, symbol))
            await scene.repair().work_off()
            for symbol, ids in wanted.items():
                assert stored_ids(scene.paths, symbol) == ids
            assert len(scene.files()) == 1
            assert {gap.state for gap in scene.ledger.all()} == {REPAIRED}

    run(go())


def test_of_a_long_hole_rest_gives_the_end_and_the_archive_the_beginning(scene):
    async def go():
        async with scene.at(NOON_MS + 2 * DAY_MS):
            edge_ms = NOON_MS
            rows = scene.trades(edge_ms - 2 * HOUR_MS, edge_ms + 2 * HOUR_MS)
            ids = scene.lack(rows)
            await scene.repair().work_off()
            found = sources(scene.paths)
            assert stored_ids(scene.paths) == ids
            early = rows["transact_time_ms"][1:-1] < edge_ms
            assert [found[n] for n in ids] == ["archive" if e else "rest" for e in early]

    run(go())


def test_trades_that_rest_lacks_come_from_the_archive(scene):
    async def go():
        async with scene.at(MIDNIGHT_MS + DAY_MS + 12 * HOUR_MS):
            rows = scene.trades(*HOLE)
            ids = scene.lack(rows)
            lost = ids[5:9] + ids[-1:]
            scene.exchange._feed.desk.lost.update((SYMBOL, number) for number in lost)
            await scene.repair().work_off()
            found = sources(scene.paths)
            assert stored_ids(scene.paths) == ids
            assert {n for n in ids if found[n] == "archive"} == set(lost)

    run(go())


def test_a_hole_of_unknown_extent_is_left_to_the_recorder_that_will_find_its_end(scene):
    async def go():
        async with scene.at():
            rows = scene.trades(NOON_MS - 2 * HOUR_MS, NOON_MS)
            first = int(rows["agg_trade_id"][0])
            scene.ledger.found(
                *("trades", SYMBOL, first, None),
                cause="recorder off",
                at_ns=1,
                from_ms=int(rows["transact_time_ms"][0]),
            )
            await scene.repair(recorded=[SYMBOL]).work_off()
            assert scene.states() == [(first, None, OPEN, None)]
            assert scene.files() == []
            await scene.repair().work_off()  # without a recorder: up to now
            newest = stored_ids(scene.paths)[-1]
            assert newest - first + 1 == len(stored_ids(scene.paths)) >= len(rows)
            assert sorted(scene.states()) == [
                (first, newest, REPAIRED, "rest"),
                (newest + 1, None, OPEN, None),
            ]

    run(go())


@pytest.mark.parametrize(("days_later", "source"), [(0, "rest"), (3, "archive")])
def test_a_hole_known_by_its_time_only_is_filled_with_all_of_that_time(scene, days_later, source):
    async def go():
        async with scene.at(NOON_MS + days_later * DAY_MS):
            start_ms, end_ms = NOON_MS - 3 * HOUR_MS, NOON_MS - HOUR_MS
            rows = scene.trades(start_ms, end_ms)
            stored = rows[10:20].copy()
            write(scene.paths, trade_table(stored, [SYMBOL], "stream"))
            scene.ledger.found(
                *("trades", SYMBOL, None, None),
                cause="x",
                at_ns=1,
                from_ms=start_ms,
                until_ms=end_ms,
            )
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == rows["agg_trade_id"].tolist()
            (gap,) = scene.ledger.all()
            assert (gap.state, gap.repaired_by) == (REPAIRED, source)

    run(go())


def test_a_trade_that_arrives_while_rest_is_asked_is_not_stored_again(scene):
    async def go():
        async with scene.at():
            rows = scene.trades(NOON_MS - 2 * HOUR_MS, NOON_MS - HOUR_MS)
            ids = scene.lack(rows)
            ask = scene.rest.agg_trades

            async def slow(*args, **options):
                reply = await ask(*args, **options)
                scene.ledger.resolve(
                    *("trades", SYMBOL, ids[0], ids[2], REPAIRED), at_ns=2, by="stream"
                )
                return reply

            scene.rest.agg_trades = slow
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == ids[3:]
            assert sorted(scene.states()) == [
                (ids[0], ids[2], REPAIRED, "stream"),
                (ids[3], ids[-1], REPAIRED, "rest"),
            ]

    run(go())


def test_a_hole_in_depth_is_permanent_at_once(scene):
    async def go():
        async with scene.at():
            scene.ledger.found(
                *("depth", SYMBOL, None, None), cause="x", at_ns=1, from_ms=1_000, until_ms=2_000
            )
            await scene.repair().work_off()
            assert [gap.state for gap in scene.ledger.all()] == [LOST]
            assert scene.rest.statistics()["requests"] == 0

    run(go())


def test_a_clock_that_jumps_changes_nothing_of_what_is_asked(scene):
    async def go():
        async with scene.at():
            ids = scene.lack(scene.trades(NOON_MS - 2 * HOUR_MS, NOON_MS - HOUR_MS))
            repair = scene.repair()
            jumps = iter([0, 10**19 // 2, 1, 10**18] * 100)
            repair._wall_ns = repair._writer._wall_ns = lambda: next(jumps)
            await repair.work_off()
            assert sources(scene.paths) == dict.fromkeys(ids, "rest")

    run(go())


def test_every_step_of_a_repair_may_be_its_last(scene):
    """Over midnight, so that a batch is two files; then the same again from the archive."""

    async def go(now_ms, source):
        steps = 0
        async with scene.at(now_ms):
            rows = scene.trades(MIDNIGHT_MS - HOUR_MS // 4, MIDNIGHT_MS + HOUR_MS // 4)
            ids = rows["agg_trade_id"].tolist()[1:-1]
            for kill_at in range(1, 50):
                scene.paths = LakePaths.of(scene.folder / f"{source}{kill_at}")
                scene.restart()
                scene.lack(rows)
                scene.restart()
                writer = DyingWriter(kill_at)
                try:
                    await scene.repair(hook=writer).work_off()
                except* Killed:
                    steps += 1
                scene.restart()  # memory is gone, whatever it knew
                await scene.repair().work_off()
                assert stored_ids(scene.paths) == ids, (source, kill_at)
                assert scene.ledger.missing_count(SYMBOL) == 0
                assert set(sources(scene.paths).values()) == {source}
                if len(writer.steps) < kill_at:
                    break
        assert steps == 10  # two files of five steps each

    run(go(NOON_MS, "rest"))
    run(go(NOON_MS + 4 * DAY_MS, "archive"))


def test_a_full_disk_delays_a_repair_and_nothing_is_stored_twice(scene):
    async def go():
        async with scene.at():
            rows = scene.trades(MIDNIGHT_MS - HOUR_MS // 4, MIDNIGHT_MS + HOUR_MS // 4)
            ids = scene.lack(rows)
            disk = SecondFileRefused()
            repair = scene.repair(hook=disk)
            with pytest.raises(StorageError, match="free some space"):
                await repair.work_off()
            assert 0 < len(stored_ids(scene.paths)) < len(ids)  # the older date is there
            assert {gap.state for gap in scene.ledger.all()} == {OPEN}
            disk.is_full = False
            await repair.work_off()
            assert stored_ids(scene.paths) == ids
            assert scene.ledger.missing_count(SYMBOL) == 0

    run(go())


def test_a_write_the_system_itself_refuses_harms_nothing(scene):
    resource = pytest.importorskip("resource")  # POSIX

    async def go():
        async with scene.at():
            ids = scene.lack(scene.trades(NOON_MS - 2 * HOUR_MS, NOON_MS - HOUR_MS))
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
            try:
                with pytest.raises(StorageError, match="cannot write"):
                    await scene.repair().work_off()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            folder = scene.paths.stream("trades", "2024-07-19")
            assert list(folder.iterdir()) == []
            scene.restart()
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == ids

    run(go())


@pytest.mark.parametrize("now_ms", [NOON_MS, NOON_MS + 4 * DAY_MS])
def test_a_folder_that_became_read_only_is_said_and_tried_again(scene, now_ms):
    async def go():
        async with scene.at(now_ms):
            ids = scene.lack(scene.trades(*HOLE))

            def refuse(step, path):
                if refuse.is_on:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

            refuse.is_on = True
            repair = scene.repair(hook=refuse)
            with pytest.raises(StorageError, match="Read-only file system"):
                await repair.work_off()
            refuse.is_on = False
            await repair.work_off()
            assert stored_ids(scene.paths) == ids

    run(go())


class SecondFileRefused(FullDisk):
    def __init__(self):
        super().__init__(Step.WRITTEN)
        self.files = 0

    def __call__(self, step, path):
        self.files += step is Step.CREATED
        if self.files > 1:
            super().__call__(step, path)


def test_the_task_goes_on_through_failures_of_disk_and_exchange(scene):
    async def go():
        settings = RepairSettings(grace_s=0.0, tick_s=0.01, retry_s=0.01, retry_cap_s=0.02)
        nowhere = RestSettings(
            base_url="http://127.0.0.1:9",
            budget=WeightBudgetSettings(folder=scene.folder),
            max_attempts=1,
        )
        async with scene.at(), RestClient(nowhere) as gone:
            rows = scene.trades(NOON_MS - 2 * HOUR_MS, NOON_MS - HOUR_MS)
            disk = FullDisk()
            repair = scene.repair(hook=disk, settings=settings)
            repair._monotonic = repair.archive._monotonic = asyncio.get_running_loop().time
            there, repair._history = repair._history, gone
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(repair.run())
                ids = scene.lack(rows)
                repair.wake()
                await until(lambda: repair.statistics()["rest_failures"] >= 2)
                repair._history = there
                await until(lambda: repair.statistics()["storage_failures"] >= 2)
                assert scene.files() == []
                disk.is_full = False
                await until(lambda: scene.ledger.missing_count(SYMBOL) == 0)
                task.cancel()
            assert stored_ids(scene.paths) == ids

    run(go())


def test_spot_history_reaches_back_as_far_as_it_is_asked(scene):
    """The 48 hours are a rule of futures."""

    async def go():
        async with scene.at(NOON_MS + 3 * DAY_MS):
            scene.lack(scene.trades(*HOLE))
            repair = RecorderRepair(
                scene.paths,
                scene.ledger,
                scene.rest,
                scene.vision,
                RepairSettings(grace_s=0.0),
                market=Market.SPOT,
                market_ms=scene.exchange.clock.now_ms,
                wall_ns=lambda: 2,
                monotonic=lambda: 0.0,
            )
            await repair.work_off()
            assert scene.rest.statistics()["requests"] > 0

    run(go())


def test_runs_of_ids_are_found():
    assert runs_of(np.array([1, 2, 3, 7, 9, 10])) == [(1, 3), (7, 7), (9, 10)]
    assert runs_of(np.array([], dtype=np.int64)) == []
