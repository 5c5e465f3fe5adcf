"""Trade frames (bytes) → columns or documented rejections; any known frame → its message.

A batch is decoded in one call where every frame is well formed; otherwise frame by frame, so that
one bad frame costs only itself. Numbers stay exact: a decimal string becomes mantissa and decimals.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec
import numpy as np

from binance_api.columnar import MAX_DIGITS, FoundRows, find_rows
from binance_api.endpoints import StreamKind, stream_name
from binance_api.frames import (
    FINER_THAN_MS,
    FIRST_MS,
    LAST_MS,
    UNDECODABLE,
    Control,
    Decoded,
    FinerTime,
    Rejection,
    decode_frames,
    finer_times,
    in_ms,
    is_control,
)
from binance_api.wire import (
    AggTradeFrame,
    AggTradeMessage,
    CombinedFrame,
    Message,
    RestAggTrade,
)
from domain.market import NO_VALUE, TRADE_DTYPE

_NATURAL_DECIMALS = 6  # spot pads every number to 8 decimals; beyond 6 trailing zeros are dropped
_MAX_ID = 2**62
_MAX_MANTISSA = 2**63 - 1
_MAX_AHEAD_MS = 60_000  # a trade this long after the event that reports it contradicts itself
_MAX_BEHIND_MS = 3_600_000  # so does an event this long after its trade
_INTEGERS = (  # in the order of the wire schema, after the maker flag
    "agg_trade_id",
    "first_trade_id",
    "last_trade_id",
    "transact_time_ms",
    "event_time_ms",
)
_BULK = 24  # messages from which the columnar path is cheaper than row by row
_COLUMNAR = 400  # frames from which looking for common layouts pays
_POW10 = np.array([10**k for k in range(MAX_DIGITS + 1)], dtype=np.int64)
_COMMA, _DOT = 44, 46

_agg_trade_batch = msgspec.json.Decoder(list[AggTradeFrame])
_agg_trade_one = msgspec.json.Decoder(AggTradeFrame)
_any_combined = msgspec.json.Decoder(CombinedFrame, strict=False)
_any_raw = msgspec.json.Decoder(Message, strict=False)
_mantissas = msgspec.json.Decoder(list[int])
_rest_batch = msgspec.json.Decoder(list[RestAggTrade])
_rest_raw = msgspec.json.Decoder(list[msgspec.Raw])
_rest_one = msgspec.json.Decoder(RestAggTrade)


class DecodedTrades(msgspec.Struct, frozen=True):
    """``rows`` (``TRADE_DTYPE``, arrival order), what was rejected, and the streams that carried data.

    ``finer`` tells of times that came finer than milliseconds.
    """

    rows: np.ndarray
    rejections: list[Rejection]
    streams: set[str]
    finer: list[FinerTime] = []


def decode_trades(
    payloads: Sequence[bytes], receive_time_ns: Sequence[int], symbol_index: dict[str, int]
) -> DecodedTrades:
    """Decode combined aggTrade frames of subscribed symbols.

    Args:
        payloads: one frame each, as received.
        receive_time_ns: wall-clock receipt of each, nanoseconds.
        symbol_index: subscribed symbols (upper case) and their row number.
    """
    if len(payloads) >= _COLUMNAR:
        found = find_rows(payloads, symbol_index)
        if found is not None and _is_sound(found.rows, is_live=True):
            return _completed(found, payloads, receive_time_ns, symbol_index)
    return _decode_messages(payloads, receive_time_ns, symbol_index)


def _completed(
    found: FoundRows,
    payloads: Sequence[bytes],
    receive_time_ns: Sequence[int],
    symbol_index: dict[str, int],
) -> DecodedTrades:
    """What ``find_rows`` gave together with the frames it left, in arrival order."""
    rows = found.rows
    for name in ("price", "quantity"):
        rows[name], rows[f"{name}_decimals"] = _without_padding(
            rows[name], rows[f"{name}_decimals"]
        )
    streams = {stream_name(StreamKind.AGG_TRADE, symbol) for symbol in found.symbols}
    rejections: list[Rejection] = []
    finer: list[FinerTime] = []
    if found.others:
        others = _decode_messages([payloads[i] for i in found.others], found.others, symbol_index)
        rejections = [
            msgspec.structs.replace(r, receive_time_ns=receive_time_ns[r.receive_time_ns])
            for r in others.rejections
        ]
        streams |= others.streams
        finer = others.finer
        merged = np.empty(len(rows) + len(others.rows), dtype=TRADE_DTYPE)
        merged[: len(rows)], merged[len(rows) :] = rows, others.rows
        rows = merged
    rows = rows[np.argsort(rows["receive_time_ns"], kind="stable")]  # still positions in the batch
    positions = rows["receive_time_ns"].copy()
    rows["receive_time_ns"] = np.array(receive_time_ns, dtype=np.int64)[positions]
    return DecodedTrades(rows, rejections, streams, finer)


def _decode_messages(
    payloads: Sequence[bytes], receive_time_ns: Sequence[int], symbol_index: dict[str, int]
) -> DecodedTrades:
    """Rows of any frames, one object per frame."""
    rejections: list[Rejection] = []
    decoded = decode_frames(payloads, receive_time_ns, _agg_trade_batch, _agg_trade_one, rejections)
    decoded = _of_known_symbols(decoded, symbol_index, rejections)
    messages = [frame.data for frame in decoded.frames]
    rows, faults = _trade_rows(messages, decoded.stamps, symbol_index)
    for i, reason in faults:
        rejections.append(
            Rejection(reason, decoded.payloads[i], decoded.stamps[i], messages[i].symbol)
        )
    streams = {frame.stream for frame in decoded.frames}
    finer = [
        (_trade_stream(m.symbol), m.transact_time_ms, m.event_time_ms)
        for m in messages
        if m.transact_time_ms >= FINER_THAN_MS or m.event_time_ms >= FINER_THAN_MS
    ]
    return DecodedTrades(rows, rejections, streams, finer_times(finer) if finer else [])


def decode_any(payload: bytes) -> Message | Control | Rejection:
    """Decode one frame of any known kind, combined or raw."""
    try:
        frame: CombinedFrame = _any_combined.decode(payload)
    except UNDECODABLE:
        pass
    else:
        return frame.data
    try:
        message: Message = _any_raw.decode(payload)
    except UNDECODABLE as error:
        if is_control(payload):
            return Control(payload)
        return Rejection(f"unparsable: {error}", payload, NO_VALUE)
    return message


def decode_rest_agg_trades(payload: bytes) -> tuple[np.ndarray, int]:
    """Decode a reply of ``aggTrades``.

    Returns:
        ``TRADE_DTYPE`` rows as sent (``symbol_index`` 0, event and receive times ``NO_VALUE``) and
        the number of entries that were not valid trades and are left out.

    Raises:
        ValueError: the reply is no JSON array at all.
    """
    try:
        messages = _rest_batch.decode(payload)
        entries = len(messages)
    except UNDECODABLE:
        try:
            raw = _rest_raw.decode(payload)
        except UNDECODABLE as error:
            raise ValueError(f"no array of trades: {error}") from error
        entries = len(raw)
        messages = [m for m in map(_rest_entry, raw) if m is not None]
    rows, _ = _trade_rows(messages, [NO_VALUE] * len(messages), None)
    return rows, entries - len(rows)


def parse_decimals(tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Decimal strings → (mantissa int64, decimals uint8), or None if any token is not plain digits.

    Every token must be ``digits`` or ``digits.digits`` with at most 18 digits; value =
    mantissa / 10**decimals. The batch is parsed as one JSON list of integers: each token gets a
    leading 1, which keeps leading zeros legal and is taken off again.
    """
    text = ",1".join(tokens)
    try:
        raw = text.encode("ascii")
        values = _mantissas.decode(b"[1" + raw.replace(b".", b"") + b"]")
    except (UnicodeEncodeError, msgspec.DecodeError):
        return None
    count = len(tokens)
    if len(values) != count:
        return None
    codes = np.frombuffer(raw, dtype=np.uint8)
    ends = np.empty(count, dtype=np.int64)
    commas = np.flatnonzero(codes == _COMMA)
    if len(commas) != count - 1:
        return None
    ends[:-1] = commas
    ends[-1] = len(codes)
    starts = np.empty(count, dtype=np.int64)
    starts[0] = 0
    starts[1:] = commas + 2
    decimals = _decimals(np.flatnonzero(codes == _DOT), starts, ends)
    if decimals is None:
        return None
    digits = ends - starts - (decimals > 0)
    if digits.min() < 1 or digits.max() > MAX_DIGITS:
        return None
    mantissa = np.array(values, dtype=np.int64) - _POW10[digits]
    if mantissa.min() < 0:  # blanks after a number are legal JSON
        return None
    return _without_padding(mantissa, decimals.astype(np.uint8))


def parse_decimal(token: str) -> tuple[int, int] | None:
    """One decimal string → (mantissa, decimals), or None; the same language as ``parse_decimals``."""
    whole, dot, fraction = token.partition(".")
    digits = whole + fraction
    if not (digits.isdecimal() and digits.isascii() and whole) or (dot and not fraction):
        return None
    if len(whole) + len(fraction) > MAX_DIGITS:
        whole = whole.lstrip("0") or "0"
        fraction = fraction.rstrip("0")
        if len(whole) + len(fraction) > MAX_DIGITS:
            return None
    if len(fraction) > _NATURAL_DECIMALS:
        fraction = fraction.rstrip("0")
    return int(whole + fraction), len(fraction)


def _decimals(dots: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Digits after the dot of every token; None for two dots or a dot at an end of a token."""
    count = len(starts)
    if len(dots) == 0:
        return np.zeros(count, dtype=np.int64)
    if len(dots) == count:
        token = np.arange(count)
    elif len(dots) < count:
        token = np.searchsorted(ends, dots)
        if (np.diff(token) == 0).any():
            return None
    else:
        return None
    after = ends[token] - dots - 1
    if (dots <= starts[token]).any() or after.min() < 1:
        return None
    decimals = np.zeros(count, dtype=np.int64)
    decimals[token] = after
    return decimals


def _without_padding(mantissa: np.ndarray, decimals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    padded = decimals > _NATURAL_DECIMALS
    while padded.any():
        quotient, remainder = np.divmod(mantissa, 10)
        padded &= (remainder == 0) & (decimals > 0)
        mantissa = np.where(padded, quotient, mantissa)
        decimals = (decimals - padded).astype(np.uint8)
    return mantissa, decimals


def _of_known_symbols(
    decoded: Decoded[AggTradeFrame], symbol_index: dict[str, int], rejections: list[Rejection]
) -> Decoded[AggTradeFrame]:
    wrong = {
        (stream, symbol)
        for stream, symbol in {(frame.stream, frame.data.symbol) for frame in decoded.frames}
        if symbol not in symbol_index or stream != _trade_stream(symbol)
    }
    if not wrong:
        return decoded
    kept: Decoded[AggTradeFrame] = Decoded([], payloads := [], stamps := [])
    for frame, payload, stamp in zip(decoded.frames, decoded.payloads, decoded.stamps, strict=True):
        if (frame.stream, frame.data.symbol) in wrong:
            rejections.append(Rejection("wrong symbol", payload, stamp, frame.data.symbol))
        else:
            kept.frames.append(frame)
            payloads.append(payload)
            stamps.append(stamp)
    return kept


@functools.lru_cache(maxsize=4_096)
def _trade_stream(symbol: str) -> str:
    return stream_name(StreamKind.AGG_TRADE, symbol)


def _trade_rows(
    messages: Sequence[AggTradeMessage | RestAggTrade],
    stamps: Sequence[int],
    symbol_index: dict[str, int] | None,
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Columns of messages that are structurally sound; position and fault of the others."""
    if not messages:
        return np.empty(0, dtype=TRADE_DTYPE), []
    if len(messages) >= _BULK:
        rows = _rows_in_bulk(messages, stamps, symbol_index)
        if rows is not None and _is_sound(rows, is_live=symbol_index is not None):
            return rows, []
    records: list[tuple[int | bool, ...]] = []
    faults: list[tuple[int, str]] = []
    for i, (message, stamp) in enumerate(zip(messages, stamps, strict=True)):
        record = _record(message, stamp, symbol_index)
        if isinstance(record, str):
            faults.append((i, record))
        else:
            records.append(record)
    return np.array(records, dtype=TRADE_DTYPE), faults


def _record(
    message: AggTradeMessage | RestAggTrade, stamp: int, symbol_index: dict[str, int] | None
) -> tuple[int | bool, ...] | str:
    """One row in ``TRADE_DTYPE``'s order, or what is wrong with the message."""
    price, quantity = parse_decimal(message.price), parse_decimal(message.quantity)
    if price is None or quantity is None:
        return "malformed number"
    if price[0] <= 0 or quantity[0] <= 0:
        return "not positive"
    event_ms, ex_rpi, index = NO_VALUE, NO_VALUE, 0
    if isinstance(message, AggTradeMessage) and symbol_index is not None:
        event_ms, index = in_ms(message.event_time_ms), symbol_index[message.symbol]
        if message.quantity_ex_rpi == message.quantity:
            ex_rpi = quantity[0]
        elif message.quantity_ex_rpi is not None:
            parsed = parse_decimal(message.quantity_ex_rpi)
            if parsed is None:
                return "malformed number"
            ex_rpi = _at_decimals(parsed, quantity[1])
    first_id, last_id = message.first_trade_id, message.last_trade_id
    time_ms = in_ms(message.transact_time_ms)
    if not (
        0 <= message.agg_trade_id < _MAX_ID
        and -_MAX_ID < first_id <= last_id < _MAX_ID
        and FIRST_MS <= time_ms < LAST_MS
    ):
        return "impossible id or time"
    if event_ms != NO_VALUE and event_ms - time_ms > _MAX_BEHIND_MS:
        event_ms = (
            NO_VALUE  # the sender's clock is off: the trade stands, its event time says nothing
        )
    elif event_ms != NO_VALUE and event_ms - time_ms < -_MAX_AHEAD_MS:
        return "event and transaction time contradict each other"
    return (
        index,
        message.is_buyer_maker,
        price[1],
        quantity[1],
        0,
        message.agg_trade_id,
        price[0],
        quantity[0],
        ex_rpi,
        first_id,
        last_id,
        time_ms,
        event_ms,
        stamp,
    )


def _at_decimals(value: tuple[int, int], decimals: int) -> int:
    """A (mantissa, decimals) at other decimals; ``NO_VALUE`` if it does not fit them."""
    mantissa, have = value
    if have <= decimals:
        scaled = mantissa * 10 ** (decimals - have)
        return scaled if scaled <= _MAX_MANTISSA else NO_VALUE
    quotient, remainder = divmod(mantissa, 10 ** (have - decimals))
    return quotient if remainder == 0 else NO_VALUE


def _rows_in_bulk(
    messages: Sequence[AggTradeMessage | RestAggTrade],
    stamps: Sequence[int],
    symbol_index: dict[str, int] | None,
) -> np.ndarray | None:
    """Columns of many messages at once; None if any of them needs a closer look."""
    columns = list(zip(*map(msgspec.structs.astuple, messages), strict=True))
    offset = 1 if symbol_index is not None else 0  # REST rows have no symbol in front
    count = len(messages)
    numbers = parse_decimals(columns[offset] + columns[offset + 1])
    if numbers is None:
        return None
    mantissas, decimals = numbers
    rows = np.empty(count, dtype=TRADE_DTYPE)
    rows["suspect"] = 0
    rows["price"], rows["price_decimals"] = mantissas[:count], decimals[:count]
    rows["quantity"], rows["quantity_decimals"] = mantissas[count:], decimals[count:]
    rows["is_buyer_maker"] = np.frombuffer(bytes(columns[offset + 2]), dtype=np.bool_)
    names = _INTEGERS if symbol_index is not None else _INTEGERS[:-1]
    try:
        for place, name in enumerate(names, start=offset + 3):
            rows[name] = np.fromiter(columns[place], np.int64, count)
    except OverflowError:
        return None
    if symbol_index is None:
        rows["event_time_ms"] = NO_VALUE
    rows["receive_time_ns"] = stamps
    rows["quantity_ex_rpi"] = NO_VALUE
    if symbol_index is None:
        rows["symbol_index"] = 0
        return rows
    symbols = columns[0]
    if len(set(symbols)) == 1:
        rows["symbol_index"] = symbol_index[symbols[0]]
    else:
        rows["symbol_index"] = [symbol_index[symbol] for symbol in symbols]
    return rows if _fill_ex_rpi(rows, columns[offset + 8], columns[offset + 1]) else None


def _fill_ex_rpi(rows: np.ndarray, tokens: Sequence[str | None], quantities: Sequence[str]) -> bool:
    """Fill ``quantity_ex_rpi`` at the quantity's decimals; False if a token is malformed."""
    ex_rpi = rows["quantity_ex_rpi"]
    ex_rpi[:] = rows["quantity"]  # no RPI order took part: the usual case
    if tokens == quantities:
        return True
    for i, (token, quantity) in enumerate(zip(tokens, quantities, strict=True)):
        if token == quantity:
            continue
        parsed = None if token is None else parse_decimal(token)
        if token is not None and (parsed is None or parsed[1] != rows["quantity_decimals"][i]):
            return False
        ex_rpi[i] = parsed[0] if parsed else NO_VALUE
    return True


def _is_sound(rows: np.ndarray, *, is_live: bool) -> bool:
    """Structural law for trades: positive price and quantity, plausible ids and times."""
    times = rows["transact_time_ms"]
    is_sound = (
        rows["price"].min() > 0
        and rows["quantity"].min() > 0
        and rows["agg_trade_id"].min() >= 0
        and rows["agg_trade_id"].max() < _MAX_ID
        and times.min() >= FIRST_MS
        and times.max() < LAST_MS
        and rows["first_trade_id"].min() > -_MAX_ID
        and rows["last_trade_id"].max() < _MAX_ID
        and (rows["last_trade_id"] >= rows["first_trade_id"]).all()
    )
    if not is_sound or not is_live:
        return bool(is_sound)
    events = rows["event_time_ms"]
    if not 0 < events.min() <= events.max() < LAST_MS + _MAX_BEHIND_MS:
        return False  # also keeps the difference below from overflowing
    delays = events - times
    return bool(delays.min() >= -_MAX_AHEAD_MS and delays.max() <= _MAX_BEHIND_MS)


def _rest_entry(raw: msgspec.Raw) -> RestAggTrade | None:
    try:
        return _rest_one.decode(raw)
    except UNDECODABLE:
        return None
