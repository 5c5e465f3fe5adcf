import gzip
import json
from pathlib import Path

import pytest

from domain.errors import SourceError
from simulator.frames import FrameKind, text_frame
from simulator.recording import RecordingSource
from tests.integration.simulator_recordings import START_MS, line, trade, write_recording


def test_frames_are_due_at_receipt_on_the_exchange_s_clock(tmp_path: Path) -> None:
    source = RecordingSource(write_recording(tmp_path / "a.ndjson", 10))
    frames = [frame for chunk in source.chunks() for frame in chunk]
    assert [frame.kind for frame in frames[:2]] == [FrameKind.TRADE, FrameKind.DEPTH]
    assert frames[0].due_ns == source.start_ns
    assert frames[-1].due_ns == source.end_ns
    assert frames[2].due_ns - frames[0].due_ns == 100_000_000
    for frame in frames:
        assert frame.due_ns >= json.loads(frame.data)["E"] * 1_000_000


def test_garbage_is_counted_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    good = line(START_MS, "btcusdt@aggTrade", trade(5, START_MS))
    bad = "\n\nnonsense\n12 {broken\n-3 {}\n99999999999999999999999 {}\n17 []\n"
    path.write_text(bad + good + "x" * 100)
    source = RecordingSource(path)
    assert source.statistics()["garbage_line_count"] == 6
    assert source.statistics()["frame_count"] == 1
    assert source.trades("BTCUSDT").rows["agg_trade_id"].tolist() == [5]


def test_gzip_is_recognised_by_content_and_a_cut_file_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "cut.ndjson"
    whole = gzip.compress(write_recording(tmp_path / "a.ndjson", 2000).read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    source = RecordingSource(path)
    assert 100 < len(source.trades("BTCUSDT")) < 2000


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\x1f\x8bnot really gzip"])
def test_a_file_without_frames_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.ndjson"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"empty\.ndjson"):
        RecordingSource(path)


def test_trades_rest_could_not_have_served_are_left_to_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    odd = [
        trade(1, START_MS) | {"p": "0.00"},
        trade(2, START_MS) | {"p": "abc"},
        trade(3, START_MS) | {"s": "ETHUSDT"},
        trade(4, START_MS) | {"a": None},
        trade(5, START_MS),
        trade(5, START_MS),
    ]
    path.write_text("".join(line(START_MS, "btcusdt@aggTrade", data) for data in odd))
    source = RecordingSource(path)
    assert source.trades("BTCUSDT").rows["agg_trade_id"].tolist() == [5]
    assert sum(len(chunk) for chunk in source.chunks()) == 6


def test_prices_keep_their_recorded_digits_and_give_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    texts = [("64000.10", "0.100"), ("64000.2", "1"), ("63999.90", "0.025")]
    rows = [
        line(START_MS, "btcusdt@aggTrade", trade(n, START_MS) | {"p": price, "q": quantity})
        for n, (price, quantity) in enumerate(texts)
    ]
    path.write_text("".join(rows))
    source = RecordingSource(path)
    spec = source.spec("BTCUSDT")
    assert (spec.tick_size, spec.step_size) == ("0.10", "0.001")
    decimals = source.trades("BTCUSDT").rows[["price_decimals", "quantity_decimals"]].tolist()
    assert decimals == [(2, 3), (1, 0), (2, 3)]


@pytest.mark.parametrize(
    ("size", "header"), [(5, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)]
)
def test_frames_are_encoded_as_the_standard_says(size: int, header: int) -> None:
    wire = text_frame(b"x" * size)
    assert len(wire) == header + size
    assert wire[0] == 0x81
