"""Any bytes give values or rejections, and one frame's fault is never another frame's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from random import Random
from unittest.mock import patch

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from binance_api import columnar, decode
from binance_api.decode import (
    decode_any,
    decode_rest_agg_trades,
    decode_trades,
    parse_decimal,
    parse_decimals,
)
from binance_api.decode_depth import decode_depth, read_levels
from binance_api.frames import Control, Rejection, is_control
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
        assert len(depth.tops) + len(depth.rejections) + control_count == len(payloads)
        for top in depth.tops:
            book = read_levels(top, market)
            if book is not None:
                best = [side[0] if side else None for side in (book.bids, book.asks)]
                assert repr(best) == repr([top.bid, top.ask])  # NaN is a number here, too


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

ODD_NUMBERS = ("0", "0.00", "007.50", "5.", ".5", "1e5", "-1", "", "1" * 19, f"{'0' * 15}.1234")
ODD_IDS = ("-1", "0", "00", "012345678", str(2**62 - 1), str(2**62), str(10**18), "9" * 25)
ODD_TAILS = (
    ',"st":01', ',"st":12', ',"ps":"X"', ',"zz":{"a":1}', ',"zz":1,"yy":true', ',"a":5', ',"m":true',
    ',"nq":"1"', ',"q":"é"', ',"T":1', ',"z":nul',
)  # fmt: skip
SYMBOL_PAIRS = (
    ("BTCUSDT", "ethusdt"), ("1000PEPEUSDT", "1001pepeusdt"), ("1001PEPEUSDT", "1001pepeusdt"),
    ("XRPUSDT", "xrpusdt"), ("币安USDT", "币安usdt"), ("btcusdt", "btcusdt"), ("ETHUSDT", "ETHUSDT"),
)  # fmt: skip


def _number(random: Random) -> str:
    """A positive decimal as the exchange writes them, sometimes padded as on spot."""
    text = f"{random.randint(1, 99_999)}.{random.randint(0, 999_999):06d}"
    text = text[: random.randint(text.index(".") + 2, len(text))]
    if random.random() < 0.3:
        text = text.ljust(text.index(".") + 1 + random.choice([7, 8, 8]), "0")
    return random.choice([text, text, text, str(random.randint(1, 9))])


class Kind:
    """One kind of frame: usual but for at most one odd thing about it."""

    def __init__(self, random: Random) -> None:
        self.symbol = random.choice(["BTCUSDT", "ETHUSDT", "1000PEPEUSDT"])
        self.stream = self.symbol.lower()
        self.tail = random.choice(["", ',"st":1', ',"st":2', ',"M":true', ',"zz":false'])
        self.values = {"p": _number(random), "q": _number(random)}
        self.values["nq"] = random.choice(["", self.values["q"]])
        self.maker = random.choice(["true", "false"])
        self.first_id = random.choice([0, 5, 10**9, 10**9 + 95, 10**17, 2**62 - 500])
        self.comma, self.swaps_keys = ",", False
        match random.randrange(14):
            case 0:
                self.values[random.choice("pq")] = random.choice(ODD_NUMBERS)
            case 1:
                self.values["nq"] = random.choice([_number(random), *ODD_NUMBERS])
            case 2:
                self.values[random.choice("afl")] = random.choice(ODD_IDS)
            case 3:
                self.values["E"] = str(START_MS + random.choice([0, -70_000, -(10**12), 10**10]))
            case 4:
                self.symbol, self.stream = random.choice(SYMBOL_PAIRS)
            case 5:
                self.tail = random.choice(ODD_TAILS)
            case 6:
                self.comma, self.swaps_keys = random.choice([(", ", False), (",", True)])

    def frame(self, i: int, random: Random) -> bytes:
        known = {
            "E": START_MS + i + 100,
            "a": self.first_id + i,
            "p": self._similar("p", random),
            "q": self._similar("q", random),
            "nq": self.values["nq"],
            "f": self.first_id + 2 * i,
            "l": self.first_id + 2 * i + 1,
            "T": START_MS + i,
        }
        known |= {key: text for key, text in self.values.items() if key not in "pq"}
        if known["nq"] == self.values["q"]:
            known["nq"] = random.choice([known["q"], self._similar("q", random)])
        fields = [f'"{k}":"{known[k]}"' for k in ("p", "q", "nq") if k != "nq" or known[k]]
        fields = ['"e":"aggTrade"', f'"E":{known["E"]}', f'"a":{known["a"]}', f'"s":"{self.symbol}"',
                  *fields, f'"f":{known["f"]}', f'"l":{known["l"]}', f'"T":{known["T"]}',
                  f'"m":{self.maker}']  # fmt: skip
        if self.swaps_keys:
            random.shuffle(fields)
        body = self.comma.join(fields) + self.tail
        return f'{{"stream":"{self.stream}@aggTrade","data":{{{body}}}}}'.encode()

    def _similar(self, key: str, random: Random) -> str:
        """The kind's number, or another of the same form."""
        text = self.values[key]
        if random.random() < 0.5:
            return text
        cut = len(text.rstrip("0")) if "." in text else len(text)  # padding stays padding
        return (
            "".join(random.choice("123456789") if c > "0" else c for c in text[:cut]) + text[cut:]
        )


def _batch(random: Random) -> list[bytes]:
    frames = []
    for _ in range(random.randint(1, 4)):
        kind = Kind(random)
        frames += [kind.frame(i, random) for i in range(random.randint(1, 40))]
    for _ in range(random.choice([0, 0, 1, 2])):
        place = random.randrange(len(frames))
        frame = bytearray(frames[place])
        frame[random.randrange(len(frame))] = random.choice(b'0129.,"{}tM \xff')
        frames[place] = bytes(frame)
    frames += random.choice([[], [b'{"result":null,"id":3}'], [b"garbage"], [b""]])
    random.shuffle(frames)
    return frames


@given(st.integers(0, 2**32), st.integers(1, 2))
@settings(max_examples=150)
def test_columns_and_single_objects_give_the_same_trades(seed: int, batch_count: int) -> None:
    random = Random(seed)
    symbols = {"BTCUSDT": 3, "1000PEPEUSDT": 0, "ETHUSDT": 1}
    with _eager_columns():
        for frames in [_batch(random) for _ in range(batch_count)] * 2:  # then with known layouts
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
