"""``replay`` of the real recording adds up to the official klines, to the last digit."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from domain.features import FeatureRow
from feature_store import FeatureStore

RECORDING = "recordings/usdm_20240718.ndjson.gz"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
MINUTE_MS = 60_000
FIRST_MINUTE_MS = 1_721_347_080_000  # 2024-07-18 23:58 UTC; the recording begins within 23:57
MINUTES = range(FIRST_MINUTE_MS, FIRST_MINUTE_MS + 7 * MINUTE_MS, MINUTE_MS)
MAIN = Path(__file__).resolve().parents[2] / "main.py"


@pytest.fixture(scope="module")
def replayed(recordings_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder after one run of the command in the README."""
    folder = tmp_path_factory.mktemp("replayed")
    run_replay(recordings_dir / RECORDING, folder)
    return folder


def run_replay(recording: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(MAIN), "replay", str(recording), "--headless", "--data-dir", "X"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def exact(value: float | str | None) -> Decimal:
    """What the shortest text of a double says."""
    assert value is not None
    return Decimal(value if isinstance(value, str) else repr(value))


def official(recordings_dir: Path, symbol: str) -> dict[int, dict[str, str]]:
    """The official klines by open time; their numbers are text."""
    path = recordings_dir / "klines" / f"{symbol}-1m-2024-07.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        return {int(row["open_time"]): row for row in csv.DictReader(file)}


def minutes(folder: Path, symbol: str) -> Iterator[tuple[int, list[FeatureRow]]]:
    store = FeatureStore(folder / "X")
    for start_ms in MINUTES:
        yield start_ms, store.read_rows(symbol, start_ms, start_ms + MINUTE_MS)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_twelve_windows_of_each_minute_sum_to_the_kline(
    replayed: Path, recordings_dir: Path, symbol: str
) -> None:
    klines = official(recordings_dir, symbol)
    for start_ms, rows in minutes(replayed, symbol):
        kline, traded = klines[start_ms], [row for row in rows if row.trade_count]
        assert [row.window_start_ms for row in rows] == list(
            range(start_ms, start_ms + MINUTE_MS, 5_000)
        )
        assert all(row.complete and row.missing_trades == 0 for row in rows)
        assert exact(traded[0].open) == exact(kline["open"])
        assert max(exact(row.high) for row in traded) == exact(kline["high"])
        assert min(exact(row.low) for row in traded) == exact(kline["low"])
        assert exact(traded[-1].close) == exact(kline["close"])
        assert sum(exact(row.volume) for row in rows) == exact(kline["volume"])
        assert sum(exact(row.buy_volume) for row in rows) == exact(kline["taker_buy_volume"])
        assert sum(row.fill_count for row in rows) == int(kline["count"])


def test_quote_volume_is_the_klines_within_its_rounding(
    replayed: Path, recordings_dir: Path
) -> None:
    for symbol in SYMBOLS:
        klines = official(recordings_dir, symbol)
        for start_ms, rows in minutes(replayed, symbol):
            total = sum(exact(row.quote_volume) for row in rows)
            assert abs(total - exact(klines[start_ms]["quote_volume"])) < Decimal("0.001")


def test_a_second_run_adds_no_rows_and_another_folder_gets_the_same(
    replayed: Path, recordings_dir: Path, tmp_path: Path
) -> None:
    store = FeatureStore(replayed / "X")
    before = store.read(latest_only=False)
    files = sorted((replayed / "X" / "features").rglob("*.parquet"))
    run_replay(recordings_dir / RECORDING, replayed)
    assert store.read(latest_only=False).equals(before)
    assert sorted((replayed / "X" / "features").rglob("*.parquet")) == files
    run_replay(recordings_dir / RECORDING, tmp_path)
    assert FeatureStore(tmp_path / "X").read(latest_only=False).equals(before)
    assert before.num_rows >= 2 * 95
