"""Any bytes give values or rejections, and one frame's fault is never another frame's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from unittest.mock import patch

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from binance_api import columnar, decode
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


# --- columnar against one object per frame --------------------------------------------------

digits = st.integers(1, 5).flatmap(lambda n: st.from_regex(rf"[0-9]{{{n}}}", fullmatch=True))
tokens = (
    st.builds("{}.{}".format, digits, digits)
    | digits
    | st.sampled_from(["0.00000000", "0.00000010", "10.00000000", "5.", ".5", "1e5", "0" * 19, ""])
)
ids = (
    st.integers(0, 99)
    | st.integers(10**9, 10**9 + 50)
    | st.sampled_from([-1, 2**62 - 1, 2**62, 10**18 - 1, 10**18, 2**63, 10**25])
)
tails = st.sampled_from(
    ["", ',"st":1', ',"st":2', ',"M":true', ',"M":false', ',"ps":"X"', ',"a":5', ',"st":01',
     ',"zz":{"a":1}', ',"zz":1,"yy":true', ',"nq":"1"', ',"q":"é"']
)  # fmt: skip


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A template of a frame and the values all frames made of it start from."""
    symbol = draw(st.sampled_from(["BTCUSDT", "ETHUSDT", "1000PEPEUSDT", "XRPUSDT", "币安USDT"]))
    stream = draw(st.just(symbol.lower()) | st.sampled_from(["ethusdt", "1001pepeusdt", "x"]))
    quantity = draw(tokens)
    values = {
        "E": str(START_MS + draw(st.integers(-70_000, 70_000))),
        "a": str(draw(ids)),
        "p": draw(tokens),
        "q": quantity,
        "nq": draw(st.none() | st.just(quantity) | tokens) or "",
        "f": str(draw(ids)),
        "l": str(draw(ids)),
        "T": str(START_MS),
        "m": draw(st.sampled_from(["true", "false"])),
    }
    keys = ['"a":{a}', f'"s":"{symbol}"', '"p":"{p}"', '"q":"{q}"']
    keys += ['"nq":"{nq}"'] * bool(values["nq"])
    keys += ['"f":{f}', '"l":{l}', '"T":{T}', '"m":{m}']
    if draw(st.integers(0, 9)) == 0:
        keys = draw(st.permutations(keys))
    comma = draw(st.sampled_from([","] * 5 + [", "]))
    body = comma.join(['"e":"aggTrade"', '"E":{E}', *keys]) + draw(tails)
    return f'{{{{"stream":"{stream}@aggTrade","data":{{{{{_escaped(body)}}}}}}}}}', values


def _escaped(body: str) -> str:
    """Braces of an unknown key's value doubled; those of the fields kept."""
    return body.replace('{"a":1}', '{{"a":1}}')


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Runs of frames of few layouts, some numbers redrawn at their length, some bytes broken."""
    frames: list[bytes] = []
    generator = draw(st.randoms(use_true_random=False))
    for template, start in draw(st.lists(layouts(), min_size=1, max_size=3)):
        for i in range(draw(st.integers(1, 60))):
            values = dict(start, T=str(START_MS + i))
            for key in generator.sample(["a", "p", "q", "f", "l"], generator.randint(0, 3)):
                values[key] = "".join(
                    generator.choice("0123456789") if c.isdigit() else c for c in values[key]
                )
            if generator.random() < 0.5:
                values["nq"] = values["q"]
            frames.append(template.format(**values).encode())
    for _ in range(draw(st.integers(0, 3))):
        place = generator.randrange(len(frames))
        frame = bytearray(frames[place])
        frame[generator.randrange(len(frame))] = generator.choice(b'0129.,"{}tM \xff')
        frames[place] = bytes(frame)
    frames += draw(st.lists(garbage, max_size=3))
    generator.shuffle(frames)
    return frames


@given(st.lists(batches(), min_size=1, max_size=2))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_columns_and_single_objects_give_the_same_trades(runs: list[list[bytes]]) -> None:
    symbols = {"BTCUSDT": 3, "1000PEPEUSDT": 0, "ETHUSDT": 1}
    with _eager_columns():
        for frames in [*runs, *runs]:  # the second time with layouts already learnt
            stamps = [1_000 + 7 * i for i in range(len(frames))]
            with patch.object(decode, "_COLUMNAR", 1):
                columns = decode_trades(frames, stamps, symbols)
            with patch.object(decode, "_COLUMNAR", 1 << 60):
                objects = decode_trades(frames, stamps, symbols)
            assert columns.rows.tolist() == objects.rows.tolist()
            assert columns.rejections == objects.rejections
            assert columns.streams == objects.streams


@contextmanager
def _eager_columns() -> Iterator[None]:
    """Try every layout on every frame, remember very few, look at small blocks."""
    with patch.multiple(
        columnar,
        _SAMPLE_STRIDE=1,
        _MIN_SIGHTINGS=1,
        _MIN_FRAMES=1,
        _MIN_SHARE=0.0,
        _BLOCK_BYTES=2_000,
        _MAX_LAYOUTS=3,
    ):
        yield
