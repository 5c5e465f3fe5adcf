from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ai.budget import FILE_NAME, Budget, BudgetSettings, Reservation
from domain.errors import StorageError
from lake.part_files import date_start_ms
from tests.ai_samples import needs_full_disk

DAY_NS = 86_400_000_000_000
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2


class Wall:
    def __init__(self) -> None:
        self.ns = NOON_NS

    def __call__(self) -> int:
        return self.ns


def budget(
    folder: Path, wall: Wall | None = None, **limits: Any
) -> tuple[Budget, list[StorageError]]:
    failures: list[StorageError] = []
    found = Budget(
        folder, BudgetSettings(**limits), wall_ns=wall or Wall(), on_failure=failures.append
    )
    found.load()
    return found, failures


def settle(ledger: Budget, one: Reservation, tokens: int, usd: float = 0.0) -> None:
    ledger.settle(one, tokens, usd)
    asyncio.run(ledger.flush())


def reserved(work: Coroutine[Any, Any, Reservation | None]) -> Reservation:
    found = asyncio.run(work)
    assert found is not None
    return found


def test_nothing_is_spent_beyond_the_day_s_tokens(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path, daily_tokens=1_000)
    settle(ledger, reserved(ledger.reserve("groq", 600, 0.1)), 550, 0.1)
    assert asyncio.run(ledger.reserve("groq", 451, 0.0)) is None
    assert reserved(ledger.reserve("groq", 450, 0.0))
    assert reserved(ledger.reserve("openai", 1_000, 0.0))  # each provider has its own


def test_nothing_is_spent_beyond_the_day_s_dollars(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path, daily_usd=0.01)
    assert reserved(ledger.reserve("groq", 10**9, 0.006))
    assert asyncio.run(ledger.reserve("groq", 1, 0.005)) is None


def test_what_was_spent_survives_a_restart(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path)
    settle(ledger, reserved(ledger.reserve("groq", 900, 0.5)), 700, 0.25)
    again, _ = budget(tmp_path)
    assert (again.spent_today("groq").tokens, again.spent_today("groq").usd) == (700, 0.25)
    third, _ = budget(tmp_path)  # the compacted file reads the same
    assert third.spent_today("groq").tokens == 700


def test_a_call_that_a_crash_cut_short_counts_in_full(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path)
    reserved(ledger.reserve("groq", 900, 0.5))  # on disk before the call; then the process dies
    assert budget(tmp_path)[0].spent_today("groq").tokens == 900


def test_a_settlement_not_yet_on_disk_counts_in_full_after_a_crash(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path)
    ledger.settle(reserved(ledger.reserve("groq", 900, 0.5)), 100, 0.1)
    assert ledger.spent_today("groq").tokens == 100
    assert budget(tmp_path)[0].spent_today("groq").tokens == 900


def test_a_line_torn_by_a_crash_costs_no_other_line(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path)
    reserved(ledger.reserve("groq", 900, 0.5))
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"id":"x","day":"20')
    again, _ = budget(tmp_path)
    reserved(again.reserve("groq", 1, 0.0))
    assert budget(tmp_path)[0].spent_today("groq").tokens == 901


def test_lines_nobody_can_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'garbage\n{"id":1}\n\xff\xfe\n[]\n')
    assert budget(tmp_path)[0].spent_today("groq").tokens == 0


def test_a_new_utc_day_starts_at_nothing(tmp_path: Path) -> None:
    wall = Wall()
    ledger, _ = budget(tmp_path, wall, daily_tokens=100)
    late = reserved(ledger.reserve("groq", 100, 0.0))
    assert asyncio.run(ledger.reserve("groq", 1, 0.0)) is None
    wall.ns += DAY_NS // 2
    assert reserved(ledger.reserve("groq", 100, 0.0))
    settle(ledger, late, 40)  # belongs to the day on which it was made
    assert ledger.spent_today("groq").tokens == 100
    wall.ns -= DAY_NS // 2
    assert ledger.spent_today("groq").tokens == 40


@pytest.mark.parametrize(
    ("last", "following"), [("2028-02-28", "2028-02-29"), ("2027-12-31", "2028-01-01")]
)
def test_the_day_ends_at_midnight_over_leap_days_and_years(
    last: str, following: str, tmp_path: Path
) -> None:
    wall = Wall()
    ledger, _ = budget(tmp_path, wall, daily_tokens=100)
    wall.ns = date_start_ms(following) * 1_000_000 - 1
    assert (reserved(ledger.reserve("groq", 100, 0.0)).day, ledger.day()) == (last, last)
    wall.ns += 1
    assert reserved(ledger.reserve("groq", 100, 0.0)).day == following


def test_a_clock_that_jumps_and_comes_back_finds_its_day_again(tmp_path: Path) -> None:
    wall = Wall()
    ledger, _ = budget(tmp_path, wall, daily_tokens=100)
    reserved(ledger.reserve("groq", 100, 0.0))
    wall.ns += 400 * DAY_NS
    reserved(ledger.reserve("groq", 10, 0.0))
    wall.ns -= 400 * DAY_NS
    assert asyncio.run(ledger.reserve("groq", 1, 0.0)) is None
    assert budget(tmp_path, wall)[0].spent_today("groq").tokens == 100


def test_old_days_are_forgotten_in_memory_and_on_disk(tmp_path: Path) -> None:
    wall = Wall()
    ledger, _ = budget(tmp_path, wall)
    for _ in range(30):
        reserved(ledger.reserve("groq", 1, 0.0))
        wall.ns += DAY_NS
    assert len(ledger._spent) <= 8
    assert len(ledger._entries) <= 8
    budget(tmp_path, wall)
    assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) <= 8


def test_many_reservations_at_once_never_overspend_and_are_all_on_disk(tmp_path: Path) -> None:
    ledger, _ = budget(tmp_path, daily_tokens=1_000)

    async def all_at_once() -> list[Reservation | None]:
        return list(await asyncio.gather(*[ledger.reserve("groq", 90, 0.0) for _ in range(30)]))

    found = asyncio.run(all_at_once())
    assert sum(one is not None for one in found) == 11
    assert budget(tmp_path)[0].spent_today("groq").tokens == 990


@needs_full_disk
def test_a_full_disk_stops_no_call_and_is_made_up_for_later(tmp_path: Path) -> None:
    ledger, failures = budget(tmp_path, daily_tokens=1_000)
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    first = reserved(ledger.reserve("groq", 600, 0.0))
    assert len(failures) == 1
    assert asyncio.run(ledger.reserve("groq", 600, 0.0)) is None  # counted in memory
    (tmp_path / FILE_NAME).unlink()
    settle(ledger, first, 500)
    assert len(failures) == 1
    assert budget(tmp_path)[0].spent_today("groq").tokens == 500
