"""Any bytes give values or rejections, and one frame's fault is never another frame's loss."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from binance_api.decode import (
    Control,
    Rejection,
    decode_any,
    decode_depth,
    decode_rest_agg_trades,
    decode_trades,
    is_control,
    parse_decimal,
    parse_decimals,
)
from domain.market import Market
from tests.trade_frames import START_MS, agg_trade_frame, depth_frame

SYMBOLS = {"BTCUSDT": 0, "ETHUSDT": 1}

integers = st.integers(-(2**70), 2**70) | st.integers(START_MS - 10_000, START_MS + 10_000)
scalars = st.none() | st.booleans() | integers | st.text(max_size=8)
numbers = st.from_regex(r"[0-9]{1,20}(\.[0-9]{0,12})?", fullmatch=True)
values = scalars | numbers | st.lists(st.lists(numbers, max_size=3), max_size=3)


@st.composite
def bent_frames(draw: st.DrawFn) -> bytes:
    """A frame with some of its keys replaced, cut or flipped somewhere."""
    make, keys = draw(
        st.sampled_from([(agg_trade_frame, "eEaspqflTm"), (depth_frame, "eETsUupuba")])
    )
    changes = draw(st.dictionaries(st.sampled_from(keys), values, max_size=3))
    frame = bytearray(make(**changes))
    for _ in range(draw(st.integers(0, 2))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))]) if draw(st.booleans()) else bytes(frame)


garbage = st.binary(max_size=40) | bent_frames() | st.just(b'{"result":null,"id":3}')


@given(garbage)
def test_any_bytes_are_a_message_or_a_rejection(payload: bytes) -> None:
    decoded = decode_any(payload)
    if isinstance(decoded, Rejection | Control):
        assert decoded.payload == payload
    else:
        assert not is_control(payload)


@given(st.lists(garbage, max_size=6))
def test_any_batch_of_bytes_gives_rows_rejections_or_control_messages(
    payloads: list[bytes],
) -> None:
    stamps = range(1, len(payloads) + 1)
    trades = decode_trades(payloads, stamps, SYMBOLS)
    control_count = sum(map(is_control, payloads))
    assert len(trades.rows) + len(trades.rejections) + control_count == len(payloads)
    for market in Market:
        depth = decode_depth(payloads, stamps, SYMBOLS, market)
        assert len(depth.snapshots) + len(depth.rejections) + control_count == len(payloads)


@given(st.binary(max_size=60) | st.lists(garbage, max_size=4).map(lambda g: b"[%s]" % b",".join(g)))
def test_any_rest_reply_gives_rows_or_a_value_error(payload: bytes) -> None:
    try:
        rows, rejected = decode_rest_agg_trades(payload)
    except ValueError:
        return
    assert len(rows) + rejected == len(msgspec.json.decode(payload, type=list[msgspec.Raw]))


@given(st.data(), st.sampled_from([2, 40]))
def test_garbage_in_a_batch_costs_only_itself(data: st.DataObject, good_count: int) -> None:
    good = [agg_trade_frame(a=i, T=START_MS + i) for i in range(good_count)]
    # an intact frame may be drawn as well; then it is no garbage
    bad = [g for g in data.draw(st.lists(garbage, max_size=4)) if not _is_trade(g)]
    order = data.draw(st.permutations(range(good_count + len(bad))))
    frames = [(good + bad)[i] for i in order]
    decoded = decode_trades(frames, range(len(frames)), SYMBOLS)
    expected = [(i, place) for place, i in enumerate(order) if i < good_count]
    found = zip(
        decoded.rows["agg_trade_id"].tolist(), decoded.rows["receive_time_ns"].tolist(), strict=True
    )
    assert list(found) == expected
    rejected = sorted(rejection.payload for rejection in decoded.rejections)
    assert rejected == sorted(payload for payload in bad if not is_control(payload))


def _is_trade(payload: bytes) -> bool:
    return len(decode_trades([payload], [1], SYMBOLS).rows) == 1


@given(st.lists(numbers | st.text(alphabet="0123456789.,eE+- \t", max_size=8), min_size=1))
@example(["22 "])
@example(["1.10000000", "0.00000010", "0.00000000"])
def test_numbers_alone_in_columns_and_as_decimals_agree(tokens: list[str]) -> None:
    alone = [parse_decimal(token) for token in tokens]
    columns = parse_decimals(tokens)
    if columns is not None:
        pairs = zip(columns[0].tolist(), columns[1].tolist(), strict=True)
        assert alone == list(pairs)
    elif all(value is not None for value in alone):
        assert any(sum(map(str.isdigit, token)) > 18 for token in tokens)  # zeros beyond int64
    for token, value in zip(tokens, alone, strict=True):
        if value is not None:
            assert Decimal(value[0]).scaleb(-value[1]) == Decimal(token)
