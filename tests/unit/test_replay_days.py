"""Recorded days: the order of receipt across stretches, repaired rows in their place, exact numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api.decode import decode_trades
from binance_api.decode_depth import decode_depth, read_levels
from domain.errors import SourceError
from domain.market import NO_VALUE, Market
from lake.paths import LakePaths
from lake.stream_files import (
    LevelColumn,
    depth_table,
    stream_files,
    trade_table,
    write_stream_file,
)
from market_orchestrator.replay import symbols_in
from market_orchestrator.replay_days import RecordedDays
from market_orchestrator.replay_rows import scaled
from tests.trade_frames import START_MS
from tests.unit.test_replay import SYMBOLS, Outcome, market, recording, trade_line

INDEX = {symbol: number for number, symbol in enumerate(SYMBOLS)}
DATE = "2024-07-19"


def frames_of(lines: Sequence[bytes], stream: bytes) -> tuple[list[bytes], list[int]]:
    pairs = [line.strip().partition(b" ") for line in lines if stream in line]
    return [payload for _, _, payload in pairs], [int(stamp) for stamp, _, _ in pairs]


def store(paths: LakePaths, lines: Sequence[bytes], *, repaired: Sequence[int] = ()) -> None:
    """Lines of a recording as the recorder would have stored them; some ids came from REST."""
    rows = decode_trades(*frames_of(lines, b"@aggTrade"), INDEX).rows
    is_repaired = np.isin(rows["agg_trade_id"], list(repaired))
    for name in ("receive_time_ns", "event_time_ms", "quantity_ex_rpi"):
        rows[name][is_repaired] = NO_VALUE
    for part, source in ((rows[~is_repaired], "stream"), (rows[is_repaired], "rest")):
        write(paths, trade_table(part, SYMBOLS, source))
    payloads, stamps = frames_of(lines, b"@depth20")
    if not payloads:
        return
    books = [json.loads(payload)["data"] for payload in payloads]
    columns: dict[str, Any] = {
        name: np.array([book[key] for book in books], np.int64)
        for name, key in (
            *(("event_time_ms", "E"), ("transact_time_ms", "T"), ("first_update_id", "U")),
            *(("final_update_id", "u"), ("prev_final_update_id", "pu")),
        )
    }
    sides: dict[str, Any] = {
        name: LevelColumn(
            np.array([len(book[key]) for book in books], np.int64),
            np.array([float(x) for book in books for level in book[key] for x in level]),
        )
        for name, key in (("bids", "b"), ("asks", "a"))
    }
    names = np.array([INDEX[book["s"]] for book in books], np.int32)
    received = np.array(stamps, np.int64)
    table = depth_table(names, SYMBOLS, receive_time_ns=received, **columns, **sides)
    write_stream_file(paths, "depth", table, metadata={})


def write(paths: LakePaths, table: pa.Table) -> None:
    write_stream_file(paths, "trades", table, metadata={})


def days_of(paths: LakePaths) -> Path:
    return paths.raw / "stream"


def read_all(paths: LakePaths, index: dict[str, int] = INDEX) -> tuple[list[int], list[int]]:
    """Ids in the order they are entered, and receive times of trades and books in theirs."""
    ids, received = [], []
    for piece in RecordedDays(days_of(paths)).slices(index, Market.UM):
        ids += piece.trades["agg_trade_id"].tolist()
        received += piece.trades["receive_time_ns"].tolist()
    return ids, received


def test_recorded_days_give_the_rows_of_the_recording_they_were_made_of(tmp_path: Path) -> None:
    lines = market(200)  # over the ends of two stretches
    lines.append(trade_line(1_100, 199_900, late_ms=90))
    paths = LakePaths.of(tmp_path / "recorded")
    store(paths, lines)
    found = Outcome(days_of(paths), tmp_path / "days")
    wanted = Outcome(recording(tmp_path, lines), tmp_path / "lines")
    assert found.rows == wanted.rows
    assert len(found.rows) == 78
    assert found.report.frames == wanted.report.frames


def test_rows_come_in_the_order_they_were_received_whatever_the_recorder_s_clock(
    tmp_path: Path,
) -> None:
    behind_ns = 7_000_000_000
    lines = [trade_line(100 + i, 100 * i, late_ms=(i * 37) % 400) for i in range(2_400)]
    stamps = [int(line.split(b" ")[0]) - behind_ns for line in lines]
    lines = [b"%d %b" % (s, line.partition(b" ")[2]) for s, line in zip(stamps, lines, strict=True)]
    paths = LakePaths.of(tmp_path)
    store(paths, lines)
    _, received = read_all(paths)
    assert received == sorted(stamps)


@pytest.mark.parametrize("shift_ms", [-7_000, 0, 7_000], ids=["behind", "right", "ahead"])
def test_a_repaired_hole_gives_whole_windows_without_a_revision(
    tmp_path: Path, shift_ms: int
) -> None:
    lines = [
        b"%d %b" % (int(line.partition(b" ")[0]) + shift_ms * 1_000_000, line.partition(b" ")[2])
        for line in market(100)
    ]
    paths = LakePaths.of(tmp_path / "recorded")
    store(paths, lines, repaired=range(170, 260))
    outcome = Outcome(days_of(paths), tmp_path / "days")
    rows = outcome.of("BTCUSDT")
    assert [row.complete for row in rows.values()] == [False, *[True] * 18]
    assert {row.trade_count for row in rows.values()} == {25}
    assert {row.revision for row in outcome.rows} == {0}
    assert not outcome.gaps


def test_a_trade_received_and_repaired_counts_once(tmp_path: Path) -> None:
    paths = LakePaths.of(tmp_path)
    lines = market(10)
    store(paths, lines)
    store(paths, [line for line in lines if b"aggTrade" in line], repaired=range(100, 2_000))
    ids, received = read_all(paths, {"BTCUSDT": 0})
    assert ids == list(range(100, 150))
    assert NO_VALUE not in received


def test_a_hole_nobody_repaired_is_in_the_ledger(tmp_path: Path) -> None:
    paths = LakePaths.of(tmp_path / "recorded")
    store(paths, [text for text in market() if b'"a": 131,' not in text])
    outcome = Outcome(days_of(paths), tmp_path / "days")
    assert outcome.gaps == [("trades", "BTCUSDT", 131, 131, "lost")]


def test_a_damaged_file_is_left_out_and_left_alone(tmp_path: Path) -> None:
    paths = LakePaths.of(tmp_path)
    store(paths, market(10))
    damaged = paths.stream("trades", DATE) / "trades_20240719_000001.parquet"
    damaged.write_bytes(b"PAR1 nothing PAR1")
    assert len(read_all(paths)[0]) == 100
    assert damaged in stream_files(paths, "trades", DATE)


def test_symbols_are_those_with_trades_of_the_days_asked_for(tmp_path: Path) -> None:
    paths = LakePaths.of(tmp_path)
    store(paths, market(1))
    store(paths, [trade_line(1, -60_000)])
    assert symbols_in(days_of(paths)) == SYMBOLS
    assert symbols_in(days_of(paths) / "trades" / "2024-07-18") == ("BTCUSDT",)
    assert symbols_in(days_of(paths) / "depth" / DATE) == SYMBOLS
    assert START_MS == 1_721_347_200_000


def test_recorded_days_without_a_row_are_refused(tmp_path: Path) -> None:
    days = tmp_path / "raw" / "stream"
    days.mkdir(parents=True)
    with pytest.raises(SourceError, match="holds no frame"):
        Outcome(days, tmp_path / "replayed")


@pytest.mark.parametrize("of", list(Market))
def test_books_keep_their_levels_and_receive_times(tmp_path: Path, of: Market) -> None:
    paths = LakePaths.of(tmp_path)
    lines = [line for line in market(10) if b"@depth20" in line]
    store(paths, [*lines, trade_line(1, 0)])
    pieces = list(RecordedDays(days_of(paths)).slices(INDEX, of))
    payloads = [payload for piece in pieces for payload in piece.books]
    stamps = [stamp for piece in pieces for stamp in piece.book_stamps]
    assert stamps == [int(line.partition(b" ")[0]) for line in lines]
    decoded = decode_depth(payloads, stamps, INDEX, of)
    assert not decoded.rejections
    for number, top in enumerate(decoded.tops):
        book = read_levels(top, of)
        assert book is not None
        assert (book.symbol, book.final_update_id) == ("BTCUSDT", 1_000 + number)
        assert book.bids == [(64_000.0, 1.5), (63_999.9, 2.0)]
        assert book.asks == [(64_000.1, 0.5), (64_000.2, 3.0)]


@given(st.lists(st.tuples(st.integers(1, 10**15 - 1), st.integers(0, 15)), min_size=1))
def test_numbers_are_the_decimals_that_were_sent(sent: list[tuple[int, int]]) -> None:
    exact = [Decimal(mantissa).scaleb(-decimals) for mantissa, decimals in sent]
    mantissa, decimals = scaled(np.array([float(number) for number in exact]))
    pairs = zip(mantissa.tolist(), decimals.tolist(), strict=True)
    assert [Decimal(m).scaleb(-d) for m, d in pairs] == exact
