"""Days of the synthetic market as the recorder would have stored them: a lake to try the whole chain on.

``DaysWanted`` → files of an hour below ``raw/stream``, the trades and books that ``simulate`` serves of
the same seed, with a planted pattern or without. Also ``python -m research.synthetic_days``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import numpy as np

from domain.errors import ConfigError, OrderFlowError
from lake.part_files import date_of, date_start_ms
from lake.paths import DAY_MS, LakePaths
from lake.stream_files import (
    LevelColumn,
    StreamTable,
    depth_table,
    stream_files,
    trade_table,
    write_stream_file,
)
from simulator.frames import SymbolSpec
from simulator.synthetic import DEPTH_LATENCY_NS, SyntheticMarket
from simulator.synthetic_book import LEVELS, update_ids
from simulator.synthetic_trades import MINUTE_MS, STEP_MS, STEPS

HOURS_OF_A_DAY: Final = 24
_FIRST_DAY_MS: Final = 946_684_800_000  # of 2000
_HOUR_MS: Final = 3_600_000
_HOUR_MINUTES: Final = 60
_METADATA: Final = {"source": "synthetic"}
_EXAMPLES: Final = """examples:
  python -m research.synthetic_days --data-dir planted --days 6 --hours 6 --planted-edge 0.5
  python -m research.synthetic_days --data-dir walk --days 6 --hours 6 --planted-edge 0"""


class DaysWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which days of which market.

    ``hours`` of each day are written, from midnight on: shortened days are quick and train as well.

    Raises:
        ConfigError: A value cannot be used; the message names its flag.
    """

    symbols: tuple[str, ...]
    first_date: str
    days: int
    hours: int = HOURS_OF_A_DAY
    seed: int = 1
    planted_edge: float | None = None
    rate_multiplier: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if not self.symbols or not all(s.isascii() and s.isalnum() for s in self.symbols):
            raise ConfigError(f"--symbols: {','.join(self.symbols)!r} names none")
        for flag, value, least, most in (
            ("--days", self.days, 1, 3_660),
            ("--hours", self.hours, 1, HOURS_OF_A_DAY),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--planted-edge", self.planted_edge or 0.0, 0, 1),
            ("--rate", self.rate_multiplier, 0.01, 1_000),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{flag}: must be from {least} to {most}, not {value}")
        try:
            is_known = date_start_ms(self.first_date) >= _FIRST_DAY_MS
        except ValueError:
            is_known = False
        if not is_known:
            raise ConfigError(
                f"--from: {self.first_date!r} is no day from 2000 on, write it as 2026-01-01"
            )

    @property
    def dates(self) -> tuple[str, ...]:
        """All of them, oldest first."""
        start_ms = date_start_ms(self.first_date)
        return tuple(date_of(start_ms + number * DAY_MS) for number in range(self.days))


def write_days(paths: LakePaths, wanted: DaysWanted) -> Iterator[str]:
    """Write days, giving the date of each when it is whole. Blocks.

    Raises:
        ConfigError: Files of such a day are there already.
        StorageError: The disk refused.
    """
    for date in wanted.dates:
        if stream_files(paths, "trades", date) or stream_files(paths, "depth", date):
            raise ConfigError(
                f"--data-dir: {paths.raw} has files of {date} already; choose another folder"
            )
    market = SyntheticMarket(
        wanted.seed,
        wanted.symbols,
        start_ms=date_start_ms(wanted.first_date),
        rate_multiplier=wanted.rate_multiplier,
        planted_edge=wanted.planted_edge,
    )
    for date in wanted.dates:
        start_ms = date_start_ms(date)
        for hour_ms in range(start_ms, start_ms + wanted.hours * _HOUR_MS, _HOUR_MS):
            for symbol in wanted.symbols:
                _write_hour(paths, market, symbol, hour_ms)
        yield date


def _write_hour(paths: LakePaths, market: SyntheticMarket, symbol: str, start_ms: int) -> None:
    write_stream_file(
        paths,
        "trades",
        trades_of(market, symbol, start_ms, start_ms + _HOUR_MS),
        metadata=_METADATA,
    )
    first = start_ms // MINUTE_MS
    books = books_of(market, symbol, range(first, first + _HOUR_MINUTES))
    write_stream_file(paths, "depth", books, metadata=_METADATA)


def trades_of(market: SyntheticMarket, symbol: str, start_ms: int, end_ms: int) -> StreamTable:
    """Trades with ``start_ms ≤ T < end_ms`` as rows of the lake."""
    tape = market.between(symbol, start_ms, end_ms)
    rows = tape.rows.copy()
    rows["receive_time_ns"] = tape.due_ns
    return trade_table(rows, [symbol], "stream")


def books_of(market: SyntheticMarket, symbol: str, minutes: range) -> StreamTable:
    """All snapshots of some minutes since the epoch as rows of the lake."""
    steps = np.arange(minutes.start * STEPS, minutes.stop * STEPS, dtype=np.int64)
    made = [market.snapshots(symbol, minute) for minute in minutes]
    ids = np.array([update_ids(step) for step in steps.tolist()], np.int64)
    event_ms = (steps + 1) * STEP_MS
    spec = market.spec(symbol)
    return depth_table(
        np.zeros(len(steps), np.int32),
        [symbol],
        event_time_ms=event_ms,
        transact_time_ms=event_ms - 4,
        receive_time_ns=event_ms * 1_000_000 + DEPTH_LATENCY_NS,
        first_update_id=ids[:, 0].copy(),
        final_update_id=ids[:, 1].copy(),
        prev_final_update_id=ids[:, 2].copy(),
        bids=_levels(spec, [(book.bid_ticks, book.bid_steps) for book in made]),
        asks=_levels(spec, [(book.ask_ticks, book.ask_steps) for book in made]),
    )


def _levels(spec: SymbolSpec, minutes: Sequence[tuple[np.ndarray, np.ndarray]]) -> LevelColumn:
    ticks, steps = (np.concatenate(parts) for parts in zip(*minutes, strict=True))
    pairs = np.empty((*ticks.shape, 2))
    np.divide(ticks * spec.tick_mantissa, 10.0**spec.price_decimals, out=pairs[..., 0])
    np.divide(steps * spec.step_mantissa, 10.0**spec.quantity_decimals, out=pairs[..., 1])
    return LevelColumn(np.full(len(ticks), LEVELS, np.int64), pairs.ravel())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m research.synthetic_days",
        description="Write days of the synthetic market into a data folder, as if recorded.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data-dir", metavar="FOLDER", type=Path, required=True, help="a folder of its own")
    add("--symbols", default="BTCUSDT", help="comma between two, default BTCUSDT")
    add("--from", dest="first", metavar="DAY", default="2026-01-01", help="default 2026-01-01")
    add("--days", metavar="N", type=int, default=6, help="default 6")
    add("--hours", metavar="N", type=int, default=24, help="of each day, from midnight, default 24")
    add("--seed", metavar="N", type=int, default=1, help="of the market, default 1")
    add(
        "--planted-edge",
        metavar="X",
        type=float,
        help="a random walk that the book foretells so strongly, 0 (not at all) to 1; default: the "
        "usual market of simulate",
    )
    add("--rate", metavar="X", type=float, default=1.0, help="times the usual trades, default 1")
    return parser


def _run(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    wanted = DaysWanted(
        symbols=tuple(given.symbols.upper().split(",")),
        first_date=given.first,
        days=given.days,
        hours=given.hours,
        seed=given.seed,
        planted_edge=given.planted_edge,
        rate_multiplier=given.rate,
    )
    began_s = time.monotonic()
    for date in write_days(LakePaths.of(given.data_dir), wanted):
        print(f"{date}  {wanted.hours} h  {time.monotonic() - began_s:.1f} s", flush=True)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; what is wrong is told in one line."""
    try:
        return _run(arguments)
    except OrderFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the day at hand is incomplete, start anew in another folder")
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
