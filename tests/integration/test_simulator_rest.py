import asyncio
import csv
import gzip
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from domain.market import Market
from simulator.faults import Fault, FaultKind, FaultPlan
from simulator.server import SimulatedExchange, SimulatorSettings
from tests.integration.simulator_recordings import START_MS, TRADES, reading, write_recording

Get = Callable[[str], Awaitable[tuple[int, Any, dict[str, str]]]]
Scenario = Callable[[SimulatedExchange, aiohttp.ClientSession, Get], Awaitable[Any]]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "small.ndjson")


def serve(settings: SimulatorSettings, scenario: Scenario) -> Any:
    async def main() -> Any:
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            session._retry_connection = False  # a broken GET is sent again otherwise
            prefix = "/api/v3/" if settings.market is Market.SPOT else "/fapi/v1/"

            async def get(path: str) -> tuple[int, Any, dict[str, str]]:
                async with session.get(exchange.rest_url + prefix + path) as reply:
                    text = await reply.text()
                    is_json = reply.content_type == "application/json"
                    return reply.status, json.loads(text) if is_json else text, dict(reply.headers)

            return await scenario(exchange, session, get)

    return asyncio.run(main())


async def play_to_the_end(exchange: SimulatedExchange, session: aiohttp.ClientSession) -> None:
    async with (
        reading(session, exchange.ws_url + TRADES),
        asyncio.timeout(60),
    ):
        while not exchange.statistics()["has_ended"]:
            await asyncio.sleep(0.002)


def test_before_the_start_the_clock_stands_and_nothing_is_served(recording: Path) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        time_ms = (await get("time"))[1]["serverTime"]
        assert time_ms == exchange.source.start_ns // 1_000_000
        await asyncio.sleep(0.02)
        assert (await get("time"))[1]["serverTime"] == time_ms
        assert (await get("aggTrades?symbol=BTCUSDT"))[1] == []
        assert (await get("klines?symbol=BTCUSDT&interval=1m"))[1] == []
        assert (await get("depth?symbol=BTCUSDT&limit=5"))[1]["bids"] == []

    serve(SimulatorSettings(recording=recording, speed=1000), scenario)


def test_rest_shows_every_trade_up_to_now_and_nothing_later(recording: Path) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        async with reading(session, exchange.ws_url + TRADES) as reader:
            await reader.until(lambda: len(reader.ids) >= 10)
            rows = (await get("aggTrades?symbol=BTCUSDT&fromId=1000&limit=1000"))[1]
            now_ms = (await get("time"))[1]["serverTime"]
            ids = [row["a"] for row in rows]
            assert ids == list(range(1000, 1000 + len(ids)))
            assert 10 <= len(ids) < 100
            assert rows[-1]["T"] <= now_ms

    serve(SimulatorSettings(recording=recording, speed=4), scenario)


def test_rest_shows_what_is_due_though_the_machine_plays_it_late(recording: Path) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        wait_for = exchange._feed._wait_for

        async def late(next_ns: int) -> int:
            await asyncio.sleep(0.2)  # two seconds of the market
            return await wait_for(next_ns)

        exchange._feed._wait_for = late  # type: ignore[method-assign]
        async with reading(session, exchange.ws_url + TRADES) as reader:
            await reader.until(lambda: bool(reader.ids))
            await asyncio.sleep(0.1)
            now_ms = (await get("time"))[1]["serverTime"]
            rows = (await get("aggTrades?symbol=BTCUSDT&fromId=1000&limit=1000"))[1]
            assert rows[-1]["T"] > now_ms - 200  # all that had happened by then

    serve(SimulatorSettings(recording=recording, speed=10), scenario)


def test_agg_trades_page_by_id_by_time_and_from_the_end(recording: Path) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        await play_to_the_end(exchange, session)

        async def ids(query: str) -> list[int]:
            status, rows, _ = await get(f"aggTrades?symbol=BTCUSDT&{query}")
            assert status == 200
            return [row["a"] for row in rows]

        assert await ids("limit=3") == [1097, 1098, 1099]
        assert await ids("fromId=1050&limit=2") == [1050, 1051]
        assert await ids("fromId=1&limit=2") == [1000, 1001]
        assert await ids("fromId=1100") == []
        begin, end = START_MS + 500, START_MS + 700
        assert await ids(f"startTime={begin}&endTime={end}") == [1005, 1006, 1007]
        assert await ids(f"startTime={begin}&limit=1") == [1005]
        assert await ids(f"endTime={end}&limit=2") == [1006, 1007]
        row = (await get("aggTrades?symbol=BTCUSDT&fromId=1000&limit=1"))[1][0]
        expected = {"a": 1000, "p": "64006.10", "q": "0.101", "f": 10000, "l": 10001}
        assert row == {**expected, "T": START_MS, "m": True}

    serve(SimulatorSettings(recording=recording, speed=2000), scenario)


def test_official_klines_are_rebuilt_from_the_recording(recordings_dir: Path) -> None:
    path = recordings_dir / "recordings" / "usdm_20240718.ndjson.gz"
    official: dict[int, list[str]] = {}
    with gzip.open(recordings_dir / "klines" / "BTCUSDT-1m-2024-07.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            official[int(row["open_time"])] = [*row.values()]

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        await play_to_the_end(exchange, session)
        rows = (await get("klines?symbol=BTCUSDT&interval=1m&limit=1500"))[1]
        for row in rows[1:8]:  # the seven complete minutes
            theirs = official[row[0]]
            assert [Decimal(value) for value in row[1:11]] == [Decimal(v) for v in theirs[1:11]]

    serve(SimulatorSettings(recording=path, speed=5000), scenario)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("aggTrades?symbol=NOSUCH", 400, -1121),
        ("aggTrades", 400, -1102),
        ("aggTrades?symbol=BTC%20USDT", 400, -1100),
        ("aggTrades?symbol=BTCUSDT&fromId=x", 400, -1100),
        ("aggTrades?symbol=BTCUSDT&fromId=1&startTime=1", 400, -4166),
        ("aggTrades?symbol=BTCUSDT&limit=1001", 400, -1130),
        ("aggTrades?symbol=BTCUSDT&startTime=2&endTime=1", 400, -1023),
        ("aggTrades?symbol=BTCUSDT&startTime=1&endTime=3600002", 400, -1127),
        ("klines?symbol=BTCUSDT", 400, -1102),
        ("klines?symbol=BTCUSDT&interval=1s", 400, -1120),
        ("depth?symbol=BTCUSDT&limit=7", 400, -4021),
    ],
)
def test_bad_requests_get_the_venue_s_error_bodies(
    recording: Path, query: str, status: int, code: int
) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        got_status, body, headers = await get(query)
        assert (got_status, body["code"]) == (status, code)
        assert set(body) == {"code", "msg"}
        assert int(headers["X-MBX-USED-WEIGHT-1M"]) >= 1

    serve(SimulatorSettings(recording=recording), scenario)


def test_recorded_error_bodies_are_met_to_the_letter(recordings_dir: Path, recording: Path) -> None:
    recorded: dict[int, Any] = {}
    for row in (recordings_dir / "rest" / "error_bodies.jsonl").read_text().splitlines():
        parsed = json.loads(row)
        recorded[parsed["status"]] = recorded.get(parsed["status"], parsed["body"])

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        assert (await get("aggTrades?symbol=NOSUCH"))[1] == recorded[400]
        for status in (429, 418):
            got, body, headers = await get("klines?symbol=BTCUSDT&interval=1d")
            assert got == status
            message = body["msg"].replace("127.0.0.1", "192.0.2.1").replace(" 21 ", " 2400 ")
            theirs = recorded[status]["msg"]
            if status == 418:
                message, theirs = message.partition("until")[0], theirs.partition("until")[0]
            assert (body["code"], message) == (recorded[status]["code"], theirs)
            assert int(headers["Retry-After"]) >= 1

    settings = SimulatorSettings(
        recording=recording, weight_limit=21, requests_until_ban=1, weight_clock="market"
    )
    serve(settings, scenario)


def test_weights_follow_the_limits(recording: Path) -> None:
    expected = {
        "ping": 1,
        "aggTrades?symbol=BTCUSDT": 20,
        "klines?symbol=BTCUSDT&interval=1m&limit=100": 1,
        "klines?symbol=BTCUSDT&interval=1m&limit=500": 2,
        "klines?symbol=BTCUSDT&interval=1m&limit=1000": 5,
        "klines?symbol=BTCUSDT&interval=1m&limit=1500": 10,
        "depth?symbol=BTCUSDT&limit=50": 2,
        "depth?symbol=BTCUSDT&limit=1000": 20,
    }

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> dict[str, int]:
        used, weights = 0, {}
        for query in expected:
            total = int((await get(query))[2]["X-MBX-USED-WEIGHT-1M"])
            weights[query], used = total - used, total
        return weights

    settings = SimulatorSettings(recording=recording, weight_clock="market")
    assert serve(settings, scenario) == expected


def test_other_endpoints_have_the_venue_s_shapes(recordings_dir: Path, recording: Path) -> None:
    recorded = json.loads((recordings_dir / "rest" / "replies.json").read_text())

    def first(path: str) -> Any:
        found = [entry["data"] for entry in recorded[f"/fapi/v1/{path}"]["GET"]]
        return next(data for data in found if "code" not in data)

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        await play_to_the_end(exchange, session)
        for path, query in (
            ("depth", "depth?symbol=BTCUSDT&limit=5"),
            ("ticker/price", "ticker/price?symbol=BTCUSDT"),
            ("ticker/24hr", "ticker/24hr?symbol=BTCUSDT"),
            ("time", "time"),
        ):
            ours, theirs = (await get(query))[1], first(path)
            assert set(theirs) <= set(ours) | {"lastQty"}, path
            assert {key: type(theirs[key]) for key in theirs} == {k: type(ours[k]) for k in theirs}
        info = (await get("exchangeInfo"))[1]
        symbol = info["symbols"][0]
        filters = {entry["filterType"]: entry for entry in symbol["filters"]}
        assert (symbol["symbol"], symbol["status"]) == ("BTCUSDT", "TRADING")
        assert filters["PRICE_FILTER"]["tickSize"] == "0.10"
        assert filters["LOT_SIZE"]["stepSize"] == "0.001"

    serve(SimulatorSettings(recording=recording, speed=2000), scenario)


@pytest.mark.parametrize("mode", ["500", "503", "429", "418", "html", "reset", "timeout"])
def test_rest_failures_act_on_their_endpoint_for_their_time(recording: Path, mode: str) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        async with reading(session, exchange.ws_url + TRADES) as reader:
            await reader.until(lambda: len(reader.ids) >= 1)
            assert (await get("ping"))[0] == 200
            try:
                status, body, headers = await get("aggTrades?symbol=BTCUSDT")
            except aiohttp.ClientError:
                assert mode in ("reset", "timeout")
            else:
                assert status == (200 if mode == "html" else int(mode))
                assert ("html" in body) is (mode == "html")
                assert ("Retry-After" in headers) is (mode in ("429", "418"))
            await reader.until(lambda: len(reader.ids) == 100)
            assert (await get("aggTrades?symbol=BTCUSDT&limit=1"))[1][0]["a"] == 1099

    failure = Fault(
        at_ms=0, kind=FaultKind.REST_FAILURE, mode=mode, duration_ms=9_800, endpoint="aggTrades"
    )
    plan = FaultPlan(faults=(failure,))
    serve(SimulatorSettings(recording=recording, speed=14, faults=plan), scenario)


def test_lost_trades_are_missing_from_the_socket_and_from_rest(recording: Path) -> None:
    lost = {1010, 1011, 1012, 1040}

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        async with reading(session, exchange.ws_url + TRADES) as reader:
            await reader.until(lambda: len(reader.ids) == 96)
            assert set(reader.ids) == set(range(1000, 1100)) - lost
            rows = (await get("aggTrades?symbol=BTCUSDT&fromId=1005&limit=10"))[1]
            assert [row["a"] for row in rows] == [*range(1005, 1010), *range(1013, 1018)]
            assert {number for entry in exchange.fault_log for _, number in entry.ids} == lost

    plan = FaultPlan(
        faults=(
            Fault(at_ms=990, kind=FaultKind.REST_LOST_TRADES, count=3),
            Fault(at_ms=0, kind=FaultKind.REST_LOST_TRADES, symbol="BTCUSDT", ids=(1040,)),
        )
    )
    serve(SimulatorSettings(recording=recording, speed=200, faults=plan), scenario)


def test_spot_paths_and_weights(recording: Path) -> None:
    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        status, rows, headers = await get("aggTrades?symbol=BTCUSDT&limit=2")
        assert (status, len(rows), rows[0]["M"]) == (200, 2, True)
        assert headers["X-MBX-USED-WEIGHT-1M"] == "4"
        both = await get("aggTrades?symbol=BTCUSDT&fromId=1&startTime=1")
        assert both[1]["code"] == -1128

    settings = SimulatorSettings(
        market=Market.SPOT, start_ms=1_780_000_000_000, weight_clock="market"
    )
    serve(settings, scenario)


def test_the_synthetic_past_can_be_served_back_to_48_hours(recording: Path) -> None:
    start_ms = 1_780_000_000_000

    async def scenario(exchange: SimulatedExchange, session: Any, get: Get) -> None:
        begin = start_ms - 48 * 3_600_000
        rows = (await get("aggTrades?symbol=ETHUSDT&fromId=0&limit=5"))[1]
        assert rows[0]["T"] >= begin
        assert rows[0]["T"] - begin < 60_000
        page = (await get(f"aggTrades?symbol=ETHUSDT&fromId={rows[-1]['a'] + 1}&limit=5"))[1]
        ids = [row["a"] for row in rows + page]
        assert ids == list(range(ids[0], ids[0] + 10))
        old = await get(f"aggTrades?symbol=ETHUSDT&startTime={begin - 9000}&endTime={begin - 1000}")
        assert old[1] == []

    serve(SimulatorSettings(start_ms=start_ms), scenario)
