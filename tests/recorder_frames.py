"""Frames of a market that is all arithmetic, and a recorder to give them to, for the recorder's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from binance_api.endpoints import Route
from collectors.recorder import Recorder, RecorderSettings
from lake.atomic import StepHook, no_hook
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.quarantine import Quarantine
from market_orchestrator.connection.contract import FrameBatch

START_MS = 1_721_347_200_000 - 60_000  # 2024-07-18 23:59:00 UTC
STEP_MS = 1_000  # between frames: number 60 is the first one of the 19th
SYMBOL = "BTCUSDT"


def trade_frame(number: int, symbol: str = SYMBOL, **changed: object) -> bytes:
    """Trade ``number`` happens so many steps after the start."""
    at_ms = START_MS + STEP_MS * number
    data = {"p": f"{64_000 + number}.10", "q": f"0.{number % 900 + 1:03d}", **changed}
    return (
        f'{{"stream":"{symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{at_ms + 5},'
        f'"a":{number},"s":"{symbol}","p":"{data["p"]}","q":"{data["q"]}","f":{2 * number},'
        f'"l":{2 * number + 1},"T":{at_ms},"m":true}}}}'
    ).encode()


def depth_frame(number: int, symbol: str = SYMBOL, *, bids: str | None = None) -> bytes:
    """Book ``number``: its updates follow those of the book before."""
    at_ms = START_MS + STEP_MS * number
    bids = bids or f'[["{64_000 + number}.00","1.5"],["{63_999 + number}.00","2"]]'
    return (
        f'{{"stream":"{symbol.lower()}@depth20@100ms","data":{{"e":"depthUpdate","E":{at_ms + 5},'
        f'"T":{at_ms},"s":"{symbol}","U":{10 * number + 1},"u":{10 * number + 10},"pu":{10 * number},'
        f'"b":{bids},"a":[["{64_001 + number}.00","0.25"]]}}}}'
    ).encode()


def batch_of(route: Route, payloads: Iterable[bytes], *, socket_id: int = 1) -> FrameBatch:
    """Frames received a millisecond apart, when they happened by the first one's time."""
    payloads = list(payloads)
    start_ns = START_MS * 1_000_000
    return FrameBatch(route, socket_id, payloads, [start_ns + i for i in range(len(payloads))])


def trades_of(numbers: Iterable[int], symbol: str = SYMBOL) -> FrameBatch:
    return batch_of(Route.TRADES, [trade_frame(n, symbol) for n in numbers])


def books_of(numbers: Iterable[int], symbol: str = SYMBOL) -> FrameBatch:
    return batch_of(Route.DEPTH, [depth_frame(n, symbol) for n in numbers], socket_id=2)


def recorder_of(
    paths: LakePaths,
    *,
    hook: StepHook = no_hook,
    symbols: tuple[str, ...] = (SYMBOL,),
    **given: Any,
) -> Recorder:
    """A recorder whose tasks nobody runs: flush and sync are called."""
    return Recorder(
        RecorderSettings(symbols=symbols, **given),
        paths,
        GapLedger(paths.gaps, "recorder", hook=hook),
        Quarantine(paths.quarantine),
        hook=hook,
    )


def record(paths: LakePaths, *batches: FrameBatch, **given: Any) -> Recorder:
    """Open, take the frames, and stop cleanly."""

    async def go() -> Recorder:
        recorder = recorder_of(paths, **given)
        await recorder.open()
        for batch in batches:
            recorder.on_frames(batch)
        await recorder.finish()
        return recorder

    return asyncio.run(go())
