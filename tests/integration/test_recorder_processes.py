"""``main.py record`` as a process: killed, stopped, refused, and beside a bot."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from lake.lock import FolderLock
from lake.paths import LakePaths
from tests.integration.conftest import MarketOf
from tests.integration.live_processes import FAST, Program, simulating, start_bot
from tests.integration.recorder_runs import check_lake, sent_in, stored_trades

LONG = pytest.mark.long
QUICK = {"STREAM_FLUSH_INTERVAL_SECONDS": "0.5", "STREAM_JOURNAL_SYNC_MS": "20"}


def start_recorder(
    folder: Path, data_dir: Path, *flags: object, variables: dict[str, str]
) -> Program:
    environment = {**FAST, **QUICK, **variables}
    return Program(folder, "record", "--data-dir", data_dir, *flags, variables=environment)


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 1), *(pytest.param(seed, 4, marks=LONG) for seed in range(2, 6))]
)
def test_kill_9_at_any_moment_loses_nothing_that_rest_gives_back_and_doubles_nothing(
    market_of: MarketOf, tmp_path: Path, data_dir: Path, seed: int, kills: int
) -> None:
    market, source = market_of("synthetic"), random.Random(seed)
    sent, paths, speed = sent_in(market.recording), LakePaths.of(data_dir), 10.0
    with simulating(tmp_path / "logs", recording=market.recording, speed=speed) as urls:
        for _ in range(kills):
            recorder = start_recorder(tmp_path / "logs", data_dir, variables=urls)
            assert recorder.until(lambda: bool(list(paths.stream_journal.glob("*.journal"))))
            time.sleep(source.uniform(0.2, market.length_ms / 1_000 / speed / kills))
            recorder.kill()
            assert "Traceback" not in recorder.stderr
        recorder = start_recorder(tmp_path / "logs", data_dir, variables=urls)
        is_whole = recorder.until(lambda: set(sent.trades) <= set(stored_trades(paths)))
        assert is_whole, recorder.stderr
        assert recorder.stop() == 0
    check_lake(paths, sent)


def test_one_folder_has_one_recorder_and_may_have_a_bot(tmp_path: Path, data_dir: Path) -> None:
    logs = tmp_path / "logs"
    with simulating(logs, seed=3, speed=5.0) as urls:
        first = start_recorder(logs, data_dir, variables=urls)
        lock = FolderLock(data_dir, "recorder")
        assert first.until(lambda: lock.holder() is not None)
        bot = start_bot(logs, data_dir, variables=urls)
        second = start_recorder(logs, data_dir, variables=urls)
        assert second.wait() == 2
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("error")]
        assert f"in use by the recorder with pid {first.process.pid}" in line
        assert bot.until(lambda: any((data_dir / "features").glob("date=*/*.parquet")))
        assert bot.stop() == 0
        assert first.stop(signal.SIGINT) == 0
    assert len({symbol for symbol, _ in stored_trades(LakePaths.of(data_dir))}) == 2


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recorder = Program(tmp_path / "logs", "record", "--data-dir", tmp_path / "file" / "data")
    assert recorder.wait() == 2
    assert "cannot be used" in recorder.stderr
