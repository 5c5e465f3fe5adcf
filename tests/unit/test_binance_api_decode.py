"""Frames and REST replies → columns, snapshots or rejections."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binance_api.columnar import find_rows
from binance_api.decode import (
    decode_any,
    decode_rest_agg_trades,
    decode_trades,
    parse_decimal,
    parse_decimals,
)
from binance_api.decode_depth import decode_depth, read_levels
from binance_api.frames import Control, Rejection, is_control
from binance_api.wire import AggTradeMessage, DepthMessage, ForceOrderMessage, KlineMessage
from domain.market import NO_VALUE, Market
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

SYMBOLS = {"BTCUSDT": 0, "ETHUSDT": 1}
NS = START_MS * 1_000_000
MANY = 40  # enough for the columnar path


def exact(mantissa: int, decimals: int) -> Decimal:
    return Decimal(int(mantissa)).scaleb(-int(decimals))


def trades(*frames: bytes):
    return decode_trades(frames, [NS + i for i in range(len(frames))], SYMBOLS)


def reasons(decoded) -> list[str]:
    return [rejection.reason for rejection in decoded.rejections]


# --- recorded frames ----------------------------------------------------------------------


def test_every_recorded_altcoin_frame_decodes(recordings_dir: Path) -> None:
    path = recordings_dir / "frames" / "usdm_20210722_altcoins.txt.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()[1:]
    decoded = [decode_any(line.split(b": ", 1)[1]) for line in lines]
    assert not [value for value in decoded if isinstance(value, Rejection | Control)]
    assert sum(isinstance(value, AggTradeMessage) for value in decoded) == 91
    assert sum(isinstance(value, KlineMessage) for value in decoded) == 67


def test_every_recorded_single_frame_decodes(recordings_dir: Path) -> None:
    path = recordings_dir / "frames" / "usdm_single_frames_2024_2026.jsonl"
    decoded = [decode_any(line) for line in path.read_bytes().splitlines()]
    assert not [value for value in decoded if isinstance(value, Rejection | Control)]
    assert {type(value) for value in decoded} >= {AggTradeMessage, DepthMessage, ForceOrderMessage}


def test_recorded_rest_trades_decode_but_for_entries_without_a_side(recordings_dir: Path) -> None:
    replies = json.loads((recordings_dir / "rest" / "replies.json").read_text())
    found = [
        body
        for body in _values(replies)
        if isinstance(body, list) and body and isinstance(body[0], dict) and "a" in body[0]
    ]
    assert found
    for body in found:
        rows, rejected = decode_rest_agg_trades(json.dumps(body).encode())
        sound = [entry for entry in body if "m" in entry]  # the recording lacks some
        assert (len(rows), rejected) == (len(sound), len(body) - len(sound))
        for row, entry in zip(rows, sound, strict=True):
            assert exact(row["price"], row["price_decimals"]) == Decimal(entry["p"])
            assert exact(row["quantity"], row["quantity_decimals"]) == Decimal(entry["q"])


def _values(value):
    yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)


# --- trades -------------------------------------------------------------------------------


def test_a_trade_becomes_an_exact_row_with_its_times_and_side() -> None:
    decoded = trades(agg_trade_frame("ETHUSDT", a=9, p="3424.98", q="0.007", m=False))
    (row,) = decoded.rows
    assert exact(row["price"], row["price_decimals"]) == Decimal("3424.98")
    assert exact(row["quantity"], row["quantity_decimals"]) == Decimal("0.007")
    assert (row["symbol_index"], row["agg_trade_id"], bool(row["is_buyer_maker"])) == (1, 9, False)
    assert (row["transact_time_ms"], row["event_time_ms"]) == (START_MS, START_MS + 100)
    assert row["receive_time_ns"] == NS
    assert decoded.streams == {"ethusdt@aggTrade"}
    assert not decoded.rejections


@pytest.mark.parametrize("copies", [1, MANY])
def test_quantity_without_rpi_orders_is_at_the_decimals_of_the_quantity(copies: int) -> None:
    with_nq = trades(*[agg_trade_frame(q="0.250", nq="0.020")] * copies)
    assert set(with_nq.rows["quantity_ex_rpi"].tolist()) == {20}
    assert set(with_nq.rows["quantity_decimals"].tolist()) == {3}
    without = trades(*[agg_trade_frame()] * copies)
    assert set(without.rows["quantity_ex_rpi"].tolist()) == {NO_VALUE}


def test_frames_with_and_without_nq_mix_in_one_batch() -> None:
    decoded = trades(*[agg_trade_frame(nq="0.2" if i % 2 else None) for i in range(MANY)])
    assert decoded.rows["quantity_ex_rpi"].tolist() == [NO_VALUE, 200] * (MANY // 2)


def test_nq_that_does_not_fit_an_int64_is_left_out() -> None:
    decoded = trades(agg_trade_frame(q="0.000001", nq="999999999999999999"))
    assert decoded.rows["quantity_ex_rpi"].tolist() == [NO_VALUE]


@pytest.mark.parametrize("copies", [1, MANY])
def test_unknown_keys_do_not_matter(copies: int) -> None:
    frame = agg_trade_frame(st=1, ps="BTCUSDT", zz={"deep": [1, {"a": None}]})
    decoded = trades(*[frame] * copies)
    assert len(decoded.rows) == copies
    assert not decoded.rejections


def test_the_columnar_path_gives_the_rows_of_the_path_for_single_frames() -> None:
    generator = np.random.default_rng(5)
    frames = [
        agg_trade_frame(
            "ETHUSDT" if generator.random() < 0.5 else "BTCUSDT",
            a=i,
            f=3 * i,
            l=3 * i + int(generator.integers(3)),
            p=f"{generator.random() * 90_000 + 1:.{generator.integers(0, 9)}f}",
            q=f"{generator.random() * 100 + 0.1:.{generator.integers(1, 9)}f}",
            nq=None if i % 3 else "0.0010",
            m=bool(generator.random() < 0.5),
            T=START_MS + i,
        )
        for i in range(200)
    ]
    together = decode_trades(frames, range(200), SYMBOLS)
    alone = np.concatenate([decode_trades([f], [i], SYMBOLS).rows for i, f in enumerate(frames)])
    assert together.rows.tolist() == alone.tolist()
    assert not together.rejections


BAD_TRADES = {
    "negative price": ({"p": "-1.5"}, "malformed number"),
    "zero price": ({"p": "0.00"}, "not positive"),
    "negative quantity": ({"q": "-0.1"}, "malformed number"),
    "zero quantity": ({"q": "0"}, "not positive"),
    "NaN": ({"p": "NaN"}, "malformed number"),
    "infinity": ({"q": "Infinity"}, "malformed number"),
    "exponent": ({"p": "1e5"}, "malformed number"),
    "blank": ({"q": "22 "}, "malformed number"),
    "blank in nq": ({"q": "22", "nq": "22 "}, "malformed number"),
    "other digits": ({"p": "٣"}, "malformed number"),
    "too many digits": ({"p": "1234567890.1234567891"}, "malformed number"),
    "no digits": ({"q": ""}, "malformed number"),
    "lonely dot": ({"q": "5."}, "malformed number"),
    "two dots": ({"q": "5.1.2"}, "malformed number"),
    "comma": ({"q": "5,1"}, "malformed number"),
    "wrong symbol": ({"s": "ETHUSDT"}, "wrong symbol"),
    "negative id": ({"a": -4}, "impossible id or time"),
    "huge id": ({"a": 2**63}, "impossible id or time"),
    "crossed fill ids": ({"f": 72}, "impossible id or time"),
    "time zero": ({"T": 0}, "impossible id or time"),
    "time beyond int64": ({"T": 2**70}, "impossible id or time"),
    "trade after its event": ({"T": START_MS + 90_000}, "contradict"),
    "price as number": ({"p": 64000.1}, "unparsable"),
    "missing id": ({"a": None}, "unparsable"),
    "maker as text": ({"m": "true"}, "unparsable"),
}


@pytest.mark.parametrize("neighbours", [0, MANY], ids=["alone", "in a batch"])
@pytest.mark.parametrize("factor", [1_000, 1_000_000], ids=["microseconds", "nanoseconds"])
def test_times_in_finer_units_are_brought_to_milliseconds(factor: int, neighbours: int) -> None:
    plain = decode_trades([agg_trade_frame()], [NS], SYMBOLS).rows[0]
    fine = agg_trade_frame(
        T=int(plain["transact_time_ms"]) * factor, E=int(plain["event_time_ms"]) * factor
    )
    frames = [fine, *[agg_trade_frame(a=100 + i) for i in range(neighbours)]]
    decoded = decode_trades(frames, [NS] * len(frames), SYMBOLS)
    assert not decoded.rejections
    assert decoded.rows[0] == plain


@pytest.mark.parametrize("event", [START_MS + 10**11, 2**62], ids=["years later", "absurd"])
def test_an_event_time_far_after_the_trade_is_dropped_and_the_trade_kept(event: int) -> None:
    decoded = decode_trades([agg_trade_frame(E=event)], [NS], SYMBOLS)
    assert not decoded.rejections
    assert decoded.rows["event_time_ms"].tolist() == [-1]


@pytest.mark.parametrize(("changes", "reason"), BAD_TRADES.values(), ids=BAD_TRADES.keys())
@pytest.mark.parametrize("neighbours", [0, MANY], ids=["alone", "in a batch"])
def test_a_faulty_trade_is_rejected_with_its_input_and_costs_only_itself(
    changes: dict[str, Any], reason: str, neighbours: int
) -> None:
    good = [agg_trade_frame(a=100 + i) for i in range(neighbours)]
    bad = agg_trade_frame(**changes)
    decoded = trades(*good[: neighbours // 2], bad, *good[neighbours // 2 :])
    assert decoded.rows["agg_trade_id"].tolist() == [100 + i for i in range(neighbours)]
    (rejection,) = decoded.rejections
    assert reason in rejection.reason
    assert rejection.payload == bad
    assert rejection.receive_time_ns == NS + neighbours // 2


def test_rows_keep_their_receive_times_when_frames_between_them_are_bad() -> None:
    decoded = trades(
        agg_trade_frame(a=1), b"garbage", agg_trade_frame(a=2, s="X"), agg_trade_frame()
    )
    assert decoded.rows["receive_time_ns"].tolist() == [NS, NS + 3]
    assert [r.receive_time_ns for r in decoded.rejections] == [NS + 1, NS + 2]


@pytest.mark.parametrize("symbol", ["XRPUSDT", "btcusdt", ""])
def test_trades_of_symbols_not_asked_for_are_rejected(symbol: str) -> None:
    decoded = trades(agg_trade_frame(symbol, stream=f"{symbol.lower()}@aggTrade"))
    assert reasons(decoded) == ["wrong symbol"]
    assert not decoded.streams


def test_a_trade_in_the_stream_of_another_symbol_is_rejected() -> None:
    decoded = trades(agg_trade_frame("BTCUSDT", stream="ethusdt@aggTrade"))
    assert reasons(decoded) == ["wrong symbol"]


def test_acknowledgements_among_trades_are_neither_data_nor_faults() -> None:
    decoded = trades(b'{"result":null,"id":1}', agg_trade_frame())
    assert len(decoded.rows) == 1
    assert not decoded.rejections


@pytest.mark.parametrize(
    "payload",
    [
        b'{"result":null,"id":1}',
        b'{"result":["btcusdt@aggTrade"],"id":"x"}',
        b'{"error":{"code":2,"msg":"Invalid request"},"id":null}',
        b'{"code":0,"msg":"Unknown property"}',
        b'{"e":"serverShutdown","E":1}',
    ],
)
def test_messages_about_the_connection_are_control(payload: bytes) -> None:
    assert decode_any(payload) == Control(payload)
    assert is_control(payload)


DEEP = b"[" * 100_000


@pytest.mark.parametrize("payload", [DEEP, b'{"stream":"x","zz":' + DEEP, b'{"zz":' + DEEP])
def test_input_nested_too_deep_is_rejected(payload: bytes) -> None:
    assert isinstance(decode_any(payload), Rejection)
    assert not is_control(payload)
    assert len(trades(payload).rejections) == 1
    with pytest.raises(ValueError, match="no array"):
        decode_rest_agg_trades(payload)


# --- big batches --------------------------------------------------------------------------


def compact(frame: bytes) -> bytes:
    """A frame without blanks, as the exchange sends it."""
    return frame.replace(b": ", b":").replace(b", ", b",")


def test_a_big_batch_of_one_layout_needs_no_object_per_frame() -> None:
    frames = [compact(agg_trade_frame(a=1_000 + i, T=START_MS + i)) for i in range(600)]
    found = find_rows(frames, SYMBOLS)
    assert found is not None
    assert (len(found.rows), found.others, found.symbols) == (600, [], {"BTCUSDT"})
    together = trades(*frames)
    alone = np.concatenate(
        [decode_trades([f], [NS + i], SYMBOLS).rows for i, f in enumerate(frames)]
    )
    assert together.rows.tolist() == alone.tolist()
    assert together.streams == {"btcusdt@aggTrade"}


def test_a_bad_frame_in_a_big_batch_costs_only_itself() -> None:
    frames = [compact(agg_trade_frame(a=1_000 + i)) for i in range(600)]
    bad = frames[300] = frames[300].replace(b'"a":1300', b'"a":0300')
    decoded = trades(*frames)
    assert decoded.rows["agg_trade_id"].tolist() == [1_000 + i for i in range(600) if i != 300]
    (rejection,) = decoded.rejections
    assert (rejection.payload, rejection.receive_time_ns) == (bad, NS + 300)


def test_a_layout_whose_fixed_bytes_change_is_learnt_anew() -> None:
    for value in (1, 2):
        frames = [compact(agg_trade_frame(a=1_000 + i, st=value)) for i in range(600)]
        assert len(trades(*frames).rows) == 600
    found = find_rows(frames, SYMBOLS)
    assert found is not None
    assert not found.others


def test_a_big_batch_of_many_symbols_is_left_to_the_parser() -> None:
    symbols = {f"S{letter}USDT": i for i, letter in enumerate("ABCDEFGHIJKLMNOPQRST")}
    frames = [compact(agg_trade_frame(symbol, a=i)) for symbol in symbols for i in range(10, 25)]
    assert find_rows(frames, symbols) is None
    assert len(decode_trades(frames, range(len(frames)), symbols).rows) == len(frames)


# --- depth --------------------------------------------------------------------------------


def test_a_depth_frame_becomes_a_snapshot() -> None:
    decoded = decode_depth([depth_frame(ps="BTCUSDT", st=1)], [NS], SYMBOLS)
    (top,) = decoded.tops
    assert top.symbol == "BTCUSDT"
    assert (top.first_update_id, top.final_update_id) == (11, 15)
    assert top.prev_final_update_id == 10
    assert (top.transact_time_ms, top.event_time_ms) == (START_MS, START_MS + 3)
    assert top.bid == (64000.0, 1.5)
    book = read_levels(top)
    assert book is not None
    assert book.bids == [(64000.0, 1.5), (63999.9, 2.0)]
    assert (book.asks[0], book.final_update_id) == (top.ask, 15)
    assert decoded.streams == {"btcusdt@depth20@100ms"}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (depth_frame("XRPUSDT"), "wrong symbol"),
        (depth_frame(stream="ethusdt@depth20@100ms"), "wrong symbol"),
        (depth_frame(T=None), "depth without transaction time"),
        (depth_frame(T=START_MS // 10), "impossible id or time"),
        (depth_frame(b=[["64000.00"]]), "unparsable"),
        (depth_frame(a="none"), "unparsable"),
        (agg_trade_frame(), "unparsable"),
        (b"\xff\xfe", "unparsable"),
    ],
)
def test_a_faulty_depth_frame_costs_only_itself(frame: bytes, reason: str) -> None:
    decoded = decode_depth([depth_frame(), frame, depth_frame(u=16)], [NS, NS + 1, NS + 2], SYMBOLS)
    assert [top.final_update_id for top in decoded.tops] == [15, 16]
    (rejection,) = decoded.rejections
    assert rejection.reason.startswith(reason)
    assert (rejection.payload, rejection.receive_time_ns) == (frame, NS + 1)


@pytest.mark.parametrize(
    "side",
    ['[ [ "1.5" , "2" ] ]', "[[1.5, 2]]", '[["1\\u002e5","2"]]', '[["15e-1","2.00"],["1.4","1"]]'],
)
def test_the_best_level_is_found_however_it_is_spelt(side: str) -> None:
    frame = depth_frame(b="SIDE").replace(b'"SIDE"', side.encode())
    (top,) = decode_depth([frame], [NS], SYMBOLS).tops
    book = read_levels(top)
    assert book is not None
    assert top.bid == book.bids[0] == (1.5, 2.0)


def test_an_empty_side_has_no_best_level() -> None:
    (top,) = decode_depth([depth_frame(b=[], a=[])], [NS], SYMBOLS).tops
    assert (top.bid, top.ask) == (None, None)


@pytest.mark.parametrize("level", [["x", "1"], ["1"], "1", None, ["1_0", "1"]])
def test_a_malformed_level_behind_the_best_shows_when_the_levels_are_read(level: object) -> None:
    frame = compact(depth_frame(b=[["64000.00", "1.5"], level]))
    (top,) = decode_depth([frame], [NS], SYMBOLS).tops
    assert top.bid == (64000.0, 1.5)
    assert read_levels(top) is None


def test_spot_depth_takes_its_symbol_from_the_stream_and_its_time_from_the_receipt() -> None:
    body = {"lastUpdateId": 160, "bids": [["0.0024", "10"]], "asks": [["0.0026", "100"]]}
    frames = [
        json.dumps({"stream": f"{name}@depth20@100ms", "data": body}).encode()
        for name in ("ethusdt", "xrpusdt")
    ]
    decoded = decode_depth(frames, [NS, NS], SYMBOLS, Market.SPOT)
    (top,) = decoded.tops
    assert (top.symbol, top.final_update_id) == ("ETHUSDT", 160)
    assert top.prev_final_update_id is None
    book = read_levels(top, Market.SPOT)
    assert book is not None
    assert (book.bids, book.asks) == ([top.bid], [top.ask])
    assert top.transact_time_ms == START_MS
    assert reasons(decoded) == ["wrong symbol"]


# --- REST ---------------------------------------------------------------------------------


def rest_trade(agg_trade_id: int = 1, **changes: object) -> dict[str, object]:
    trade = {"a": agg_trade_id, "p": "1.20", "q": "3", "f": 5, "l": 6, "T": START_MS, "m": False}
    return trade | changes


def test_a_rest_reply_becomes_rows_without_event_and_receive_time() -> None:
    rows, rejected = decode_rest_agg_trades(json.dumps([rest_trade(4, M=True)]).encode())
    (row,) = rows
    assert rejected == 0
    assert exact(row["price"], row["price_decimals"]) == Decimal("1.20")
    assert (row["agg_trade_id"], row["symbol_index"]) == (4, 0)
    assert row["event_time_ms"] == row["receive_time_ns"] == row["quantity_ex_rpi"] == NO_VALUE


@pytest.mark.parametrize("size", [3, MANY])
@pytest.mark.parametrize(
    "bad",
    [
        rest_trade(p="-1"),
        rest_trade(q="0.0"),
        rest_trade(T=-1),
        rest_trade(T=2**70),
        {"a": 1},
        None,
        [],
        "text",
    ],
)
def test_one_bad_entry_of_a_rest_reply_is_left_out_and_counted(bad: object, size: int) -> None:
    entries: list[object] = [rest_trade(i) for i in range(size)]
    entries[size // 2] = bad
    rows, rejected = decode_rest_agg_trades(json.dumps(entries).encode())
    assert rejected == 1
    assert rows["agg_trade_id"].tolist() == [i for i in range(size) if i != size // 2]


def test_an_empty_rest_reply_is_no_trades() -> None:
    rows, rejected = decode_rest_agg_trades(b"[]")
    assert (len(rows), rejected) == (0, 0)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"code":-1121,"msg":"x"}', b"[1", b"\xff"])
def test_a_rest_reply_that_is_no_array_raises_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="no array of trades"):
        decode_rest_agg_trades(body)


# --- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("0", (0, 0)),
        ("00012", (12, 0)),
        ("83091.70", (8309170, 2)),
        ("0.02200000", (22, 3)),  # spot pads to 8 decimals
        ("0.00000000", (0, 0)),
        ("0.00000010", (1, 7)),
        ("10.00000000", (10, 0)),
        ("999999999999999999", (999999999999999999, 0)),
        ("0.1234567", (1234567, 7)),
    ],
)
def test_a_decimal_becomes_mantissa_and_decimals(token: str, expected: tuple[int, int]) -> None:
    assert parse_decimal(token) == expected
    columns = parse_decimals(["1", token, "2.5"])
    assert columns is not None
    assert (int(columns[0][1]), int(columns[1][1])) == expected


@pytest.mark.parametrize(
    "token", ["", ".", ".5", "5.", "-1", "+1", "1e5", "1E30", "1e400", "0x1", "nan", "inf", "1_0",
              " 1", "1 ", "1\t", "1,1", '"1"', "[1]", "1]", "٣", "1.2.3", "1234567890123456789"]
)  # fmt: skip
def test_what_is_no_plain_decimal_is_refused_alone_and_in_columns(token: str) -> None:
    assert parse_decimal(token) is None
    assert parse_decimals([token]) is None
    assert parse_decimals(["1.5", token, "3"]) is None
