"""Recordings for the end-to-end tests: cut from a real one, or made from the synthetic market."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

from simulator.synthetic import SyntheticMarket

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
