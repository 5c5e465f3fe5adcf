"""Runs the recorder against the simulated exchange, and compares its lake with what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from binance_api.rest import RestClient, RestSettings
from binance_api.vision import VisionClient
from collectors.recorder import RecorderSettings
from collectors.recorder_run import RecordRun, RecordSettings
from collectors.recording import RecordingSettings, open_folder
from collectors.repair import RepairSettings
from domain.events import GapState
from domain.market import Market
from lake.gap_ledger import Gap, read_gaps
from lake.paths import LakePaths
from lake.stream_files import Kind, read_stream_file, stream_dates, stream_files
from market_orchestrator.connection.contract import ConnectionSettings
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings
from tests.integration.live_parity import UNLIMITED_WEIGHT, serving

PATIENCE_S = 120.0  # costs nothing while tests pass; a busy machine may be slow
POLL_S = 0.1
SYMBOLS = ("BTCUSDT", "ETHUSDT")
TRADE_COLUMNS = (
    *("price", "quantity", "first_trade_id", "last_trade_id", "transact_time_ms"),
    "is_buyer_maker",
)

type Trades = dict[tuple[str, int], tuple[Any, ...]]
type Books = dict[tuple[str, int], tuple[Any, ...]]


class Sent(msgspec.Struct, frozen=True):
    """What a recording holds: trades by symbol and id, books by symbol and last update."""

    trades: Trades
    books: Books


def sent_in(recording: Path) -> Sent:
    """Everything the exchange would send without faults."""
    trades: Trades = {}
    books: Books = {}
    with gzip.open(recording, "rt", encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line.partition(" ")[2])["data"]
            if data["e"] == "aggTrade":
                trades[data["s"], data["a"]] = (
                    *(float(data["p"]), float(data["q"]), data["f"], data["l"], data["T"]),
                    data["m"],
                )
            else:
                sides = (data["b"], data["a"])
                bids, asks = ([[float(p), float(q)] for p, q in side] for side in sides)
                books[data["s"], data["u"]] = (data["T"], data["U"], data.get("pu"), bids, asks)
    return Sent(trades, books)


def tables_of(paths: LakePaths, kind: Kind) -> list[pa.Table]:
    """Every file's rows, as stored."""
    return [
        read_stream_file(path, kind)
        for date in stream_dates(paths, kind)
        for path in stream_files(paths, kind, date)
    ]


def stored_trades(paths: LakePaths, *, sources: Sequence[str] = ("stream", "rest")) -> Trades:
    """Trades on disk; one that is there twice fails."""
    found: Trades = {}
    for table in tables_of(paths, "trades"):
        for row in table.to_pylist():
            assert row["source"] in sources, row
            key = (row["symbol"], row["agg_trade_id"])
            assert key not in found, f"{key} is stored twice"
            found[key] = tuple(row[name] for name in TRADE_COLUMNS)
    return found


def stored_books(paths: LakePaths) -> Books:
    """Books on disk; one that is there twice fails."""
    found: Books = {}
    names = ("transact_time_ms", "first_update_id", "prev_final_update_id", "bids", "asks")
    for table in tables_of(paths, "depth"):
        for row in table.to_pylist():
            key = (row["symbol"], row["final_update_id"])
            assert key not in found, f"{key} is stored twice"
            found[key] = tuple(row[name] for name in names)
    return found


def holes(paths: LakePaths, kind: Kind) -> list[Gap]:
    return [gap for gap in read_gaps(paths.gaps, "recorder") if gap.kind == kind]


def is_named(gaps: Sequence[Gap], symbol: str, time_ms: int) -> bool:
    """Whether the ledger says that a book of this time is missing."""
    return any(
        gap.symbol == symbol
        and gap.from_ms is not None
        and gap.until_ms is not None
        and (gap.from_ms <= time_ms < gap.until_ms)
        for gap in gaps
    )


def unnamed_books(paths: LakePaths, sent: Books) -> list[tuple[str, int]]:
    """Books sent that are neither stored nor named as missing, between the first and last stored."""
    found, gaps = stored_books(paths), holes(paths, "depth")
    times: dict[str, list[int]] = {}
    for (symbol, _), (time_ms, *_rest) in found.items():
        times.setdefault(symbol, []).append(time_ms)
    return [
        (symbol, update_id)
        for (symbol, update_id), (time_ms, *_rest) in sent.items()
        if (symbol, update_id) not in found
        and min(times[symbol]) < time_ms < max(times[symbol])
        and not is_named(gaps, symbol, time_ms)
    ]


def check_lake(paths: LakePaths, sent: Sent) -> None:
    """Trades equal the source, books what was sent minus what the ledger names; nothing is open."""
    trades = stored_trades(paths)
    assert sorted(trades) == sorted(sent.trades)
    assert trades == sent.trades
    books = stored_books(paths)
    assert {key: sent.books.get(key) for key in books} == books
    assert {symbol for symbol, _ in books} == {symbol for symbol, _ in sent.books}
    assert unnamed_books(paths, sent.books) == []
    left = [gap for gap in holes(paths, "trades") if gap.state is not GapState.REPAIRED]
    assert left == []


# --- running ------------------------------------------------------------------------------


def run_settings(exchange: SimulatedExchange, **given: Any) -> RecordSettings:
    """Short intervals; ``given`` replaces fields of ``RecorderSettings``, or ``redundancy``."""
    redundancy = given.pop("redundancy", 1)
    values = {"symbols": SYMBOLS, "flush_interval_s": 0.5, "journal_sync_s": 0.02, "side_s": 0.1}
    return RecordSettings(
        recording=RecordingSettings(
            recorder=RecorderSettings(**{**values, "hole_age_s": 0.3, "retry_s": 0.2, **given}),
            repair=RepairSettings(grace_s=0.2, tick_s=0.2, retry_s=0.2),
        ),
        connection=ConnectionSettings(
            market=given.get("market", Market.UM),
            ws_base=exchange.ws_url,
            redundancy=redundancy,
            backoff_cap_s=0.5,
            max_reconnect_attempts=0,
        ),
    )


@contextlib.asynccontextmanager
async def recording_run(
    exchange: SimulatedExchange, paths: LakePaths, settings: RecordSettings
) -> AsyncIterator[RecordRun]:
    """A recorder on this exchange; stopped as a signal stops it, at the end of the block."""
    market = settings.recording.recorder.market
    async with (
        RestClient(
            RestSettings(market=market, base_url=exchange.rest_url, weight_limit=UNLIMITED_WEIGHT)
        ) as rest,
        VisionClient(RestSettings(market=market, base_url=exchange.vision_url)) as archive,
    ):
        with open_folder(paths, {"market": market.value, "host": "simulated"}):
            run = RecordRun(settings, paths, rest, archive)
            task = asyncio.ensure_future(run.run())
            try:
                yield run
            finally:
                task.cancel()
                await asyncio.wait([task], timeout=60)
                assert task.done(), "the recorder did not stop"
                if not task.cancelled():
                    task.result()  # raises what ended it


async def until_whole(
    paths: LakePaths, wanted: Mapping[tuple[str, int], Any], last_books: Collection[Any] = ()
) -> None:
    """Wait until all trades are on disk and none is named as open; else say what is amiss.

    ``last_books`` come on another socket, and are waited for as well.
    """

    def amiss() -> list[object]:
        missing = sorted(set(wanted) - set(stored_trades(paths)))
        left = [gap for gap in holes(paths, "trades") if gap.state is not GapState.REPAIRED]
        late = set(last_books) - set(stored_books(paths)) if last_books else ()
        return [*missing[:5], *left[:5], *late]

    try:
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(amiss):
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        left = amiss()
        assert not left, "\n".join(map(str, left))


def record_through(
    recording: Path,
    paths: LakePaths,
    sent: Sent,
    *,
    faults: object = None,
    speed: float = 60.0,
    **given: Any,
) -> SimulatedExchange:
    """Record a whole market, until its trades are there; without faults its last books as well."""
    newest = {symbol: max(n for name, n in sent.books if name == symbol) for symbol in SYMBOLS}

    async def go() -> SimulatedExchange:
        simulated = SimulatorSettings(recording=recording, speed=speed, faults=faults)  # type: ignore[arg-type]
        async with (
            serving(simulated) as exchange,
            recording_run(exchange, paths, run_settings(exchange, **given)),
        ):
            await until_whole(paths, sent.trades, newest.items() if faults is None else ())
        return exchange

    return asyncio.run(go())
