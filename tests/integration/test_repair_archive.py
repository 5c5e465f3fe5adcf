"""What is beyond REST comes from the archive when it appears, or is permanent."""

from __future__ import annotations

import asyncio
import threading

import pytest

from collectors.repair import RepairSettings
from collectors.repair_archive import ArchiveRepairSettings
from lake import repaired_rows
from simulator.synthetic import SyntheticMarket
from simulator.vision_faults import VisionFault, VisionFaultKind
from tests.integration.repair_scene import (
    DAY_MS,
    EXPIRED,
    HOLE,
    HOUR_MS,
    LOST,
    MIDNIGHT_MS,
    NOON_MS,
    REPAIRED,
    SYMBOL,
    Scene,
    expected_rows,
    run,
    until,
)
from tests.stream_samples import read_all, stored_ids


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


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


def test_a_stop_does_not_wait_for_the_end_of_an_archive(scene, monkeypatch):
    """The thread that reads it would keep the process from ending."""
    reading = threading.Event()
    batches = repaired_rows.agg_trade_batches

    def endless(archive):
        (batch,) = batches(archive)
        while True:
            reading.set()
            yield batch.slice(0, 0)

    monkeypatch.setattr(repaired_rows, "agg_trade_batches", endless)

    async def go():
        async with scene.at(NOON_MS + 3 * DAY_MS):
            ids = scene.lack(scene.trades(*HOLE))
            task = asyncio.create_task(scene.repair().work_off())
            await until(reading.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scene.states() == [(ids[0], ids[-1], EXPIRED, None)]

    run(go())
