"""The synthetic market: a pure function of seed and minute, ids included.

Consumes a seed and symbol names → produces frames from a start time on for ever, and every past
trade on demand, the same ones whenever and wherever they are asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from domain.market import Market
from simulator import candles
from simulator.frames import (
    EMPTY_TAPE,
    Frame,
    FrameKind,
    SymbolSpec,
    Tape,
    combine,
    decimal_text,
    join,
)
from simulator.synthetic_book import BookMinute, levels_json, make_book, update_ids
from simulator.synthetic_path import MINUTES, Character, character
from simulator.synthetic_trades import (
    MINUTE_MS,
    STEP_MS,
    STEPS,
    Block,
    first_id,
    make_block,
    minute_of_id,
)

_TRADES_PER_BLOCK = 50_000
_CHUNK_STEPS = 10  # frames are written one second ahead of their time
DEPTH_LATENCY_NS = 7_000_000
_BLOCKS_KEPT = 24
_CANDLE_BLOCKS_KEPT = 65_536


class SyntheticMarket:
    """A market that never was, reproducible to the last digit.

    Args:
        seed: Any non-negative integer.
        symbols: Names; BTC and ETH get their usual prices, others parameters drawn from the name.
        start_ms: Market time at which frames begin (past trades reach further back).
        rate_multiplier: Scales trades per second. It is part of the function: another value is
            another market.
        planted_edge: The price is a random walk that the book foretells so strongly, 0 (not at all)
            to 1; ``None``: the usual market, whose prices and signs have patterns of their own.
        market: Layout of the frames.
    """

    def __init__(
        self,
        seed: int,
        symbols: tuple[str, ...],
        *,
        start_ms: int,
        rate_multiplier: float = 1.0,
        planted_edge: float | None = None,
        market: Market = Market.UM,
    ) -> None:
        self._seed = seed
        self._symbols = symbols
        self._start_ms = start_ms
        self._spot = market is Market.SPOT
        self._who = {name: character(seed, name, rate_multiplier, planted_edge) for name in symbols}
        self._block = functools.lru_cache(maxsize=max(_BLOCKS_KEPT, 4 * len(symbols)))(
            self._make_block
        )
        self._book = functools.lru_cache(maxsize=2 * len(symbols) + 2)(self._make_book)
        self._closed_minutes = functools.lru_cache(maxsize=_CANDLE_BLOCKS_KEPT)(self._block_minutes)
        self._blocks_made = 0

    @property
    def start_ns(self) -> int:
        """Market time of the first frame."""
        return self._start_ms * 1_000_000

    @property
    def end_ns(self) -> int | None:
        """A synthetic market has no end."""
        return None

    @property
    def first_ms(self) -> int:
        """The market has always existed."""
        return 0

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols as configured."""
        return self._symbols

    def spec(self, symbol: str) -> SymbolSpec:
        """Grid of a symbol."""
        return self._who[symbol].spec

    def trades(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Every trade with ``start_ms ≤ T < end_ms``, due or not (for tests and oracles)."""
        return self.between(symbol, start_ms, end_ms)

    def between(self, symbol: str, start_ms: int, end_ms: int) -> Tape:
        """Trades with ``start_ms ≤ T < end_ms``."""
        parts = []
        for block in self._blocks(symbol, start_ms, end_ms):
            times = block.tape.rows["transact_time_ms"]
            begin, end = np.searchsorted(times, (start_ms, end_ms)).tolist()
            parts.append(block.tape.part(begin, end))
        return join(parts)

    def from_id(self, symbol: str, first_id: int, limit: int) -> Tape:
        """Up to ``limit`` trades with id ≥ ``first_id``."""
        who = self._who[symbol]
        if first_id >= who.trades_per_day * 40_000:  # beyond the year 2079
            return EMPTY_TAPE
        parts: list[Tape] = []
        found, wanted = 0, max(first_id, 0)
        minute = minute_of_id(self._seed, who, wanted)
        while found < limit:
            block = self._block(symbol, self._block_start(who, minute))
            begin = int(np.searchsorted(block.tape.rows["agg_trade_id"], wanted))
            parts.append(block.tape.part(begin, begin + limit - found))
            found += len(parts[-1])
            minute = block.start_ms // MINUTE_MS + self._block_minutes_count(who)
        return join(parts)

    def before(self, symbol: str, due_ns: int, limit: int) -> Tape:
        """The last ``limit`` trades due by ``due_ns``."""
        who = self._who[symbol]
        minute = min(due_ns // 1_000_000, 40_000 * 86_400_000) // MINUTE_MS
        last_id = first_id(self._seed, who, minute + 1)
        tape = EMPTY_TAPE
        reach = limit
        while last_id >= reach:
            tape = self.from_id(symbol, last_id - reach, reach)
            due = tape.where(tape.due_ns <= due_ns)
            if len(due) >= limit:
                return due.part(len(due) - limit, len(due))
            reach = 2 * reach + 100
        return tape.where(tape.due_ns <= due_ns)

    def minute_rows(self, symbol: str, start_ms: int, end_ms: int, due_ns: int) -> np.ndarray:
        """Minute candles of the trades due by ``due_ns``; closed blocks are remembered."""
        who = self._who[symbol]
        end_ms = min(end_ms, due_ns // 1_000_000 + 1)
        parts = []
        size_ms = self._block_minutes_count(who) * MINUTE_MS
        for minute in self._block_starts(who, start_ms, end_ms):
            if (minute * MINUTE_MS + size_ms + 1_000) * 1_000_000 <= due_ns:
                parts.append(self._closed_minutes(symbol, minute))
            else:
                tape = self._block(symbol, minute).tape
                parts.append(candles.minute_rows(tape.where(tape.due_ns <= due_ns), who.spec))
        if not parts:
            return np.empty(0, candles.MINUTE_DTYPE)
        rows = np.concatenate(parts)
        opens = rows["open_time_ms"]
        inside: np.ndarray = rows[(opens >= start_ms) & (opens < end_ms)]
        return inside

    def book(self, symbol: str, due_ns: int) -> bytes | None:
        """The last snapshot due by ``due_ns``."""
        step = (due_ns - DEPTH_LATENCY_NS) // (STEP_MS * 1_000_000) - 1
        return self._depth_data(symbol, step)

    def snapshots(self, symbol: str, minute: int) -> BookMinute:
        """The books of all steps of a minute since the epoch, due or not."""
        return self._book(symbol, minute)

    def chunks(self) -> Iterator[list[Frame]]:
        """Frames from the start on, a second of market time per list."""
        step = self._start_ms // STEP_MS
        while True:
            chunk: list[Frame] = []
            for symbol in self._symbols:
                chunk += self._trade_frames(symbol, step, step + _CHUNK_STEPS)
                chunk += [
                    self._depth_frame(symbol, number) for number in range(step, step + _CHUNK_STEPS)
                ]
            chunk.sort(key=_due)
            yield [frame for frame in chunk if frame.due_ns >= self.start_ns]
            step += _CHUNK_STEPS

    def statistics(self) -> dict[str, int | float | str | None]:
        """Seed and how much had to be computed."""
        return {"source": f"synthetic:{self._seed}", "blocks_made": self._blocks_made}

    def _block_minutes_count(self, who: Character) -> int:
        """Minutes per block: an hour, or less where trades are many; a divisor of a day."""
        per_minute = who.trades_per_day / MINUTES
        fitting = (size for size in (60, 30, 10, 5) if size * per_minute <= _TRADES_PER_BLOCK)
        return next(fitting, 1)

    def _block_start(self, who: Character, minute: int) -> int:
        size = self._block_minutes_count(who)
        return minute // size * size

    def _block_starts(self, who: Character, start_ms: int, end_ms: int) -> range:
        first = self._block_start(who, start_ms // MINUTE_MS)
        return range(first, -(-end_ms // MINUTE_MS), self._block_minutes_count(who))

    def _blocks(self, symbol: str, start_ms: int, end_ms: int) -> Iterator[Block]:
        for minute in self._block_starts(self._who[symbol], start_ms, end_ms):
            yield self._block(symbol, minute)

    def _make_block(self, symbol: str, start_minute: int) -> Block:
        who = self._who[symbol]
        self._blocks_made += 1
        return make_block(self._seed, who, start_minute, self._block_minutes_count(who))

    def _block_minutes(self, symbol: str, start_minute: int) -> np.ndarray:
        return candles.minute_rows(self._block(symbol, start_minute).tape, self._who[symbol].spec)

    def _trade_frames(self, symbol: str, first_step: int, end_step: int) -> list[Frame]:
        tape = self.between(symbol, first_step * STEP_MS, end_step * STEP_MS)
        stream = f"{symbol.lower()}@aggTrade"
        columns = [tape.rows[name].tolist() for name in _COLUMNS]
        spec = self._who[symbol].spec
        frames = []
        for due_ns, event, number, price, size, first, last, at, maker in zip(
            tape.due_ns.tolist(), *columns, strict=True
        ):
            quantity = decimal_text(size, spec.quantity_decimals)
            text = (
                f'{{"e":"aggTrade","E":{event},"a":{number},"s":"{symbol}",'
                f'"p":"{decimal_text(price, spec.price_decimals)}","q":"{quantity}",'
                f'{self._extra(number, size, spec)}"f":{first},"l":{last},"T":{at},'
                f'"m":{"true" if maker else "false"},{_SPOT_TAIL if self._spot else _UM_TAIL}}}'
            )
            data = text.encode()
            frame = Frame(due_ns, stream, symbol, FrameKind.TRADE, data, combine(stream, data))
            frame.agg_trade_id = number
            frames.append(frame)
        return frames

    def _extra(self, number: int, size: int, spec: SymbolSpec) -> str:
        """``nq``: the quantity without RPI orders, which take part in few trades."""
        if self._spot:
            return ""
        without = size // 2 if number % 29 == 0 else size
        return f'"nq":"{decimal_text(without, spec.quantity_decimals)}",'

    def _depth_frame(self, symbol: str, step: int) -> Frame:
        stream = f"{symbol.lower()}@depth20@100ms"
        data = self._depth_data(symbol, step)
        due_ns = (step + 1) * STEP_MS * 1_000_000 + DEPTH_LATENCY_NS
        return Frame(due_ns, stream, symbol, FrameKind.DEPTH, data, combine(stream, data))

    def _depth_data(self, symbol: str, step: int) -> bytes:
        who = self._who[symbol]
        minute, place = divmod(step, STEPS)
        book = self._book(symbol, minute)
        bids = levels_json(who, book.bid_ticks[place], book.bid_steps[place])
        asks = levels_json(who, book.ask_ticks[place], book.ask_steps[place])
        first, final, previous = update_ids(step)
        if self._spot:
            return f'{{"lastUpdateId":{final},"bids":{bids},"asks":{asks}}}'.encode()
        event_ms = (step + 1) * STEP_MS
        head = f'{{"e":"depthUpdate","E":{event_ms},"T":{event_ms - 4},"s":"{symbol}"'
        return f'{head},"U":{first},"u":{final},"pu":{previous},"b":{bids},"a":{asks}}}'.encode()

    def _make_book(self, symbol: str, minute: int) -> BookMinute:
        who = self._who[symbol]
        block = self._block(symbol, self._block_start(who, minute))
        return make_book(self._seed, who, block, minute)


_COLUMNS = (
    "event_time_ms",
    "agg_trade_id",
    "price",
    "quantity",
    "first_trade_id",
    "last_trade_id",
    "transact_time_ms",
    "is_buyer_maker",
)
_UM_TAIL = '"st":1'
_SPOT_TAIL = '"M":true'


def _due(frame: Frame) -> int:
    return frame.due_ns
