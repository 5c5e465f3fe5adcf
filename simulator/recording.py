"""A recorded feed as a market source.

Consumes lines ``<local receive ns> <combined-stream JSON>`` (plain or gzip) → produces frames due at
their receive time on the exchange's clock, and the trades for REST. Lines that cannot be read are
counted and skipped; depth frames are read again while playing, so memory holds the trades alone.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import structlog

from domain.errors import SourceError
from domain.market import TRADE_DTYPE
from simulator import candles
from simulator.frames import EMPTY_TAPE, Frame, FrameKind, SymbolSpec, Tape

log = structlog.get_logger()

_COLUMNS = (
    "is_buyer_maker",
    "price_decimals",
    "quantity_decimals",
    "agg_trade_id",
    "price",
    "quantity",
    "first_trade_id",
    "last_trade_id",
    "transact_time_ms",
    "event_time_ms",
    "receive_time_ns",
)
_CHUNK_FRAMES = 512
_CHUNK_BYTES = 2 * 1024 * 1024
_MAX_CLOCK_SPREAD_MS = 5_000  # event times further from the median say nothing about the clock


class _Envelope(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Event(msgspec.Struct):
    """The fields of any event the replay needs; all optional, unknown ones ignored."""

    event_time_ms: int | None = msgspec.field(name="E", default=None)
    symbol: str | None = msgspec.field(name="s", default=None)
    agg_trade_id: int | None = msgspec.field(name="a", default=None)
    price: str | None = msgspec.field(name="p", default=None)
    quantity: str | None = msgspec.field(name="q", default=None)
    first_trade_id: int | None = msgspec.field(name="f", default=None)
    last_trade_id: int | None = msgspec.field(name="l", default=None)
    transact_time_ms: int | None = msgspec.field(name="T", default=None)
    is_buyer_maker: bool | None = msgspec.field(name="m", default=None)


class _EventTime(msgspec.Struct):
    """Events whose keys mean something else (depth has a list under ``a``)."""

    event_time_ms: int | None = msgspec.field(name="E", default=None)


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_time = msgspec.json.Decoder(_EventTime).decode


class _Line(msgspec.Struct, gc=False):
    receive_ns: int
    stream: str
    combined: bytes
    data: bytes


def _parse_line(line: bytes) -> _Line | None:
    """One line, or None where it is not one."""
    head, _, body = line.strip().partition(b" ")
    try:
        receive_ns = int(head)
        envelope = _decode_envelope(body)
    except (ValueError, msgspec.DecodeError):  # includes unicode errors
        return None
    if receive_ns <= 0 or receive_ns >= 2**62:
        return None
    return _Line(receive_ns, envelope.stream, bytes(body), bytes(envelope.data))


def _kind(stream: str) -> FrameKind:
    event = stream.partition("@")[2]
    if event == "aggTrade":
        return FrameKind.TRADE
    return FrameKind.DEPTH if event.startswith("depth") else FrameKind.OTHER


def _scale(text: str) -> tuple[int, int]:
    """A decimal string as (mantissa, decimals); ValueError where it is none."""
    whole, _, fraction = text.partition(".")
    if not (whole + fraction).isascii() or not (whole + fraction).isdigit():
        raise ValueError(text)
    return int(whole + fraction), len(fraction)


class RecordingSource:
    """A recording, played by its own receive times.

    The exchange's clock is rebuilt as receive time plus the largest ``E`` − receipt seen, so no
    frame is ever due before its own event time.

    Args:
        path: ``.ndjson`` or ``.ndjson.gz``.

    Raises:
        SourceError: The file cannot be opened or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._garbage_count = 0
        self._frame_count = 0
        self._offset_ns = 0
        self._first_receive_ns = 0
        self._last_receive_ns = 0
        self._tapes: dict[str, Tape] = {}
        self._specs: dict[str, SymbolSpec] = {}
        self._listed: dict[str, None] = {}
        self._scan()

    @property
    def start_ns(self) -> int:
        """Due time of the first frame."""
        return self._first_receive_ns + self._offset_ns

    @property
    def end_ns(self) -> int | None:
        """Due time of the last frame."""
        return self._last_receive_ns + self._offset_ns

    @property
    def first_ms(self) -> int:
        """Nothing exists before the first trade of the recording."""
        times = [int(tape.rows["transact_time_ms"][0]) for tape in self._tapes.values()]
        return min(times, default=self.start_ns // 1_000_000)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols in order of appearance."""
        return tuple(self._listed)

    def spec(self, symbol: str) -> SymbolSpec:
        """Grid read off the recorded prices and quantities."""
        return self._specs[symbol]

    def trades(self, symbol: str) -> Tape:
        """Every trade of a symbol, due or not (for tests and oracles)."""
        return self._tapes.get(symbol, EMPTY_TAPE)

    def chunks(self) -> Iterator[list[Frame]]:
        """Frames in receive order; a receive time that runs back is held at the highest seen."""
        chunk: list[Frame] = []
        size, highest = 0, 0
        for line in self._lines():
            parsed = _parse_line(line)
            if parsed is None:
                continue
            highest = max(highest, parsed.receive_ns)
            chunk.append(self._frame(parsed, highest + self._offset_ns))
            size += len(parsed.combined)
            if len(chunk) >= _CHUNK_FRAMES or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def from_id(self, symbol: str, first_id: int, limit: int) -> Tape:
        """Up to ``limit`` trades with id ≥ ``first_id``."""
        tape = self.trades(symbol)
        begin = int(np.searchsorted(tape.rows["agg_trade_id"], first_id))
        return tape.part(begin, begin + limit)

    def between(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Trades with ``start_ms ≤ T < end_ms``."""
        tape = self.trades(symbol)
        times = tape.rows["transact_time_ms"]
        return tape.where((times >= start_ms) & (times < end_ms))

    def before(self, symbol: str, due_ns: int, limit: int) -> Tape:
        """The last ``limit`` trades due by ``due_ns``."""
        due = self.trades(symbol)
        due = due.where(due.due_ns <= due_ns)
        return due.part(max(0, len(due) - limit), len(due))

    def minute_rows(self, symbol: str, start_ms: int, end_ms: int, due_ns: int) -> np.ndarray:
        """Minute candles of the trades due by ``due_ns``."""
        tape = self.between(symbol, start_ms, end_ms)
        return candles.minute_rows(tape.where(tape.due_ns <= due_ns), self._specs[symbol])

    def book(self, symbol: str, due_ns: int) -> bytes | None:  # noqa: ARG002
        """Nothing is known before the first frame."""
        return None

    def statistics(self) -> dict[str, int | float | str | None]:
        """Frames read and lines that were not frames."""
        return {
            "source": str(self._path.name),
            "frame_count": self._frame_count,
            "garbage_line_count": self._garbage_count,
            "trade_count": sum(len(tape) for tape in self._tapes.values()),
        }

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._open() as file:
                yield from file
        except (OSError, EOFError, zlib.error) as error:
            if self._frame_count == 0:
                raise SourceError(f"recording {self._path}: {error}") from error
            log.warning("simulator.recording_damaged", path=str(self._path), reason=str(error))

    def _open(self) -> closing[io.BufferedIOBase]:
        file: io.BufferedIOBase
        file = self._path.open("rb")
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if is_gzip:
            file.close()
            file = gzip.open(self._path, "rb")  # noqa: SIM115 - closed by the caller's with
        return closing(file)

    def _frame(self, line: _Line, due_ns: int) -> Frame:
        symbol, kind = line.stream.partition("@")[0].upper(), _kind(line.stream)
        frame = Frame(due_ns, line.stream, symbol, kind, line.data, line.combined)
        if kind is FrameKind.TRADE:
            try:
                number = _decode_event(line.data).agg_trade_id
            except (msgspec.DecodeError, ValueError):
                number = None
            frame.agg_trade_id = -1 if number is None else number
        return frame

    def _scan(self) -> None:
        """First pass: trades, symbols, clock offset, damage."""
        rows: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        offsets: list[int] = []
        highest = 0
        for line in self._lines():
            parsed = _parse_line(line)
            if parsed is None:
                self._garbage_count += bool(line.strip())
                continue
            self._frame_count += 1
            highest = max(highest, parsed.receive_ns)
            self._first_receive_ns = self._first_receive_ns or parsed.receive_ns
            self._scan_event(parsed, highest, rows, offsets)
        if self._frame_count == 0:
            raise SourceError(f"recording {self._path}: no frame in it")
        if self._garbage_count:
            log.warning("simulator.recording_garbage", line_count=self._garbage_count)
        self._last_receive_ns = highest
        self._offset_ns = _clock_offset_ns(np.array(offsets, np.int64))
        for symbol, found in rows.items():
            self._tapes[symbol] = _tape(found, self._offset_ns)
        for symbol in self._listed:
            self._specs[symbol] = _spec(symbol, self._tapes.get(symbol, EMPTY_TAPE))

    def _scan_event(
        self,
        line: _Line,
        receive_ns: int,
        rows: dict[str, list[tuple[int, ...]]],
        offsets: list[int],
    ) -> None:
        symbol = line.stream.partition("@")[0].upper()
        is_trade = _kind(line.stream) is FrameKind.TRADE
        try:
            event = _decode_event(line.data) if is_trade else None
            time_ms = event.event_time_ms if event else _decode_time(line.data).event_time_ms
            row = _trade_row(event, symbol, receive_ns) if event else None
        except (msgspec.DecodeError, ValueError):
            return  # replayed as it is; it is the client's business to refuse it
        self._listed.setdefault(symbol)
        if time_ms is not None:
            offsets.append(time_ms * 1_000_000 - receive_ns)
        if row is not None:
            rows[symbol].append(row)


def _trade_row(event: _Event, symbol: str, receive_ns: int) -> tuple[int, ...] | None:
    """Columns of a sound trade; None for one that REST could never have served."""
    if event.symbol != symbol or event.price is None or event.quantity is None:
        return None
    price, price_decimals = _scale(event.price)
    quantity, quantity_decimals = _scale(event.quantity)
    numbers = (event.agg_trade_id, event.first_trade_id, event.last_trade_id)
    if None in numbers or event.transact_time_ms is None or not price or not quantity:
        return None
    agg_trade_id, first, last = numbers
    assert agg_trade_id is not None  # noqa: S101 - for the type checker; None is refused above
    assert first is not None  # noqa: S101
    assert last is not None  # noqa: S101
    event_time_ms = -1 if event.event_time_ms is None else event.event_time_ms
    side = int(bool(event.is_buyer_maker))
    columns = (side, price_decimals, quantity_decimals, agg_trade_id, price, quantity)
    return (*columns, first, last, event.transact_time_ms, event_time_ms, receive_ns)


def _clock_offset_ns(offsets: np.ndarray) -> int:
    """Exchange clock minus recorder clock, such that no frame is due before its event time."""
    if not len(offsets):
        return 0
    near = np.abs(offsets - np.median(offsets)) <= _MAX_CLOCK_SPREAD_MS * 1_000_000
    return int(offsets[near].max())


def _tape(found: list[tuple[int, ...]], offset_ns: int) -> Tape:
    rows = np.zeros(len(found), TRADE_DTYPE)
    for name, column in zip(_COLUMNS, zip(*found, strict=True), strict=True):
        rows[name] = column
    _, unique = np.unique(rows["agg_trade_id"], return_index=True)
    rows = rows[unique]
    due_ns = rows["receive_time_ns"] + offset_ns
    rows["receive_time_ns"] = -1
    return Tape(rows, due_ns)


def _spec(symbol: str, tape: Tape) -> SymbolSpec:
    if not len(tape):
        return SymbolSpec(
            symbol=symbol,
            price_decimals=2,
            tick_mantissa=1,
            quantity_decimals=3,
            step_mantissa=1,
        )
    rows = tape.rows
    price_decimals = int(rows["price_decimals"].max())
    quantity_decimals = int(rows["quantity_decimals"].max())
    price = rows["price"] * 10 ** (price_decimals - rows["price_decimals"].astype(np.int64))
    gaps = 10 ** (quantity_decimals - rows["quantity_decimals"].astype(np.int64))
    return SymbolSpec(
        symbol=symbol,
        price_decimals=price_decimals,
        tick_mantissa=_power_of_ten_step(int(np.gcd.reduce(price))),
        quantity_decimals=quantity_decimals,
        step_mantissa=_power_of_ten_step(int(np.gcd.reduce(rows["quantity"] * gaps))),
    )


def _power_of_ten_step(divisor: int) -> int:
    """The largest power of ten that divides every value; few trades must not widen the grid."""
    step = 1
    while divisor % (step * 10) == 0 and step < 1_000_000:
        step *= 10
    return step
