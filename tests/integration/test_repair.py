"""Holes of a recording are filled from a real REST server and archive; each trade is stored once."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from binance_api.rest import RestClient, RestSettings
from binance_api.vision import VisionClient
from binance_api.weight_budget import WeightBudgetSettings
from collectors.repair import RecorderRepair, RepairSettings
from collectors.repair_archive import ArchiveRepairSettings
from domain.errors import StorageError
from domain.events import GapState
from domain.market import Market
from lake.atomic import Step
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.repaired_rows import runs_of
from lake.stream_files import stream_dates, stream_files, trade_table
from simulator.faults import FaultPlan
from simulator.server import SimulatedExchange, SimulatorSettings
from simulator.synthetic import SyntheticMarket
from simulator.vision_faults import VisionFault, VisionFaultKind
from tests.lake_fakes import DyingWriter, FullDisk, Killed
from tests.stream_samples import read_all, sources, stored_ids, write

try:
    import resource
except ImportError:  # Windows
    resource = None

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NOON_MS = calendar.timegm((2024, 7, 19, 12, 0, 0)) * 1_000
MIDNIGHT_MS = NOON_MS - 12 * HOUR_MS
SYMBOL = "BTCUSDT"
LOST, OPEN, REPAIRED, EXPIRED = (
    GapState.LOST,
    GapState.OPEN,
    GapState.REPAIRED,
    GapState.EXPIRED,
)


class Scene:
    """An exchange at some time, a data folder, and repairs of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = LakePaths.of(folder / "data")
        self.ledger = GapLedger(self.paths.gaps, "recorder")
        self.now_s = 0.0  # monotonic
        self.exchange: SimulatedExchange
        self.rest: RestClient
        self.vision: VisionClient

    @contextlib.asynccontextmanager
    async def at(self, now_ms=NOON_MS, *faults, symbols=(SYMBOL, "ETHUSDT"), **options):
        """The exchange at this time; the same trades at any time."""
        simulated = SimulatorSettings(
            start_ms=now_ms,
            rate_multiplier=0.02,
            symbols=symbols,
            faults=FaultPlan(vision=faults),
            **options,
        )
        async with SimulatedExchange(simulated) as self.exchange:
            budget = WeightBudgetSettings(folder=self.folder)
            rest = RestSettings(
                base_url=self.exchange.rest_url, budget=budget, max_attempts=1, deadline_s=5.0
            )
            vision = RestSettings(base_url=self.exchange.vision_url, max_attempts=1)
            async with RestClient(rest) as self.rest, VisionClient(vision) as self.vision:
                yield self

    def trades(self, start_ms, end_ms, symbol=SYMBOL):
        return self.exchange.source.between(symbol, start_ms, end_ms).rows

    def lack(self, rows, symbol=SYMBOL, **fields):
        """Enter a hole: all of these trades but the first and last are missing."""
        ids, times = rows["agg_trade_id"].tolist(), rows["transact_time_ms"].tolist()
        values = {
            "cause": "lost connection",
            "at_ns": 1,
            "from_ms": times[0],
            "until_ms": times[-1],
            "repairable_until_ms": times[-1] + 48 * HOUR_MS,
        }
        self.ledger.found("trades", symbol, ids[1], ids[-2], **(values | fields))
        self.ledger.flush()
        return ids[1:-1]

    def repair(self, *, hook=lambda _step, _path: None, settings=None, **options):
        return RecorderRepair(
            self.paths,
            self.ledger,
            self.rest,
            self.vision,
            settings or RepairSettings(grace_s=0.0),
            market=Market.UM,
            market_ms=self.exchange.clock.now_ms,
            wall_ns=lambda: 2,
            monotonic=lambda: self.now_s,
            hook=hook,
            **options,
        )

    def restart(self):
        """What another process finds."""
        self.ledger = GapLedger(self.paths.gaps, "recorder")

    def states(self, symbol=SYMBOL):
        gaps = [gap for gap in self.ledger.all() if gap.symbol == symbol]
        return [(g.first_id, g.last_id, g.state, g.repaired_by) for g in gaps]

    def files(self):
        dates = stream_dates(self.paths, "trades")
        return [path for date in dates for path in stream_files(self.paths, "trades", date)]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def expected_rows(rows, source, symbol=SYMBOL):
    rows = rows.copy()
    rows["symbol_index"] = 0
    for name in ("event_time_ms", "receive_time_ns", "quantity_ex_rpi"):
        rows[name] = -1
    return trade_table(rows, [symbol], source).to_pylist()


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


def test_what_is_beyond_rest_comes_from_the_daily_archive(scene):
    async def go():
        async with scene.at(NOON_MS + 3 * DAY_MS):
            rows = scene.trades(MIDNIGHT_MS - HOUR_MS, MIDNIGHT_MS + HOUR_MS)
            ids = scene.lack(rows)
            await scene.repair().work_off()
            assert read_all(scene.paths) == expected_rows(rows[1:-1], "archive")
            assert [state for *_, state, _ in scene.states()] == [REPAIRED] * len(scene.states())
            assert {by for *_, by in scene.states()} == {"archive"}
            assert scene.ledger.missing_count(SYMBOL) == 0
            assert stored_ids(scene.paths) == ids
            assert not (scene.paths.raw / "stream" / ".archives").exists()

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


def test_an_archive_that_is_late_is_asked_for_again_on_schedule(scene):
    async def go():
        late = VisionFault(kind=VisionFaultKind.LATE, delay_ms=10 * DAY_MS, span="daily")
        async with scene.at(NOON_MS + 3 * DAY_MS, late):
            ids = scene.lack(scene.trades(MIDNIGHT_MS + HOUR_MS, MIDNIGHT_MS + 2 * HOUR_MS))
            repair = scene.repair()
            await repair.work_off()
            assert scene.states() == [(ids[0], ids[-1], EXPIRED, None)]
            (gap,) = scene.ledger.all()
            assert gap.repairable_until_ms > NOON_MS + 30 * DAY_MS
            await repair.work_off()
            assert scene.vision.statistics()["requests"] == 1  # not due yet
            scene.now_s += 1_801
            await repair.work_off()
            assert scene.vision.statistics()["requests"] == 2
        async with scene.at(NOON_MS + 12 * DAY_MS, late):
            scene.restart()
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == ids
            assert scene.states() == [(ids[0], ids[-1], REPAIRED, "archive")]

    run(go())


def test_an_archive_is_not_asked_for_before_it_can_be_there(scene):
    async def go():
        async with scene.at(MIDNIGHT_MS + 2 * DAY_MS + HOUR_MS):
            rows = scene.trades(MIDNIGHT_MS + DAY_MS + HOUR_MS, MIDNIGHT_MS + DAY_MS + 2 * HOUR_MS)
            scene.lack(rows, state=EXPIRED)
            await scene.repair().work_off()
            assert scene.vision.statistics()["requests"] == 0

    run(go())


def test_what_an_edition_lacks_comes_from_the_one_that_replaces_it(scene):
    async def go():
        replaced = VisionFault(kind=VisionFaultKind.REPLACED, span="daily")
        async with scene.at(NOON_MS + 3 * DAY_MS, replaced):
            ids = scene.lack(scene.trades(MIDNIGHT_MS + HOUR_MS, MIDNIGHT_MS + 4 * HOUR_MS))
            repair = scene.repair()
            await repair.work_off()
            missing = set(ids) - set(stored_ids(scene.paths))
            assert 0 < len(missing) < len(ids) // 10
            assert scene.ledger.missing_count(SYMBOL) == len(missing)
            scene.now_s += 1_801
            await repair.work_off()
            assert stored_ids(scene.paths) == ids
            scene.now_s += 1_801
            assert scene.ledger.missing_count(SYMBOL) == 0

    run(go())


class FewTrades:
    """An archive's source whose months are small: only these hours were traded."""

    def __init__(self, source, start_ms, end_ms):
        self.symbols = source.symbols
        self.spec = source.spec
        self._source = source
        self._span = (start_ms, end_ms)

    def between(self, symbol, start_ms, end_ms):
        start_ms, end_ms = (
            max(start_ms, self._span[0]),
            max(self._span[0], min(end_ms, self._span[1])),
        )
        return self._source.between(symbol, start_ms, max(start_ms, end_ms))

    def before(self, symbol, due_ns, limit):
        return self._source.before(symbol, due_ns, limit)


def few_trades(start_ms, end_ms):
    market = SyntheticMarket(1, (SYMBOL,), start_ms=NOON_MS, rate_multiplier=0.02)
    return FewTrades(market, start_ms, end_ms)


ABSENT_DAYS = VisionFault(kind=VisionFaultKind.ABSENT, span="daily")
ABSENT_MONTHS = VisionFault(kind=VisionFaultKind.ABSENT, span="monthly")
HOLE = (MIDNIGHT_MS + HOUR_MS, MIDNIGHT_MS + 3 * HOUR_MS)


def test_without_the_days_archive_the_months_one_is_taken(scene):
    async def go():
        at_ms = MIDNIGHT_MS + 20 * DAY_MS
        async with scene.at(at_ms, ABSENT_DAYS, symbols=(SYMBOL,), archive=few_trades(*HOLE)):
            ids = scene.lack(scene.trades(*HOLE))
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == ids
            assert scene.states() == [(ids[0], ids[-1], REPAIRED, "archive")]

    run(go())


def test_what_day_and_month_lack_is_permanent(scene):
    async def go():
        at_ms = MIDNIGHT_MS + 20 * DAY_MS
        archive = few_trades(HOLE[0], HOLE[1] - HOUR_MS)
        async with scene.at(at_ms, symbols=(SYMBOL,), archive=archive):
            rows = scene.trades(*HOLE)
            ids = scene.lack(rows)
            await scene.repair().work_off()
            kept = [
                n
                for n, t in zip(ids, rows["transact_time_ms"][1:], strict=False)
                if t < HOLE[1] - HOUR_MS
            ]
            assert stored_ids(scene.paths) == kept
            assert scene.states()[0] == (kept[-1] + 1, ids[-1], LOST, None)
            lost = scene.ledger.all()[0]
            assert lost.from_ms == rows["transact_time_ms"][len(kept)]  # and only since then
            requests = scene.vision.statistics()["requests"]
            scene.restart()
            await scene.repair().work_off()
            assert scene.vision.statistics()["requests"] == requests

    run(go())


def test_before_the_month_appears_nothing_is_permanent(scene):
    async def go():
        archive = few_trades(0, 0)
        async with scene.at(NOON_MS + 3 * DAY_MS, symbols=(SYMBOL,), archive=archive):
            ids = scene.lack(scene.trades(*HOLE))
            await scene.repair().work_off()
            assert scene.states() == [(ids[0], ids[-1], EXPIRED, None)]

    run(go())


def test_an_archive_that_never_appears_is_given_up_long_after_its_month(scene):
    async def go():
        faults = (ABSENT_DAYS, ABSENT_MONTHS)
        for days, state in ((40, EXPIRED), (60, LOST)):
            async with scene.at(MIDNIGHT_MS + days * DAY_MS, *faults, symbols=(SYMBOL,)):
                if not scene.ledger.all():
                    scene.lack(scene.trades(*HOLE))
                scene.restart()
                await scene.repair().work_off()
                assert [gap.state for gap in scene.ledger.all()] == [state]

    run(go())


@pytest.mark.parametrize(
    "fault",
    [VisionFaultKind.HTML, VisionFaultKind.WRONG_CHECKSUM, VisionFaultKind.UNAVAILABLE],
)
def test_an_archive_that_fails_is_asked_again_sooner(scene, fault):
    async def go():
        async with scene.at(NOON_MS + 3 * DAY_MS, VisionFault(kind=fault, count=3)):
            ids = scene.lack(scene.trades(*HOLE))
            repair = scene.repair()
            for _ in range(4):
                await repair.work_off()
                scene.now_s += 100
            assert stored_ids(scene.paths) == ids

    run(go())


def test_a_damaged_archive_gives_what_is_in_it_and_harms_nothing(scene):
    async def go():
        cut = VisionFault(kind=VisionFaultKind.CUT_ARCHIVE, span="daily")
        async with scene.at(NOON_MS + 3 * DAY_MS, cut):
            ids = scene.lack(scene.trades(*HOLE))
            await scene.repair().work_off()
            assert {gap.state for gap in scene.ledger.all()} <= {EXPIRED, REPAIRED}
        async with scene.at(NOON_MS + 3 * DAY_MS):
            await scene.repair().work_off()
            assert stored_ids(scene.paths) == ids

    run(go())


def test_doubled_and_shuffled_rows_of_an_archive_are_stored_once(scene):
    async def go():
        dirt = [
            VisionFault(kind=kind) for kind in (VisionFaultKind.DOUBLED, VisionFaultKind.SHUFFLED)
        ]
        settings = RepairSettings(grace_s=0.0, archive=ArchiveRepairSettings(batch_rows=100))
        async with scene.at(NOON_MS + 3 * DAY_MS, *dirt):
            ids = scene.lack(scene.trades(*HOLE))
            await scene.repair(settings=settings).work_off()
            assert stored_ids(scene.paths) == ids

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


@pytest.mark.skipif(resource is None, reason="limits the size of files by POSIX means")
def test_a_write_the_system_itself_refuses_harms_nothing(scene):
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


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


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
