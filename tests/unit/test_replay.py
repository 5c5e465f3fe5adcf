"""Recordings through the live code: the same rows each time, garbage and holes included."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from domain.errors import SourceError
from domain.features import FeatureRow
from event_bus import EventBus
from feature_store import FeatureStore
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.quarantine import Quarantine
from lake.signal_store import signal_store
from market_orchestrator.market_flow import MarketFlow, MarketFlowSettings
from market_orchestrator.outputs import Outputs
from market_orchestrator.replay import MarketClock, Replay, ReplayReport, symbols_in
from rules_analyst import RulesAnalyst
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

D = 5_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def line(offset_ms: int, frame: bytes) -> bytes:
    """A frame received this long after START_MS."""
    return b"%d %s\n" % ((START_MS + offset_ms) * 1_000_000, frame)


def trade_line(
    agg_trade_id: int, offset_ms: int, symbol: str = "BTCUSDT", *, late_ms: int = 0, **changes: Any
) -> bytes:
    time_ms = START_MS + offset_ms
    fields = {
        "a": agg_trade_id,
        "T": time_ms,
        "E": time_ms + 20,
        "f": agg_trade_id,
        "l": agg_trade_id,
    }
    return line(offset_ms + 30 + late_ms, agg_trade_frame(symbol, **(fields | changes)))


def depth_line(offset_ms: int, number: int) -> bytes:
    time_ms = START_MS + offset_ms
    frame = depth_frame(T=time_ms, E=time_ms, U=number, u=number, pu=number - 1)
    return line(offset_ms + 5, frame)


def market(seconds: int = 30) -> list[bytes]:
    """Two symbols, a trade of each every 200 ms, a snapshot every second."""
    lines = []
    for i in range(5 * seconds):
        lines.append(trade_line(100 + i, 200 * i, q="0.250", m=i % 3 == 0))
        lines.append(trade_line(900 + i, 200 * i + 7, "ETHUSDT", p="3424.98", m=i % 2 == 0))
        if i % 5 == 0:
            lines.append(depth_line(200 * i + 9, 1_000 + i // 5))
    return lines


def recording(tmp_path: Path, lines: Sequence[bytes], name: str = "some.ndjson.gz") -> Path:
    path = tmp_path / name
    content = b"".join(lines)
    path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return path


class Outcome:
    """What one replay into a data folder left there."""

    def __init__(self, path: Path, root: Path, symbols: Sequence[str] = SYMBOLS) -> None:
        paths = LakePaths.of(root)
        clock = MarketClock()
        self.flow = MarketFlow(
            MarketFlowSettings(symbols=tuple(symbols)), monotonic_ns=clock, repairable=False
        )
        store = FeatureStore(paths.root)
        self.outputs = Outputs(
            EventBus(), store, signal_store(paths.signals), RulesAnalyst(), clock
        )
        self.outputs.skip_stored(symbols)
        quarantine, ledger = Quarantine(paths.quarantine), GapLedger(paths.gaps)
        replay = Replay(path, self.flow, self.outputs, quarantine, ledger, clock)
        for _ in replay.run():
            pass
        store.flush()
        quarantine.flush()
        self.report: ReplayReport = replay.report
        self.rows = store.read_rows()
        self.stored_count = store.read(latest_only=False).num_rows
        self.quarantined = [
            json.loads(entry)
            for file in sorted(paths.quarantine.glob("*.jsonl"))
            for entry in file.read_text().splitlines()
        ]
        self.quarantine_days = sorted(file.stem for file in paths.quarantine.glob("*.jsonl"))
        self.gaps = [
            (gap.kind, gap.symbol, gap.first_id, gap.last_id, gap.state.value)
            for gap in ledger.all()
        ]

    def of(self, symbol: str) -> dict[int, FeatureRow]:
        """Window number → row."""
        return {
            (row.window_start_ms - START_MS) // D: row for row in self.rows if row.symbol == symbol
        }


def test_a_recording_becomes_the_windows_its_trades_prove(tmp_path: Path, data_dir: Path) -> None:
    outcome = Outcome(recording(tmp_path, market()), data_dir)
    assert outcome.report.frames == 330
    for symbol, first_id in (("BTCUSDT", 100), ("ETHUSDT", 900)):
        rows = outcome.of(symbol)
        assert list(rows) == [0, 1, 2, 3, 4]  # the last window has no end yet
        assert [row.trade_count for row in rows.values()] == [25] * 5
        assert [row.first_agg_id for row in rows.values()] == [first_id + 25 * k for k in range(5)]
        assert [row.complete for row in rows.values()] == [False, True, True, True, True]
        assert rows[0].missing_trades is None  # what came before the recording is unknown
    assert outcome.of("BTCUSDT")[1].depth_frames == 5
    assert outcome.of("BTCUSDT")[1].volume == 6.25
    assert not outcome.quarantined
    assert not outcome.gaps


def test_a_second_replay_adds_no_rows(tmp_path: Path, data_dir: Path) -> None:
    path = recording(tmp_path, market())
    first = Outcome(path, data_dir)
    second = Outcome(path, data_dir)
    assert second.rows == first.rows
    assert second.stored_count == first.stored_count == 10
    assert second.outputs.statistics()["skipped_rows"] == 10


def test_a_second_replay_adds_no_rows_after_revisions_either(
    tmp_path: Path, data_dir: Path
) -> None:
    lines = market()
    late = lines.pop(75)  # a trade that comes 9 s late: its window is emitted without it
    lines.insert(180, late.replace(late.split()[0], lines[179].split()[0]))
    path = recording(tmp_path, lines)
    first = Outcome(path, data_dir)
    assert [row.revision for row in first.rows if row.revision]
    assert {row.trade_count for row in first.rows} == {25}
    second = Outcome(path, data_dir)
    assert second.rows == first.rows
    assert second.stored_count == first.stored_count


def test_replays_into_two_folders_are_equal_to_the_last_column(tmp_path: Path) -> None:
    path = recording(tmp_path, market())
    assert Outcome(path, tmp_path / "a").rows == Outcome(path, tmp_path / "b").rows


def test_a_late_trade_gives_the_rows_of_one_in_time(tmp_path: Path) -> None:
    lines = market()
    index = next(i for i, text in enumerate(lines) if b'"a": 126' in text)
    late = lines.pop(index)
    lines.insert(180, late.replace(late.split()[0], lines[179].split()[0]))
    in_time = Outcome(recording(tmp_path, market()), tmp_path / "a").of("BTCUSDT")
    too_late = Outcome(recording(tmp_path, lines, "late.ndjson.gz"), tmp_path / "b").of("BTCUSDT")
    names = ["complete", "missing_trades", "trade_count", "volume", "delta", "cvd", "cvd_complete"]
    for number, row in in_time.items():
        assert [getattr(too_late[number], n) for n in names] == [getattr(row, n) for n in names]


def test_a_hole_leaves_incomplete_windows_and_an_entry_in_the_ledger(
    tmp_path: Path, data_dir: Path
) -> None:
    lines = [text for text in market() if not any(b'"a": %d,' % k in text for k in range(130, 133))]
    outcome = Outcome(recording(tmp_path, lines), data_dir)
    rows = outcome.of("BTCUSDT")
    assert {k: row.missing_trades for k, row in rows.items() if not row.complete} == {0: None, 1: 3}
    assert rows[1].trade_count == 22
    assert [row.cvd_complete for row in rows.values()] == [False] * 5
    assert all(row.complete for k, row in outcome.of("ETHUSDT").items() if k)
    assert outcome.gaps == [("trades", "BTCUSDT", 130, 132, "lost")]
    assert outcome.report.missing_trades == 3


def test_a_hole_across_windows_is_counted_where_it_begins(tmp_path: Path, data_dir: Path) -> None:
    gone = range(140, 190)
    lines = [text for text in market() if not any(b'"a": %d,' % k in text for k in gone)]
    rows = Outcome(recording(tmp_path, lines), data_dir).of("BTCUSDT")
    missing = {k: row.missing_trades for k, row in rows.items() if not row.complete}
    assert missing == {0: None, 1: 50, 2: 0, 3: 0}
    assert rows[2].trade_count == 0


GARBAGE = {
    b"": None,  # an empty line is nothing at all
    b"no stamp and no frame": "no frame of a recording",
    b'{"stream":"btcusdt@aggTrade","data":{}}': "no frame of a recording",
    b"-5 {}": "no frame of a recording",
    b"12": "no frame of a recording",
    b"\xff\xfe \x00": "no frame of a recording",
    b"9" * 5_000 + b" {}": "no frame of a recording",
    b"1721347201000000000 {": "unparsable",
    b"1721347201000000000 [1,2]": "unparsable",
    line(0, agg_trade_frame(p="-1")).strip(): "malformed number",
    line(0, agg_trade_frame(s="ETHUSDT")).strip(): "wrong symbol",
    line(0, agg_trade_frame("BTCUSDT", T=START_MS // 10)).strip(): "impossible id or time",
    line(0, depth_frame(b="none")).strip(): "unparsable",
    line(0, depth_frame(b=[["9e9", "1"]], u=5_000)).strip(): "crossed book",
}


@pytest.mark.parametrize("place", [0, 40, 330], ids=["first", "within", "last"])
def test_garbage_is_quarantined_with_its_reason_and_changes_no_window(
    tmp_path: Path, place: int
) -> None:
    clean = Outcome(recording(tmp_path, market(), "clean.ndjson"), tmp_path / "clean")
    lines = market()
    lines[place:place] = [text + b"\n" for text in GARBAGE]
    dirty = Outcome(recording(tmp_path, lines), tmp_path / "dirty")
    trade_columns = ["window_start_ms", "trade_count", "volume", "cvd", "complete"]
    assert [[getattr(r, n) for n in trade_columns] for r in dirty.rows] == [
        [getattr(r, n) for n in trade_columns] for r in clean.rows
    ]
    reasons = [reason for reason in GARBAGE.values() if reason is not None]
    found = [entry["reason"] for entry in dirty.quarantined]
    assert len(found) == len(reasons)
    for reason in reasons:
        assert any(text.startswith(reason) for text in found)
    assert dirty.report.rejected == len(reasons)
    assert dirty.report.garbage_lines == 6
    assert set(dirty.quarantine_days) <= {"2024-07-18", "2024-07-19"}


def test_streams_and_symbols_not_asked_for_are_left_out(tmp_path: Path, data_dir: Path) -> None:
    other = b'{"stream":"btcusdt@markPrice","data":{"e":"markPriceUpdate"}}'
    lines = [line(0, other), *market(), line(29_999, agg_trade_frame("XRPUSDT"))]
    outcome = Outcome(recording(tmp_path, lines), data_dir, ["BTCUSDT"])
    assert {row.symbol for row in outcome.rows} == {"BTCUSDT"}
    assert not outcome.quarantined


def test_a_truncated_archive_gives_the_rows_of_what_can_be_read(
    tmp_path: Path, data_dir: Path
) -> None:
    path = recording(tmp_path, market(120))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    outcome = Outcome(path, data_dir)
    whole = Outcome(recording(tmp_path, market(120), "whole.ndjson"), tmp_path / "whole")
    rows = outcome.of("BTCUSDT")
    assert 0 < len(rows) < len(whole.of("BTCUSDT"))
    names = ["trade_count", "first_agg_id", "last_agg_id", "volume", "cvd", "complete"]
    for number, row in rows.items():
        twin = whole.of("BTCUSDT")[number]
        assert [getattr(row, n) for n in names] == [getattr(twin, n) for n in names]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"not a recording\n",
        b"\x1f\x8b",
        b"\x1f\x8bgarbage that is no archive",
        gzip.compress(b"nothing here\n", mtime=0),
        b"\x00" * 1_000,
    ],
)
def test_a_file_that_is_no_recording_is_refused(
    tmp_path: Path, data_dir: Path, content: bytes
) -> None:
    path = tmp_path / "x.ndjson"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.ndjson"):
        Outcome(path, data_dir)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(SourceError, match="is a folder"):
        Outcome(tmp_path, data_dir)
    with pytest.raises(SourceError, match="nowhere"):
        Outcome(tmp_path / "nowhere.gz", data_dir)


@pytest.mark.parametrize("name", ["plain.ndjson", "packed.ndjson.gz"])
def test_the_symbols_of_a_recording_are_those_with_trades(tmp_path: Path, name: str) -> None:
    lines = [line(0, depth_frame("XRPUSDT")), *market(1)]
    assert symbols_in(recording(tmp_path, lines, name)) == SYMBOLS
