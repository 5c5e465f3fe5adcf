"""The shared weight budget: its rules on a manual clock, and real processes sharing one file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api import weight_budget
from binance_api.weight_budget import WeightBudget, WeightBudgetSettings, host_key, user_folder

URL = "https://fapi.binance.com"
MINUTE_MS = 60_000
START_MS = 29_000_000 * MINUTE_MS + 10_000  # ten seconds into a minute
REPOSITORY = Path(__file__).resolve().parents[2]


class WallClock:
    def __init__(self, now_ms=START_MS):
        self.now_ms = now_ms

    def __call__(self):
        return self.now_ms


@pytest.fixture
def clock():
    return WallClock()


@pytest.fixture
def make(tmp_path, clock):
    def build(limit=100, url=URL, wall_ms=clock, ratio=0.8):
        settings = WeightBudgetSettings(folder=tmp_path, bulk_ratio=ratio)
        return WeightBudget(url, limit, settings, wall_ms=wall_ms)

    return build


def test_bulk_leaves_a_fifth_to_urgent_requests(make):
    budget = make()
    assert [budget.reserve(20) for _ in range(4)] == [0.0] * 4
    assert budget.reserve(1) > 0
    assert budget.reserve(20, urgent=True) == 0.0
    assert budget.reserve(1, urgent=True) > 0


def test_the_wait_ends_when_the_next_minute_has_surely_begun(make, clock):
    budget = make()
    assert budget.reserve(80) == 0.0
    wait_s = budget.reserve(20)
    assert wait_s == 51.0  # 50 s of the minute and a second of settling
    clock.now_ms += int(wait_s * 1_000) - 1_001
    assert budget.reserve(20) > 0
    clock.now_ms += 1_001
    assert budget.reserve(20) == 0.0


def test_two_objects_of_one_host_share_and_other_hosts_do_not(make):
    first, second = make(), make()
    other, other_port = make(url="http://127.0.0.1:8001"), make(url="http://127.0.0.1:8002")
    assert first.reserve(80) == 0.0
    assert second.reserve(1) > 0
    assert other.reserve(80) == 0.0
    assert other_port.reserve(80) == 0.0


def test_a_request_heavier_than_the_share_goes_in_an_unused_minute_only(make, clock):
    budget = make(limit=40)
    assert budget.reserve(1) == 0.0
    assert budget.reserve(250) > 0
    clock.now_ms += MINUTE_MS
    assert budget.reserve(250) == 0.0
    assert budget.reserve(1, urgent=True) > 0


def test_the_exchanges_count_raises_ours_and_never_lowers_it(make, clock):
    budget, neighbour = make(), make()
    assert budget.reserve(10) == 0.0
    budget.correct(75, clock.now_ms)
    assert neighbour.reserve(20) > 0
    budget.correct(5, clock.now_ms)
    assert neighbour.reserve(20) > 0
    assert neighbour.reserve(5) == 0.0


def test_a_count_that_may_be_of_the_minute_before_is_left_out(make, clock):
    budget = make()
    sent_ms = clock.now_ms
    clock.now_ms += MINUTE_MS
    assert budget.reserve(10) == 0.0
    budget.correct(95, sent_ms)  # a slow reply
    clock.now_ms -= clock.now_ms % MINUTE_MS - 500
    budget.correct(95, clock.now_ms)  # the exchange's minute may begin a little later than ours
    assert budget.reserve(20) == 0.0


def test_a_block_stops_every_process_and_is_never_shortened(make, clock):
    budget, neighbour = make(), make()
    budget.block(150, banned=True)
    neighbour.block(5, banned=False)
    assert neighbour.reserve(1, urgent=True) == 150.0
    assert neighbour.is_banned
    clock.now_ms += 149_999
    assert budget.blocked_s() == 0.001
    clock.now_ms += 1
    assert budget.reserve(1) == 0.0
    assert not budget.is_banned


def test_a_lower_limit_is_kept_and_a_higher_one_is_not(make):
    budget = make(limit=100)
    budget.lower_limit(1_000)
    assert budget.statistics()["limit"] == 100
    budget.lower_limit(50)
    assert budget.reserve(40) == 0.0
    assert budget.reserve(5) > 0


def test_the_minute_is_the_exchanges_not_ours(make, clock):
    budget, neighbour = make(), make()
    ahead_ms = 55_000
    date_ms = (clock.now_ms + ahead_ms) // 1_000 * 1_000
    budget.learn_clock(date_ms, clock.now_ms - 20, clock.now_ms)
    assert budget.reserve(80) == 0.0  # 5 s into the exchange's next minute
    assert neighbour.reserve(80) > 55  # the neighbour learnt it from the file
    offset_ms = budget.statistics()["clock_offset_ms"]
    assert abs(offset_ms - ahead_ms) <= 1_000
    budget.learn_clock(date_ms, clock.now_ms - 20, clock.now_ms)
    assert budget.statistics()["clock_offset_ms"] == offset_ms


def test_a_neighbour_whose_clock_is_just_ahead_is_followed(make, clock):
    ahead = make(wall_ms=lambda: clock.now_ms + MINUTE_MS)
    assert ahead.reserve(80) == 0.0
    assert make().reserve(20) > 0


@pytest.mark.parametrize(
    "damage",
    [
        b"not json",
        b"\xff\xfe\x00" * 200,
        b'{"minute":"x","used":1}',
        b'{"minute":29000000,"used":-5}',
        b'{"minute":29000000,"used":1e30}',
        b"[" * 160,
        b'{"minute":29000000,"used":99,"blocked',
    ],
)
def test_a_damaged_file_is_replaced(make, damage):
    make().reserve(1)
    path = make().path
    path.write_bytes(damage)
    budget = make()
    assert budget.reserve(80) == 0.0
    assert budget.statistics()["files_replaced"] == 1
    assert json.loads(path.read_bytes())["used"] == 80
    assert make().reserve(1) > 0


def test_a_file_from_the_future_or_the_past_does_not_hold_us_up(make, clock):
    far = {"minute": clock.now_ms // MINUTE_MS + 50, "used": 99, "blocked_until_ms": 2**53}
    old = {"minute": 1, "used": 99, "blocked_until_ms": 5, "is_banned": True}
    for state in (far, old):
        make().path.write_text(json.dumps(state))
        assert make().reserve(80) == 0.0


def test_a_deleted_file_forgets_neither_the_block_nor_the_weight(make):
    budget = make()
    budget.reserve(70)
    budget.block(30, banned=False)
    budget.path.unlink()
    assert budget.reserve(1) == 30.0
    budget.block(31, banned=False)
    assert make().reserve(1) == 31.0


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_without_a_usable_folder_the_budget_still_holds_for_this_process(tmp_path, clock):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    budget = WeightBudget(URL, 100, WeightBudgetSettings(folder=blocker / "x"), wall_ms=clock)
    assert budget.reserve(80) == 0.0
    assert budget.reserve(1) > 0
    budget.block(90, banned=True)
    assert budget.reserve(1) == 90.0
    assert budget.statistics()["shared"] == 0
    assert budget.statistics()["unshared_reservations"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_a_planted_link_is_not_followed(make, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    budget = make()
    budget.path.symlink_to(victim)
    assert budget.reserve(1) == 0.0
    assert victim.read_text() == "precious"


def test_files_older_than_any_ban_are_removed(make, tmp_path, clock):
    old, young = tmp_path / "weight-127.0.0.1_1.json", tmp_path / "weight-127.0.0.1_2.json"
    for path, age_s in ((old, 4 * 86_400), (young, 2 * 86_400)):
        path.write_text("{}")
        os.utime(path, (clock.now_ms / 1_000 - age_s,) * 2)
    make()
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals and flock of POSIX")
def test_a_stopped_holder_delays_us_shortly_and_never_blocks_us(make, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    budget = make()
    budget.reserve(10)
    holder = os.open(budget.path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert 0 < budget.reserve(10) < 0.1  # asked to come back, not kept waiting
    monkeypatch.setattr(weight_budget, "_GIVE_UP_S", 0.0)
    assert budget.reserve(10) == 0.0
    budget.block(20, banned=False)
    os.close(holder)
    # What happened meanwhile enters the file as soon as it can be had.
    assert budget.reserve(1) == 20.0
    budget.block(21, banned=False)
    assert make().reserve(1) == 21.0
    assert json.loads(budget.path.read_bytes())["used"] == 20


TAKE_ALL = """
import sys
from pathlib import Path
from binance_api.weight_budget import WeightBudget, WeightBudgetSettings
now_ms = int(sys.argv[2])
budget = WeightBudget("https://x", 1000, WeightBudgetSettings(folder=Path(sys.argv[1])),
                      wall_ms=lambda: now_ms)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
while True:
    wait_s = budget.reserve(1)
    if wait_s >= 1:
        break
    taken += wait_s == 0
print(taken, flush=True)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def test_processes_taking_at_once_never_exceed_the_limit_together(tmp_path):
    processes = [start(TAKE_ALL, tmp_path, START_MS) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        taken = [int(process.communicate(timeout=30)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sum(taken) == 800
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_bytes())["used"] == 800


HOLD = """
import sys, time
from pathlib import Path
from binance_api.weight_budget import WeightBudget, WeightBudgetSettings
now_ms = int(sys.argv[2])
budget = WeightBudget("https://x", 1000, WeightBudgetSettings(folder=Path(sys.argv[1])),
                      wall_ms=lambda: now_ms)
with budget._exclusive() as descriptor:
    print(descriptor is not None, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_process_killed_while_it_holds_the_lock_leaves_it_free(tmp_path, clock):
    process = start(HOLD, tmp_path, START_MS)
    try:
        assert process.stdout.readline() == "True\n"
        budget = WeightBudget(
            "https://x", 1000, WeightBudgetSettings(folder=tmp_path), wall_ms=clock
        )
        assert budget.reserve(1) > 0
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert budget.reserve(1) == 0.0
        assert budget.statistics()["unshared_reservations"] == 0
    finally:
        process.kill()
        process.communicate()


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 60), st.booleans(), st.integers(0, 30_000)),
        max_size=60,
    )
)
def test_no_minute_ever_takes_more_than_its_limit(tmp_path_factory, steps):
    clock = WallClock()
    settings = WeightBudgetSettings(folder=tmp_path_factory.mktemp("budget"))
    budgets = [WeightBudget(URL, 100, settings, wall_ms=clock) for _ in range(3)]
    total, bulk = {}, {}
    for index, weight, urgent, passed_ms in steps:
        clock.now_ms += passed_ms
        wait_s = budgets[index].reserve(weight, urgent=urgent)
        assert 0 <= wait_s <= 61
        if wait_s == 0:
            minute = clock.now_ms // MINUTE_MS
            total[minute] = total.get(minute, 0) + weight
            if not urgent:
                bulk[minute] = total[minute]
    assert max(total.values(), default=0) <= 100
    assert max(bulk.values(), default=0) <= 80


def test_names_of_files_are_safe_and_differ_by_host_and_port():
    assert host_key("https://fapi.binance.com/") == "fapi.binance.com"
    assert host_key("http://127.0.0.1:9001") == "127.0.0.1_9001"
    assert "/" not in host_key("http://../../x")
    assert host_key("http://[::1]:80") == "__1_80"
    assert user_folder().name.startswith("orderflow")
