"""Big batches of combined aggTrade frames → ``TRADE_DTYPE`` columns, without an object per frame.

Why: a busy stream sends frame after frame of one layout (same length, every field in the same place).
Such frames are one byte matrix. Subtracting a layout learnt from one of them leaves 0 in every fixed
byte and 0–9 in every digit, so one comparison checks every byte of every frame, and a number is an
integer dot product (a float one would wake BLAS threads). What is rare or in any way unusual is left
to the caller's parser. Layouts are found by sampling; few frames of many layouts cost a sample only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from binance_api.endpoints import StreamKind, stream_name
from domain.market import NO_VALUE, TRADE_DTYPE

MAX_DIGITS = 18  # of any number, so that it fits an int64
_SAMPLE_STRIDE = 11  # one frame of so many is looked at; prime: symbols taking turns must not hide
_MIN_SIGHTINGS = 6  # in the sample that make a layout worth trying
_MIN_SHARE = 0.8  # of the sample in such layouts: two parsers on one batch cost more than either
_MIN_FRAMES = 50  # of one layout: below, numpy's cost per call outweighs the saving
_BLOCK_BYTES = 1_000_000  # looked at in one go: stays in the cache, and malloc gives no fresh pages
_MAX_LAYOUTS = 256  # remembered, about 3 kB each
_NATURAL_DECIMALS = 6
_ZERO, _DOT = 48, 46
_MASK = bytes.maketrans(b"123456789", b"000000000")
_NUMBER = rb'"(\d+(?:\.\d+)?)"'
_FRAME = re.compile(
    rb'\{"stream":"([a-z0-9_]+@aggTrade)","data":\{"e":"aggTrade","E":(\d+),"a":(\d+),'
    rb'"s":"([A-Z0-9_]+)","p":' + _NUMBER + rb',"q":' + _NUMBER + rb'(?:,"nq":' + _NUMBER + rb")?"
    rb',"f":(\d+),"l":(\d+),"T":(\d+),"m":(true|false)'
    rb'(?:,"(?!(?:[eEaspqflTm]|nq)")\w+":(?:\d|true|false))*\}\}'  # such as "st":1, spot's "M":true
)
_STREAM, _SYMBOL, _PRICE, _QUANTITY, _EX_RPI, _IS_MAKER = 1, 4, 5, 6, 7, 11  # groups of _FRAME
_GROUPS = {
    "event_time_ms": 2,
    "agg_trade_id": 3,
    "price": _PRICE,
    "quantity": _QUANTITY,
    "quantity_ex_rpi": _EX_RPI,
    "first_trade_id": 8,
    "last_trade_id": 9,
    "transact_time_ms": 10,
}


class FoundRows(msgspec.Struct, frozen=True):
    """What common layouts gave; everything else is in ``others``.

    ``rows`` are in no order and as sent: ``receive_time_ns`` holds the frame's position in the
    batch, numbers may be padded with zeros and nothing is checked but the syntax.
    """

    rows: np.ndarray
    symbols: set[str]
    others: list[int]  # positions of frames not decoded, ascending


class _Field(msgspec.Struct, frozen=True):
    name: str
    place: slice
    weights: np.ndarray  # int64 power of ten per byte, 0 at the dot
    offset: int  # what ``low`` took off beyond the digit zero


class _Layout:
    """Where the digits of one kind of frame are, and all its other bytes."""

    def __init__(self, frame: bytes, found: re.Match[bytes]) -> None:
        self.symbol = found[_SYMBOL].decode()
        self.low = np.frombuffer(frame, np.uint8).copy()
        self.limit = np.zeros(len(frame), np.uint8)  # how far above ``low`` each byte may be
        self.fields = [
            self._field(name, frame, slice(*found.span(group)))
            for name, group in _GROUPS.items()
            if found[group] is not None
        ]
        self.row = np.zeros((), TRADE_DTYPE)
        self.row["quantity_ex_rpi"] = NO_VALUE
        self.row["is_buyer_maker"] = found[_IS_MAKER] == b"true"
        self.row["price_decimals"] = _decimals(found[_PRICE])
        self.row["quantity_decimals"] = _decimals(found[_QUANTITY])

    def _field(self, name: str, frame: bytes, place: slice) -> _Field:
        digits = np.flatnonzero(self.low[place] != _DOT)
        weights = np.zeros(place.stop - place.start, np.int64)
        weights[digits] = 10 ** np.arange(len(digits) - 1, -1, -1, dtype=np.int64)
        self.low[place.start + digits] = _ZERO
        self.limit[place.start + digits] = 9
        if frame[place.start - 1 : place.start] == b'"' or len(digits) == 1:
            return _Field(name, place, weights, 0)
        self.low[place.start] += 1  # JSON's integers have no leading zero
        self.limit[place.start] = 8
        return _Field(name, place, weights, int(weights[0]))

    def write(self, rows: np.ndarray, digits: np.ndarray) -> None:
        """Fill all columns but ``symbol_index`` and ``receive_time_ns``."""
        rows[:] = self.row
        for field in self.fields:
            np.add(digits[:, field.place] @ field.weights, field.offset, out=rows[field.name])


_layouts: dict[bytes, _Layout] = {}  # by a frame with all its digits made 0, oldest first


def find_rows(payloads: Sequence[bytes], symbol_index: dict[str, int]) -> FoundRows | None:
    """Rows of the frames whose layout is frequent in the batch; None if no layout is.

    Args:
        payloads: one frame each, as received.
        symbol_index: subscribed symbols (upper case) and their row number.
    """
    frequent = _frequent_layouts(payloads, symbol_index)
    if not frequent:
        return None
    rows = np.empty(len(payloads), TRADE_DTYPE)
    is_left = np.ones(len(payloads), np.bool_)
    filled, symbols = 0, set()
    for layout, places, digits in _matches(payloads, frequent):
        part = rows[filled : filled + len(places)]
        layout.write(part, digits)
        part["symbol_index"] = symbol_index[layout.symbol]
        part["receive_time_ns"] = places
        is_left[places] = False
        filled += len(places)
        symbols.add(layout.symbol)
    return FoundRows(rows[:filled], symbols, np.flatnonzero(is_left).tolist()) if filled else None


def _matches(
    payloads: Sequence[bytes], frequent: dict[int, dict[bytes, _Layout]]
) -> Iterator[tuple[_Layout, np.ndarray, np.ndarray]]:
    """Layout, positions, and what is above the layout's ``low``, of frames that are of the layout."""
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    for length, layouts in frequent.items():
        stale = set(layouts)
        places = np.flatnonzero(lengths == length)
        for block in np.array_split(places, -(-len(places) * length // _BLOCK_BYTES)):
            joined = b"".join([payloads[i] for i in block.tolist()])
            frames = np.frombuffer(joined, np.uint8).reshape(-1, length)
            for mask, layout in layouts.items():
                above = frames - layout.low  # unsigned: a byte below ``low`` becomes a large one
                is_within = above <= layout.limit
                fits = slice(None) if is_within.all() else is_within.all(axis=1)
                fitting = block[fits]
                if len(fitting):
                    stale.discard(mask)
                if len(fitting) >= _MIN_FRAMES:
                    yield layout, fitting, above[fits]
        for mask in stale:  # bytes taken for fixed have changed: learn them anew next time
            _layouts.pop(mask, None)


def _frequent_layouts(
    payloads: Sequence[bytes], symbol_index: dict[str, int]
) -> dict[int, dict[bytes, _Layout]]:
    """Layouts of subscribed symbols seen several times in a sample, by length and mask."""
    sample = payloads[::_SAMPLE_STRIDE]
    masks = [frame.translate(_MASK) for frame in sample]
    examples = dict(zip(masks, sample, strict=True))
    counts = {mask: n for mask, n in Counter(masks).items() if n >= _MIN_SIGHTINGS}
    frequent: dict[int, dict[bytes, _Layout]] = {}
    if sum(counts.values()) < _MIN_SHARE * len(masks):
        return frequent
    for mask in counts:
        layout = _layout(mask, examples[mask])
        if layout is not None and layout.symbol in symbol_index:
            frequent.setdefault(len(mask), {})[mask] = layout
    return frequent


def _layout(mask: bytes, frame: bytes) -> _Layout | None:
    """The layout of a frame; None where it is none of the usual ones."""
    layout = _layouts.get(mask)
    if layout is None:
        found = _FRAME.fullmatch(frame)
        if found is None or not _is_usual(found):
            return None
        if len(_layouts) >= _MAX_LAYOUTS:
            del _layouts[next(iter(_layouts))]
        layout = _layouts[mask] = _Layout(frame, found)
    return layout


def _is_usual(found: re.Match[bytes]) -> bool:
    """Whether the stream is the symbol's, numbers fit an int64 and ``nq`` is like ``q``."""
    numbers = [token for group in _GROUPS.values() if (token := found[group]) is not None]
    if any(len(token) - (b"." in token) > MAX_DIGITS for token in numbers):
        return False
    if found[_STREAM].decode() != stream_name(StreamKind.AGG_TRADE, found[_SYMBOL].decode()):
        return False
    decimals = _decimals(found[_QUANTITY])
    ex_rpi = found[_EX_RPI]
    return ex_rpi is None or _decimals(ex_rpi) == decimals <= _NATURAL_DECIMALS


def _decimals(token: bytes) -> int:
    return len(token.partition(b".")[2])
