"""Depth frames (bytes) → ``DepthTop``: ids, times and best levels; the other levels on request.

A frame has 40 levels, of which order flow needs the best two and the book's shape those of one frame
per window: decoding them all costs four times as much as reading the best. Never raises on input.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from binance_api.endpoints import symbol_of
from binance_api.frames import (
    FINER_THAN_MS,
    FIRST_MS,
    LAST_MS,
    UNDECODABLE,
    FinerTime,
    Rejection,
    decode_frames,
    finer_times,
    in_ms,
)
from binance_api.wire import (
    DepthFrame,
    RawDepthFrame,
    RawSpotDepthFrame,
    SpotDepthFrame,
)
from domain.market import DepthSnapshot, DepthTop, Market

_um_batch = msgspec.json.Decoder(list[RawDepthFrame], strict=False)
_um_one = msgspec.json.Decoder(RawDepthFrame, strict=False)
_um_levels = msgspec.json.Decoder(DepthFrame, strict=False)
_spot_batch = msgspec.json.Decoder(list[RawSpotDepthFrame], strict=False)
_spot_one = msgspec.json.Decoder(RawSpotDepthFrame, strict=False)
_spot_levels = msgspec.json.Decoder(SpotDepthFrame, strict=False)
_side = msgspec.json.Decoder(list[tuple[float, float]], strict=False)

_symbol_of = functools.lru_cache(maxsize=4_096)(symbol_of)

type _Level = tuple[float, float]


class DecodedDepth(msgspec.Struct, frozen=True):
    """Frames in arrival order, what was rejected, and the streams that carried data.

    ``finer`` tells of times that came finer than milliseconds.
    """

    tops: list[DepthTop]
    rejections: list[Rejection]
    streams: set[str]
    finer: list[FinerTime] = []


def decode_depth(
    payloads: Sequence[bytes],
    receive_time_ns: Sequence[int],
    symbol_index: dict[str, int],
    market: Market = Market.UM,
) -> DecodedDepth:
    """Decode combined partial-depth frames (20 levels) of subscribed symbols.

    The JSON of every frame is checked, of its numbers only the best levels': ``read_levels`` has the rest.
    """
    rejections: list[Rejection] = []
    finer: list[tuple[str, int, int]] = []
    if market is Market.SPOT:
        spot = decode_frames(payloads, receive_time_ns, _spot_batch, _spot_one, rejections)
        streams = [frame.stream for frame in spot.frames]
        made = [
            _spot_top(frame, payload, stamp, symbol_index)
            for frame, payload, stamp in zip(spot.frames, spot.payloads, spot.stamps, strict=True)
        ]
    else:
        um = decode_frames(payloads, receive_time_ns, _um_batch, _um_one, rejections)
        streams = [frame.stream for frame in um.frames]
        made = [
            _top(frame, payload, stamp, symbol_index)
            for frame, payload, stamp in zip(um.frames, um.payloads, um.stamps, strict=True)
        ]
        finer = [
            (f.stream, f.data.transact_time_ms or 0, f.data.event_time_ms)
            for f in um.frames
            if f.data.event_time_ms >= FINER_THAN_MS
            or (f.data.transact_time_ms or 0) >= FINER_THAN_MS
        ]
    tops = [top for top in made if isinstance(top, DepthTop)]
    rejections += [fault for fault in made if isinstance(fault, Rejection)]
    if len(tops) < len(made):
        streams = [s for s, top in zip(streams, made, strict=True) if isinstance(top, DepthTop)]
    return DecodedDepth(tops, rejections, set(streams), finer_times(finer) if finer else [])


def read_levels(top: DepthTop, market: Market = Market.UM) -> DepthSnapshot | None:
    """All levels of a frame; None if one of them is malformed."""
    decoder = _spot_levels if market is Market.SPOT else _um_levels
    try:
        message = decoder.decode(top.payload).data
    except UNDECODABLE:
        return None
    return DepthSnapshot(
        top.symbol,
        top.event_time_ms,
        top.transact_time_ms,
        top.receive_time_ns,
        top.first_update_id,
        top.final_update_id,
        top.prev_final_update_id,
        message.bids,
        message.asks,
    )


def _top(
    frame: RawDepthFrame, payload: bytes, stamp: int, symbol_index: dict[str, int]
) -> DepthTop | Rejection:
    message = frame.data
    symbol, time_ms = message.symbol, message.transact_time_ms
    named = _symbol_of(frame.stream)
    if symbol not in symbol_index or named != symbol:
        return Rejection("wrong symbol", payload, stamp, named)
    if time_ms is None:
        return Rejection("depth without transaction time", payload, stamp, symbol)
    time_ms = in_ms(time_ms)
    if not FIRST_MS <= time_ms < LAST_MS:
        return Rejection("impossible id or time", payload, stamp, symbol)
    try:
        bid, ask = _best(message.bids), _best(message.asks)
    except UNDECODABLE as error:
        return Rejection(f"unparsable: {error}", payload, stamp, symbol)
    return DepthTop(
        symbol,
        in_ms(message.event_time_ms),
        time_ms,
        stamp,
        message.first_update_id,
        message.final_update_id,
        message.prev_final_update_id,
        bid,
        ask,
        payload,
    )


def _spot_top(
    frame: RawSpotDepthFrame, payload: bytes, stamp: int, symbol_index: dict[str, int]
) -> DepthTop | Rejection:
    symbol = _symbol_of(frame.stream)
    if symbol not in symbol_index:
        return Rejection("wrong symbol", payload, stamp, symbol)
    message, time_ms = frame.data, stamp // 1_000_000
    try:
        bid, ask = _best(message.bids), _best(message.asks)
    except UNDECODABLE as error:
        return Rejection(f"unparsable: {error}", payload, stamp, symbol)
    update_id = message.final_update_id
    return DepthTop(symbol, time_ms, time_ms, stamp, update_id, update_id, None, bid, ask, payload)


def _best(side: msgspec.Raw) -> _Level | None:
    """The first level of ``[["price","size"],…]``, None if there is none; raises as a decoder does."""
    parts = bytes(side).split(b'"', 4)
    if len(parts) == 5 and parts[0] == b"[[" and parts[2] == b",":
        try:
            return float(parts[1]), float(parts[3])
        except ValueError:
            pass
    levels = _side.decode(side)  # any other spelling, and the error where it is none
    return levels[0] if levels else None
