"""A second process's view: a client of ``/events`` goes through restarts of the bot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from lake.paths import LakePaths
from lake.signal_store import signal_store
from tests.integration.live_processes import PATIENCE_S, Program, simulating, start_bot

SYMBOLS = ("BTCUSDT", "ETHUSDT")


class Follower:
    """Follows signals and keeps its place, as the client in docs/operations.md does."""

    def __init__(self) -> None:
        self.received: list[dict] = []
        self.notices: list[dict] = []
        self.after: int | None = None

    async def follow(self, url: str, enough: Callable[[], bool]) -> None:
        """Until there is enough or the bot is gone."""
        query = "topics=signal" if self.after is None else f"topics=signal&after={self.after}"
        with contextlib.suppress(aiohttp.ClientError):
            async with (
                asyncio.timeout(PATIENCE_S),
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{url}/events?{query}") as client,
            ):
                async for message in client:
                    event = json.loads(message.data)
                    if "notice" in event:
                        self.notices.append(event)
                        continue
                    self.received.append(event)
                    self.after = event["sequence"]
                    if enough():
                        return

    def has_more(self, count: int) -> Callable[[], bool]:
        wanted = len(self.received) + count
        return lambda: len(self.received) >= wanted


def url_of(bot: Program) -> str:
    pattern = re.compile(r"http://127\.0\.0\.1:\d+")
    assert bot.until(lambda: pattern.search(bot.stderr) is not None), bot.stderr
    found = pattern.search(bot.stderr)
    assert found is not None
    return found.group()


def stored_signals(data_dir: Path) -> set[str]:
    store = signal_store(LakePaths.of(data_dir).signals)
    return {str(name) for name in store.partitioned.read().column("signal_id").to_pylist()}


def wait_for_more(bot: Program, journal: Path) -> None:
    seen = journal.stat().st_size
    assert bot.until(lambda: journal.stat().st_size > seen + 2_500)


@pytest.mark.long
def test_a_follower_misses_no_signal_through_a_stop_and_a_kill(tmp_path: Path) -> None:
    follower, data_dir = Follower(), tmp_path / "data"
    with simulating(tmp_path / "exchange", seed=3, symbols=",".join(SYMBOLS)) as urls:
        variables = {**urls, "WINDOW_DURATION": "1"}
        for ending in ("stop", "kill", "stop"):
            begun_us = time.time_ns() // 1_000
            known = len(follower.received)
            bot = start_bot(tmp_path / "bot", data_dir, variables=variables)
            asyncio.run(follower.follow(url_of(bot), follower.has_more(6)))
            # Two more windows close while nobody follows.
            if known:  # what came while nobody followed, in the run before
                assert follower.received[known]["sequence"] < begun_us
            wait_for_more(bot, data_dir / "events" / "journal.jsonl")
            if ending == "kill":
                bot.kill()
            else:
                assert bot.stop() == 0, bot.stderr
        bot = start_bot(tmp_path / "bot", data_dir, variables=variables)
        asyncio.run(follower.follow(url_of(bot), follower.has_more(6)))
        assert bot.stop() == 0, bot.stderr
    ids = [event["payload"]["signal_id"] for event in follower.received]
    sequences = [event["sequence"] for event in follower.received]
    assert sequences == sorted(set(sequences))
    assert len(ids) == len(set(ids))
    first = follower.received[0]["payload"]["window_end_ms"]
    last = follower.received[-1]["payload"]["window_end_ms"]
    due = {n for n in stored_signals(data_dir) if first < int(n.rsplit(":", 1)[1]) < last}
    assert len(due) >= 8
    assert due <= set(ids)
    assert [n["notice"] for n in follower.notices] == ["hello"] * 4
