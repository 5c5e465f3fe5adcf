"""The simulated archive publishes what the exchange does, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile

import aiohttp
import pytest

from domain.errors import ConfigError
from domain.market import Market
from simulator.faults import FaultPlan, load_plan
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings
from simulator.vision_faults import VisionFault, VisionFaultKind, random_vision_faults
from tests.vision_archives import HEADER, SYMBOL, at_ms, run, table_of_trades

NOW_MS = at_ms(2024, 7, 10, 9)
UM = f"/data/futures/um/monthly/aggTrades/{SYMBOL}/{SYMBOL}-aggTrades-2024-06.zip"
KLINES = f"/data/futures/um/daily/klines/{SYMBOL}/1m/{SYMBOL}-1m-2024-06-03.zip"


@pytest.fixture(scope="module")
def trades():
    return table_of_trades(per_day=40)


def ask(trades, scenario, *faults, market=Market.UM, now_ms=NOW_MS):
    async def main():
        settings = SimulatorSettings(
            market=market,
            archive=trades,
            start_ms=now_ms,
            faults=FaultPlan(vision=tuple(faults)),
        )
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:

            async def get(path, **headers):
                async with session.get(exchange.vision_url + path, headers=headers) as reply:
                    return reply.status, await reply.read()

            return await scenario(get)

    return run(main())


def body(trades, path, *faults, **options):
    async def scenario(get):
        status, data = await get(path)
        assert status == 200
        return data

    return ask(trades, scenario, *faults, **options)


def lines(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = archive.namelist()
        return archive.read(name).decode().splitlines()


def fault(kind, **fields):
    return VisionFault(kind=kind, **fields)


def test_a_month_is_one_csv_with_the_published_columns(trades):
    found = lines(body(trades, UM))
    assert found[0] == HEADER
    assert len(found) - 1 == len(trades.between(SYMBOL, at_ms(2024, 6, 1), at_ms(2024, 7, 1)))
    assert found[1].count(",") == 6


def test_the_checksum_is_of_the_file_beside_it(trades):
    async def scenario(get):
        _, data = await get(UM)
        _, text = await get(f"{UM}.CHECKSUM")
        name = UM.rsplit("/", 1)[1]
        assert text.decode() == f"{hashlib.sha256(data).hexdigest()}  {name}"

    ask(trades, scenario)


def test_klines_cover_every_minute_and_close_where_trades_do(trades):
    found = [line.split(",") for line in lines(body(trades, KLINES))[1:]]
    assert [int(row[0]) for row in found] == list(
        range(at_ms(2024, 6, 3), at_ms(2024, 6, 4), 60_000)
    )
    day = trades.between(SYMBOL, at_ms(2024, 6, 3), at_ms(2024, 6, 4)).rows
    fills = int((day["last_trade_id"] - day["first_trade_id"] + 1).sum())
    assert sum(int(row[8]) for row in found) == fills
    assert float(found[-1][4]) == int(day["price"][-1]) / 100


def test_spot_has_no_header_one_more_column_and_microseconds_since_2025():
    later = table_of_trades((2024, 12, 1), (2025, 2, 1), per_day=40)
    for month, digits in (("2024-12", 13), ("2025-01", 16)):
        path = f"/data/spot/monthly/aggTrades/{SYMBOL}/{SYMBOL}-aggTrades-{month}.zip"
        found = lines(body(later, path, market=Market.SPOT, now_ms=at_ms(2025, 3, 1)))
        fields = found[0].split(",")
        assert len(fields) == 8
        assert fields[6] in ("True", "False")
        assert len(fields[5]) == digits


@pytest.mark.parametrize(
    ("path", "hour", "status"),
    [
        (KLINES.replace("06-03", "07-09"), 8, 404),
        (KLINES.replace("06-03", "07-09"), 9, 200),
        (UM.replace("2024-06", "2024-07"), 9, 404),
        (UM.replace("2024-06", "2024-04"), 9, 404),
        (UM.replace("2024-06", "2024-13"), 9, 404),
        (UM.replace(SYMBOL, "NOSUCH"), 9, 404),
        (UM.replace("futures/um", "spot"), 9, 404),
        ("/data/", 9, 404),
    ],
)
def test_what_is_not_published_is_not_found(trades, path, hour, status):
    async def scenario(get):
        assert (await get(path))[0] == status

    ask(trades, scenario, now_ms=at_ms(2024, 7, 10, hour))


def test_ranges_begin_where_asked(trades):
    async def scenario(get):
        _, whole = await get(UM)
        assert await get(UM, Range="bytes=100-") == (206, whole[100:])
        assert (await get(UM, Range=f"bytes={len(whole)}-"))[0] == 416

    ask(trades, scenario)


def test_content_faults_disturb_rows_and_keep_the_checksum_true(trades):
    clean = lines(body(trades, UM))[1:]
    doubled = lines(body(trades, UM, fault(VisionFaultKind.DOUBLED)))[1:]
    assert len(doubled) > len(clean)
    assert set(doubled) == set(clean)
    shuffled = lines(body(trades, UM, fault(VisionFaultKind.SHUFFLED)))[1:]
    assert shuffled != clean
    assert sorted(shuffled) == sorted(clean)
    assert lines(body(trades, UM, fault(VisionFaultKind.HEADER))) == clean
    lost = lines(body(trades, UM, fault(VisionFaultKind.LOST_DAYS, days=(2, 30))))[1:]
    gone = {line.split(",")[5] for line in set(clean) - set(lost)}
    days = {int(time) // 86_400_000 for time in gone}
    assert days == {at_ms(2024, 6, 2) // 86_400_000, at_ms(2024, 6, 30) // 86_400_000}
    with pytest.raises(zipfile.BadZipFile):
        lines(body(trades, UM, fault(VisionFaultKind.CUT_ARCHIVE)))


def test_a_replaced_archive_has_two_editions(trades):
    async def scenario(get):
        _, first_sum = await get(f"{UM}.CHECKSUM")
        _, first = await get(UM)
        _, second_sum = await get(f"{UM}.CHECKSUM")
        _, second = await get(UM)
        assert hashlib.sha256(first).hexdigest() == first_sum.decode()[:64]
        assert hashlib.sha256(second).hexdigest() == second_sum.decode()[:64]
        assert set(lines(first)) < set(lines(second))

    ask(trades, scenario, fault(VisionFaultKind.REPLACED))


def test_counted_faults_end(trades):
    async def scenario(get):
        assert (await get(UM))[1].startswith(b"<html>")
        assert (await get(UM))[1].startswith(b"PK")
        with pytest.raises(aiohttp.ClientError):
            await get(KLINES)
        assert (await get(KLINES))[0] == 200

    ask(
        trades,
        scenario,
        fault(VisionFaultKind.HTML, data="aggTrades"),
        fault(VisionFaultKind.CUT, data="klines"),
    )


def test_a_stall_is_silence_in_the_middle(trades):
    async def scenario(get):
        started = asyncio.get_running_loop().time()
        assert (await get(UM))[0] == 200
        assert asyncio.get_running_loop().time() - started >= 0.2

    ask(trades, scenario, fault(VisionFaultKind.STALL, delay_ms=200))


def test_the_archive_of_the_market_itself_holds_its_trades():
    async def scenario():
        settings = SimulatorSettings(
            seed=5, symbols=(SYMBOL,), start_ms=NOW_MS, rate_multiplier=0.002
        )
        async with SimulatedExchange(settings) as exchange, aiohttp.ClientSession() as session:
            path = UM.replace("monthly", "daily").replace("2024-06", "2024-07-08")
            async with session.get(exchange.vision_url + path) as reply:
                found = lines(await reply.read())[1:]
            day = exchange.source.between(SYMBOL, at_ms(2024, 7, 8), at_ms(2024, 7, 9))
            assert [int(line.split(",")[0]) for line in found] == (
                day.rows["agg_trade_id"].tolist()
            )

    run(scenario())


def test_a_plan_file_scripts_the_archive(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[[vision]]\nkind = "lost_days"\nperiod = "2024-06"\ndays = [3]\n')
    assert load_plan(str(plan), 1_000).vision == (
        VisionFault(kind=VisionFaultKind.LOST_DAYS, period="2024-06", days=(3,)),
    )
    plan.write_text('[[vision]]\nkind = "lost_days"\n')
    with pytest.raises(ConfigError, match="days"):
        load_plan(str(plan), 1_000)


def test_random_faults_are_the_same_for_the_same_seed():
    months = [f"2024-{month:02d}" for month in range(1, 13)]
    assert random_vision_faults(4, months) == random_vision_faults(4, months)
    kinds = {f.kind for seed in range(20) for f in random_vision_faults(seed, months)}
    assert kinds == set(VisionFaultKind)
