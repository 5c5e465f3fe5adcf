"""What the feed is made of: frames with their due time, and trades as columns for REST.

Consumes nothing → produces ``Frame`` (one stream message) and ``Tape`` (aggTrades of one symbol,
ordered by id, each with the market time from which it may be seen).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Protocol

import msgspec
import numpy as np

from domain.market import TRADE_DTYPE

NO_ID = -1


class FrameKind(enum.Enum):
    """What a frame carries, as far as routes and faults care."""

    TRADE = "aggTrade"
    DEPTH = "depth"
    OTHER = "other"


class Frame(msgspec.Struct, gc=False):
    """One message of one stream.

    ``due_ns`` is the market time at which a client would receive it; ``data`` is the JSON of the
    event alone, ``combined`` the same inside ``{"stream":…,"data":…}`` exactly as sent.
    """

    due_ns: int
    stream: str
    symbol: str
    kind: FrameKind
    data: bytes
    combined: bytes
    agg_trade_id: int = NO_ID
    mark: object | None = None  # faults.FrameMark of the fault that claimed this frame
    _wire_combined: bytes | None = None
    _wire_raw: bytes | None = None

    def payload(self, *, combined: bool) -> bytes:
        """The text of the message in one of the two framings."""
        return self.combined if combined else self.data

    def wire(self, *, combined: bool) -> bytes:
        """The WebSocket frame bytes, encoded once for all clients."""
        if combined:
            if self._wire_combined is None:
                self._wire_combined = text_frame(self.combined)
            return self._wire_combined
        if self._wire_raw is None:
            self._wire_raw = text_frame(self.data)
        return self._wire_raw


def combine(stream: str, data: bytes) -> bytes:
    """Wrap an event as the combined streams do."""
    return b'{"stream":"%b","data":%b}' % (stream.encode(), data)


def text_frame(payload: bytes) -> bytes:
    """An unmasked, unfragmented text frame (RFC 6455 §5.2), as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


class Tape(msgspec.Struct, frozen=True):
    """AggTrades of one symbol in id order: ``rows`` is TRADE_DTYPE[n], ``due_ns`` int64[n]."""

    rows: np.ndarray
    due_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, first: int, last: int) -> Tape:
        """Rows ``first`` up to but excluding ``last``."""
        return Tape(self.rows[first:last], self.due_ns[first:last])

    def where(self, mask: np.ndarray) -> Tape:
        """The rows selected by a boolean mask."""
        return Tape(self.rows[mask], self.due_ns[mask])


EMPTY_TAPE = Tape(np.empty(0, TRADE_DTYPE), np.empty(0, np.int64))


def join(tapes: list[Tape]) -> Tape:
    """Concatenate tapes that follow each other."""
    if len(tapes) == 1:
        return tapes[0]
    if not tapes:
        return EMPTY_TAPE
    return Tape(
        np.concatenate([tape.rows for tape in tapes]),
        np.concatenate([tape.due_ns for tape in tapes]),
    )


def decimal_text(mantissa: int, decimals: int) -> str:
    """``mantissa / 10**decimals`` with exactly that many decimals, as the exchange writes it."""
    if decimals == 0:
        return str(mantissa)
    digits = f"{mantissa:0{decimals + 1}d}"
    return f"{digits[:-decimals]}.{digits[-decimals:]}"


class SymbolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Grid of one symbol: tick and step are ``mantissa / 10**decimals``."""

    symbol: str
    price_decimals: int
    tick_mantissa: int
    quantity_decimals: int
    step_mantissa: int

    @property
    def tick_size(self) -> str:
        """Smallest price step, quote units."""
        return decimal_text(self.tick_mantissa, self.price_decimals)

    @property
    def step_size(self) -> str:
        """Smallest quantity step, base units."""
        return decimal_text(self.step_mantissa, self.quantity_decimals)


class MarketSource(Protocol):
    """Where frames and past trades come from. Every method may block; none keeps state."""

    @property
    def start_ns(self) -> int:
        """Market time at which the clock starts."""

    @property
    def end_ns(self) -> int | None:
        """Due time of the last frame; None for a market without end."""

    @property
    def first_ms(self) -> int:
        """Oldest trade time that can be served."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol listed, in a fixed order."""

    def spec(self, symbol: str) -> SymbolSpec:
        """Tick and step of a listed symbol."""

    def chunks(self) -> Iterator[list[Frame]]:
        """All frames in order of ``due_ns``, in lists of a size that keeps memory small."""

    def from_id(self, symbol: str, first_id: int, limit: int) -> Tape:
        """Up to ``limit`` trades with id ≥ ``first_id``."""

    def between(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Trades with ``start_ms ≤ T < end_ms``."""

    def before(self, symbol: str, due_ns: int, limit: int) -> Tape:
        """The last ``limit`` trades that are due by ``due_ns``."""

    def minute_rows(self, symbol: str, start_ms: int, end_ms: int, due_ns: int) -> np.ndarray:
        """``candles.MINUTE_DTYPE`` of the trades due by ``due_ns`` in ``[start_ms, end_ms)``."""

    def book(self, symbol: str, due_ns: int) -> bytes | None:
        """Data of the last depth frame due before the clock started, if there is one."""

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts worth showing."""
