"""When intervals are ingested and the recommendation is due; and that missed runs are caught up once."""

import asyncio
import datetime as dt

import pytest

from binance_api.errors import InvalidSymbol, Unreachable
from ingestion.follow import Follower
from ingestion.schedule import RECOMMENDATION, SETTLE_MS, Schedule, minute_of_day

SIX = ("15m", "30m", "1h", "4h", "1d", "1w")
AT_NOON = Schedule(intervals=SIX, recommendation_minute=minute_of_day("12:00"))


def ms(text):
    return int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp() * 1_000)


def due_after(schedule, done_at, now):
    """What is due at ``now`` if everything was done at ``done_at``."""
    done = schedule.due(ms(done_at), {})
    return set(schedule.due(ms(now), done))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2024-07-03T10:14:59", set()),
        ("2024-07-03T10:15:02", set()),  # the candle has just closed: a moment is given
        ("2024-07-03T10:15:03", {"15m", "30m"}),
        ("2024-07-03T10:59:00", {"15m", "30m"}),
        ("2024-07-03T11:00:03", {"15m", "30m", "1h"}),
        ("2024-07-03T12:00:03", {"15m", "30m", "1h", "4h", RECOMMENDATION}),
        ("2024-07-04T00:00:03", {"15m", "30m", "1h", "4h", "1d", RECOMMENDATION}),
        ("2024-07-08T00:00:03", {"15m", "30m", "1h", "4h", "1d", "1w", RECOMMENDATION}),
    ],
)
def test_intervals_are_due_at_their_closes_in_utc(now, expected):
    assert due_after(AT_NOON, "2024-07-03T10:05:00", now) == expected


def test_long_intervals_may_go_with_the_quarter_hour():
    schedule = Schedule(intervals=("1h", "4h", "1w"), long_every_quarter=True)
    assert due_after(schedule, "2024-07-03T10:05:00", "2024-07-03T10:15:03") == {"4h", "1w"}


def test_any_number_of_missed_runs_is_due_once():
    done = AT_NOON.due(ms("2024-07-03T10:05:00"), {})
    late = ms("2024-07-06T18:07:00")
    due = AT_NOON.due(late, done)
    assert due["15m"] == ms("2024-07-06T18:00:00")
    assert due[RECOMMENDATION] == ms("2024-07-06T12:00:00")
    assert AT_NOON.due(late, done | due) == {}


def test_the_next_run_is_the_nearest_close_or_the_recommendation():
    assert AT_NOON.next_ms(ms("2024-07-03T10:05:00")) == ms("2024-07-03T10:15:00") + SETTLE_MS
    daily = Schedule(intervals=("1d",), recommendation_minute=minute_of_day("09:37"))
    assert daily.next_ms(ms("2024-07-03T09:00:00")) == ms("2024-07-03T09:37:00") + SETTLE_MS
    assert daily.next_ms(ms("2024-07-03T10:00:00")) == ms("2024-07-04T00:00:00") + SETTLE_MS


class Clock:
    """Time that passes by sleeping alone, and stops the world at a given moment."""

    def __init__(self, start, end):
        self.now_ms, self.end_ms = ms(start), ms(end)

    def __call__(self):
        return self.now_ms

    async def sleep(self, seconds):
        self.now_ms += max(1, int(seconds * 1_000))
        if self.now_ms >= self.end_ms:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


class Work:
    """Stands for ingestion, curation and recommendation: notes what was asked of it and when."""

    clock_offset_ms = 0

    async def learn_clock(self):
        self.clock_offset_ms = self.offset_ms

    offset_ms = 0

    def __init__(self, clock, *, takes_s=0.0, errors=()):
        self.clock = clock
        self.runs = []
        self.curated = []
        self.recommended = []
        self.is_busy = False
        self.takes_s = takes_s
        self.errors = list(errors)

    async def ingest(self, intervals, start_ms):
        assert not self.is_busy, "runs overlap"
        self.is_busy = True
        self.runs.append((self.clock.now_ms, tuple(intervals), start_ms))
        try:
            if self.errors and (error := self.errors.pop(0)):
                raise error
            if self.takes_s:
                await self.clock.sleep(self.takes_s)
        finally:
            self.is_busy = False

    def curate_timeframe(self, interval):
        self.curated.append((self.clock.now_ms, interval))

    async def recommend(self, at_ms, now_ms):
        self.recommended.append((at_ms, now_ms))


def follow(tmp_path, start, end, schedule=AT_NOON, **options):
    clock = Clock(start, end)
    work = Work(clock, **options)
    follower = Follower(
        work,
        work,
        schedule,
        recommend=work.recommend,
        state=tmp_path / "schedule.json",
        wall_ms=clock,
        sleep=clock.sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(follower.run())
    return work, follower


def times(work):
    return [f"{dt.datetime.fromtimestamp(at / 1_000, dt.UTC):%H:%M:%S}" for at, _, _ in work.runs]


def test_a_day_of_runs_ingests_curates_and_recommends_when_due(tmp_path):
    work, follower = follow(tmp_path, "2024-07-03T10:05:00", "2024-07-04T10:05:00")
    assert len(work.runs) == 1 + 24 * 4
    assert times(work)[:3] == ["10:05:00", "10:15:03", "10:30:03"]
    hourly = [at for at, intervals, _ in work.runs if "1h" in intervals]
    assert len(hourly) == 1 + 24
    assert sum("4h" in intervals for _, intervals, _ in work.runs) == 1 + 6
    assert len(work.curated) == sum(len(intervals) for _, intervals, _ in work.runs)
    assert [at for at, _ in work.recommended] == [
        ms("2024-07-02T12:00:00"),
        ms("2024-07-03T12:00:00"),
    ]
    assert follower.statistics()["recommendations"] == 2


def test_a_restart_catches_up_once_and_reaches_back_to_the_last_run(tmp_path):
    follow(tmp_path, "2024-07-03T10:05:00", "2024-07-03T10:40:00")
    work, _ = follow(tmp_path, "2024-07-08T03:07:00", "2024-07-08T03:14:00")
    assert [(intervals, start) for _, intervals, start in work.runs] == [
        (SIX, ms("2024-07-01T00:00:00"))  # the week last done
    ]
    assert [at for at, _ in work.recommended] == [ms("2024-07-07T12:00:00")]
    again, _ = follow(tmp_path, "2024-07-08T03:10:00", "2024-07-08T03:14:00")
    assert again.runs == []


def test_a_run_longer_than_a_quarter_hour_is_followed_by_one_run(tmp_path):
    work, _ = follow(
        tmp_path, "2024-07-03T10:05:00", "2024-07-03T13:30:00", Schedule(intervals=("15m",)),
        takes_s=2_400,
    )  # fmt: skip
    assert times(work) == ["10:05:00", "10:45:00", "11:25:00", "12:05:00", "12:45:00", "13:25:00"]


def test_a_run_that_fails_is_tried_again_after_a_minute(tmp_path):
    errors = [None, Unreachable("no answer"), Unreachable("no answer")]
    work, follower = follow(tmp_path, "2024-07-03T10:05:00", "2024-07-03T10:29:00", errors=errors)
    assert times(work) == ["10:05:00", "10:15:03", "10:16:03", "10:17:03"]
    assert follower.statistics()["failures"] == 2


def test_a_symbol_the_exchange_does_not_know_ends_it(tmp_path):
    clock = Clock("2024-07-03T10:05:00", "2024-07-04T00:00:00")
    work = Work(clock, errors=[InvalidSymbol("Invalid symbol.")])
    follower = Follower(
        work, work, AT_NOON, recommend=None, state=tmp_path / "s.json", wall_ms=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    with pytest.raises(InvalidSymbol):
        asyncio.run(follower.run())


def test_the_exchanges_clock_decides_not_ours(tmp_path):
    clock = Clock("2024-07-03T10:14:00", "2024-07-03T10:14:30")
    work = Work(clock)
    work.offset_ms = 90_000
    state = tmp_path / "schedule.json"
    follower = Follower(
        work, work, Schedule(intervals=("15m",)), recommend=None, state=state, wall_ms=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    assert asyncio.run(follower.run_due())
    assert state.read_text() == f'{{"15m":{ms("2024-07-03T10:15:00")}}}'
