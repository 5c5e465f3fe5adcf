"""``main.py signals`` on data folders that a recorder, the archive or the bot wrote, or several of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from domain.events import Action, GapState
from domain.market import TRADE_DTYPE, Market
from lake import gaps
from lake.paths import LakePaths
from lake.stream_files import stream_files
from tests.kline_samples import bars, store_bars
from tests.lake_months import archive, store, trade_lines, trades
from tests.recorder_frames import START_MS, STEP_MS, SYMBOL, record, trades_of
from tests.signal_market import signal_at, write_market, write_signals

COUNT = 120  # trades, one a second; number 60 is the first one of the next day
HOLE = range(40, 45)
HORIZON_S = 10
# made at the ends of these windows; entered about a second later, as trade 5 * (w + 1) + 1
WHOLE, WITHOUT_EXIT, WITHOUT_ENTRY, UNFINISHED = (1, 8, 10), 5, 7, 21


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable and no ``.env`` of this machine; the working directory is ``tmp_path``."""


def recorded(root: Path, market: Market = Market.UM) -> LakePaths:
    """A recording over midnight with a hole, and signals before, in and after it."""
    paths = LakePaths.of(root, market)
    first, second = range(HOLE.start), range(HOLE.stop, COUNT)
    record(paths, trades_of(first), trades_of(second), market=market)
    windows = (*WHOLE, WITHOUT_EXIT, WITHOUT_ENTRY, UNFINISHED)
    write_signals(
        paths.root,
        [signal_at(w, start_ms=START_MS, horizon_s=HORIZON_S) for w in windows],
    )
    return paths


def all_trades() -> np.ndarray:
    """What the recorder was sent, and what it was not."""
    rows = trades(range(COUNT), start_ms=START_MS, every_ms=STEP_MS, first_id=0)
    rows["price"] = 640_001 + 10 * np.arange(COUNT)
    return rows


def moved_bps(windows: Sequence[int]) -> list[float]:
    entries = [64_000.1 + 5 * (w + 1) + 1 for w in windows]
    return [1e4 * ((price + HORIZON_S) / price - 1) for price in entries]


def report_on(root: Path, *arguments: str) -> Any:
    command = ["signals", "--data-dir", str(root), "--json", "r.json", "--html", "r.html"]
    assert main.main([*command, *arguments]) == 0
    return json.loads(Path("r.json").read_text())


@pytest.mark.parametrize("market", Market)
def test_a_recording_alone_scores_what_it_holds_whole(
    market: Market, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path, market)
    (hole,) = gaps(SYMBOL, kind="trades", data_dir=tmp_path, market=market)
    assert (hole.first_id, hole.last_id, hole.state) == (40, 44, GapState.OPEN)
    report = report_on(tmp_path, "--market", market.value)
    assert report["priced_by"] == {"trades": 3}
    assert report["left_out"] == {
        "horizon not over yet": 1,
        "windows or trades missing between entry and exit": 2,
    }
    assert report["entry_delay_s"] == 1.0
    (rules,) = report["sources"]
    assert rules["priced_by"] == {"trades": 3}
    assert rules["summary"]["gross_bps"]["value"] == pytest.approx(np.mean(moved_bps(WHOLE)))
    text = " ".join(capsys.readouterr().out.split())
    assert "Entered at the first recorded trade after decision and latency" in text
    assert "prices 3 by trades" in text
    assert "3 by trades" in Path("r.html").read_text()


def test_windows_score_what_the_recording_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quotes far from the trades tell which of them scored a signal."""
    recorded(tmp_path)
    write_market(tmp_path, 100.0 * 1.01 ** np.arange(60), start_ms=START_MS)
    report = report_on(tmp_path)
    assert report["priced_by"] == {"trades": 3, "windows": 3}
    assert (report["left_out"], report["without_spread"]) == ({}, 0)
    expected = [*moved_bps(WHOLE), *[1e4 * (1.01**2 - 1)] * 3]
    scores = report["sources"][0]["summary"]
    assert scores["gross_bps"]["value"] == pytest.approx(np.mean(expected))
    assert scores["cost_bps"] == pytest.approx(10.2)  # spreads are the windows'
    assert {v["name"]: v["calls"] for v in report["sources"][0]["baselines"]}["momentum"] == 5
    text = " ".join(capsys.readouterr().out.split())
    assert "Entered 3 at the first recorded trade" in text
    assert "3 in the first 5 s window" in text


def test_a_hole_that_the_archives_month_fills_is_none(tmp_path: Path) -> None:
    paths = recorded(tmp_path)
    archive(paths, "aggTrades", trade_lines(all_trades()))
    report = report_on(tmp_path)
    assert report["priced_by"] == {"trades": 5}
    assert report["left_out"] == {"horizon not over yet": 1}
    windows = (*WHOLE, WITHOUT_EXIT, WITHOUT_ENTRY)
    expected = pytest.approx(np.mean(moved_bps(windows)))
    assert report["sources"][0]["summary"]["gross_bps"]["value"] == expected


def test_the_archives_month_alone_is_enough(tmp_path: Path) -> None:
    paths = LakePaths.of(tmp_path)
    archive(paths, "aggTrades", trade_lines(all_trades()))
    write_signals(paths.root, [signal_at(w, start_ms=START_MS, horizon_s=10) for w in (2, 11, 30)])
    report = report_on(tmp_path)
    assert report["priced_by"] == {"trades": 2}
    assert report["left_out"] == {"horizon not over yet": 1}


def test_a_damaged_file_costs_its_day_alone(tmp_path: Path) -> None:
    paths = recorded(tmp_path)
    (path,) = stream_files(paths, "trades", "2024-07-18")
    path.write_bytes(path.read_bytes()[:-100])
    after = signal_at(13, start_ms=START_MS, horizon_s=HORIZON_S)
    write_signals(paths.root, [after])
    report = report_on(tmp_path)
    assert report["priced_by"] == {"trades": 1}
    assert report["sources"][0]["summary"]["gross_bps"]["value"] == pytest.approx(
        moved_bps([13])[0]
    )
    assert not path.exists()


def test_signals_of_a_symbol_that_was_not_recorded_say_so(tmp_path: Path) -> None:
    recorded(tmp_path)
    other = signal_at(2, start_ms=START_MS, symbol="SOLUSDT", horizon_s=HORIZON_S)
    write_signals(tmp_path, [other])
    report = report_on(tmp_path, "--symbols", "SOLUSDT")
    assert report["priced_by"] == {}
    assert report["left_out"] == {"symbol without stored windows or trades": 1}


def test_klines_score_the_long_horizons_that_nothing_else_covers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two hours, one is recorded; a model's calls stand beside the rules' of the same window."""
    paths = LakePaths.of(tmp_path)
    start_ms = START_MS - 23 * 3_600_000 - 59 * 60_000  # midnight
    candles = bars(26 * 60, "1m", start_ms=start_ms)
    store_bars(paths, SYMBOL, "1m", candles)
    rows = trades(range(7_200), start_ms=START_MS, every_ms=1_000, first_id=0)
    store(paths, rows)
    made = {"horizon_s": 3_600, "start_ms": START_MS}
    write_signals(
        paths.root,
        [
            signal_at(window, source=source, action=action, **made)
            for window in (-240, 12)  # twenty minutes before the recording, a minute into it
            for source, action in (("rules", Action.BUY), ("model:x", Action.SELL))
        ],
    )
    report = report_on(tmp_path)
    assert report["priced_by"] == {"trades": 2, "klines": 2}
    by_name = {source["name"]: source for source in report["sources"]}
    minute = 24 * 60 - 1 - 20 + 1  # the first that opens after the decision
    moved = 1e4 * (candles["close"][minute + 60] / candles["close"][minute] - 1)
    price = rows["price"]
    moved += 1e4 * (price[66 + 3_600] / price[66] - 1)
    assert by_name["rules"]["summary"]["gross_bps"]["value"] == pytest.approx(moved / 2)
    beside = {versus["name"]: versus for versus in by_name["model:x"]["baselines"]}
    assert beside["rules"]["calls"] == 2
    assert "2 in the first bar after decision" in " ".join(capsys.readouterr().out.split())


def bouncing(seed: int, count: int = 40_000) -> np.ndarray:
    """Two trades a second at bid or ask of a quote that never moves."""
    rows = np.zeros(count, TRADE_DTYPE)
    rows["agg_trade_id"] = np.arange(count)
    rows["price"] = 1_000 + np.random.default_rng(seed).integers(0, 2, count)
    rows["quantity"] = rows["price_decimals"] = 1
    rows["transact_time_ms"] = START_MS + 500 * np.arange(count)
    return rows


def test_prices_that_bounce_between_bid_and_ask_are_no_skill(tmp_path: Path) -> None:
    """Mid prices stand still: by them no call is ever right, by trades every fourth one."""
    store(LakePaths.of(tmp_path), bouncing(1))
    write_market(tmp_path, np.full(4_000, 100.05), start_ms=START_MS)
    sides = np.random.default_rng(2).choice(["BUY", "SELL"], 330)
    write_signals(
        tmp_path,
        [
            signal_at(12 * k + 10, Action(side), start_ms=START_MS, horizon_s=60)
            for k, side in enumerate(sides)
        ],
    )
    report = report_on(tmp_path)
    assert report["priced_by"]["trades"] >= 325
    scores = report["sources"][0]["summary"]
    assert scores["hit_rate"]["base_rate"] == pytest.approx(0.25, abs=0.03)
    assert scores["verdict"] == "no better than chance"
