"""Recordings for the end-to-end tests: cut from a real one, or made from the synthetic market."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

from simulator.frames import combine
from simulator.synthetic import SyntheticMarket
from simulator.synthetic_trades import STEP_MS

MIDNIGHT_MS = 1_740_787_200_000  # 2025-03-01 00:00 UTC
CLOCK_BEHIND_NS = 1_500_000_000  # the recorder's clock against the exchange's, as in real captures
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def record_synthetic(
    path: Path,
    *,
    length_s: float,
    start_ms: int,
    seed: int = 5,
    symbols: tuple[str, ...] = SYMBOLS,
    rate_multiplier: float = 1.0,
) -> Path:
    """What a recorder would have written in ``length_s`` of the synthetic market."""
    market = SyntheticMarket(seed, symbols, start_ms=start_ms, rate_multiplier=rate_multiplier)
    end_ns = market.start_ns + int(length_s * 1e9)

    def lines() -> Iterable[bytes]:
        for chunk in market.chunks():
            for frame in chunk:
                if frame.due_ns >= end_ns:
                    return
                yield b"%d %b\n" % (frame.due_ns - CLOCK_BEHIND_NS, frame.combined)

    return _write(path, lines())


def record_trades(path: Path, market: SyntheticMarket, *, start_ms: int, end_ms: int) -> Path:
    """The synthetic market's aggTrades alone, with ``start_ms ≤ T < end_ms`` (whole 100 ms)."""
    frames = [
        frame
        for symbol in market.symbols
        for frame in market._trade_frames(symbol, start_ms // STEP_MS, end_ms // STEP_MS)
    ]
    frames.sort(key=lambda frame: frame.due_ns)
    lines = (b"%d %b\n" % (frame.due_ns - CLOCK_BEHIND_NS, frame.combined) for frame in frames)
    return _write(path, lines)


def record_quiet(path: Path, *, symbol: str, start_ms: int, trade_ms: Sequence[int]) -> Path:
    """One trade at each of these times after ``start_ms``, and the book every 100 ms throughout."""
    name = symbol.lower()
    frames = []
    for number, at_ms in enumerate(trade_ms):
        time_ms = start_ms + at_ms
        trade = (
            f'{{"e":"aggTrade","E":{time_ms + 5},"s":"{symbol}","a":{700 + number},"p":"1.2340",'
            f'"q":"10","f":{900 + number},"l":{900 + number},"T":{time_ms},"m":false}}'
        )
        frames.append((time_ms + 10, combine(f"{name}@aggTrade", trade.encode())))
    for step in range(max(trade_ms) // 100 + 50):
        time_ms = start_ms + step * 100
        book = (
            f'{{"e":"depthUpdate","E":{time_ms},"T":{time_ms - 3},"s":"{symbol}","U":{step * 10 + 1},'
            f'"u":{step * 10 + 10},"pu":{step * 10},"b":[["1.2339","50"]],"a":[["1.2341","50"]]}}'
        )
        frames.append((time_ms + 7, combine(f"{name}@depth20@100ms", book.encode())))
    frames.sort()
    return _write(path, (b"%d000000 %b\n" % frame for frame in frames))


def cut(recording: Path, path: Path, *, from_s: float, length_s: float) -> Path:
    """Part of a recording; ``from_s`` seconds after its first frame."""
    with gzip.open(recording, "rb") as file:
        lines = file.readlines()
    first_ns = _stamp(lines[0])
    begin_ns, end_ns = first_ns + int(from_s * 1e9), first_ns + int((from_s + length_s) * 1e9)
    return _write(path, (line for line in lines if begin_ns <= _stamp(line) < end_ns))


def _write(path: Path, lines: Iterable[bytes]) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.writelines(lines)
    return path


def _stamp(line: bytes) -> int:
    return int(line.partition(b" ")[0])
