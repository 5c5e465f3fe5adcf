"""What a frame can be besides data, and decoding of frames in batches: one bad frame costs only itself.

Frames (bytes) → decoded structs with their stamps, and ``Rejection`` for the others. Never raises on input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

FIRST_MS = 1_230_768_000_000  # 2009-01-01: before the first exchange
LAST_MS = 4_102_444_800_000  # 2100-01-01
FINER_THAN_MS = 10**14  # a time from here on counts micro- or nanoseconds
UNDECODABLE = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)  # the last: nested too deep


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """Input that was not accepted: why, and the input itself."""

    reason: str
    payload: bytes
    receive_time_ns: int
    symbol: str | None = None


def contradictions(rows: np.ndarray, symbols: Sequence[str]) -> list[Rejection]:
    """Trades (``TRADE_DTYPE``) whose id was seen with another payload, as rejected input."""
    names = rows.dtype.names or ()
    return [
        Rejection(
            "id already seen with another payload",
            msgspec.json.encode(dict(zip(names, row.tolist(), strict=True))),
            int(row["receive_time_ns"]),
            symbols[int(row["symbol_index"])],
        )
        for row in rows
    ]


class Control(msgspec.Struct, frozen=True, gc=False):
    """An acknowledgement or another message about the connection; carries no market data."""

    payload: bytes


class Decoded[F](msgspec.Struct, frozen=True):
    """Frames that could be decoded, with the input and receive time of each."""

    frames: list[F]
    payloads: Sequence[bytes]
    stamps: Sequence[int]


def decode_frames[F](
    payloads: Sequence[bytes],
    receive_time_ns: Sequence[int],
    batch: msgspec.json.Decoder[list[F]],
    one: msgspec.json.Decoder[F],
    rejections: list[Rejection],
) -> Decoded[F]:
    """Decode all at once where every frame is well formed, else one by one (``rejections`` grows)."""
    try:
        frames = batch.decode(b"[" + b",".join(payloads) + b"]")
        if len(frames) == len(payloads):
            return Decoded(frames, payloads, receive_time_ns)
    except UNDECODABLE:
        pass
    frames, kept, stamps = [], [], []
    for payload, stamp in zip(payloads, receive_time_ns, strict=True):
        try:
            frames.append(one.decode(payload))
        except UNDECODABLE as error:
            if not is_control(payload):
                rejections.append(Rejection(f"unparsable: {error}", payload, stamp))
        else:
            kept.append(payload)
            stamps.append(stamp)
    return Decoded(frames, kept, stamps)


def is_control(payload: bytes) -> bool:
    """Whether a frame is an acknowledgement, an error reply or a shutdown notice."""
    try:
        value = msgspec.json.decode(payload)
    except UNDECODABLE:
        return False
    if not isinstance(value, dict) or "stream" in value:
        return False
    is_error = "error" in value or ("code" in value and "msg" in value)
    return "result" in value or is_error or value.get("e") == "serverShutdown"


class FinerTime(msgspec.Struct, frozen=True, gc=False):
    """A time that came in micro- or nanoseconds where milliseconds are due, and what was made of it."""

    stream: str
    sent: int
    used_ms: int


def finer_times(sent: Iterable[tuple[str, int, int]]) -> list[FinerTime]:
    """Those of (stream, one time, another time) whose larger time is a possible, finer one."""
    found = [FinerTime(stream, time := max(times), in_ms(time)) for stream, *times in sent]
    return [time for time in found if time.sent >= FINER_THAN_MS and time.used_ms < LAST_MS]


def in_ms(time: int) -> int:
    """A time in milliseconds, micro- and nanoseconds told by their magnitude."""
    if time >= 10**17:
        return time // 10**6
    return time // 10**3 if time >= FINER_THAN_MS else time
