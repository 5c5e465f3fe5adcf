"""The archive's client against the simulated archive and its faults."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from binance_api.errors import BadReply, Unreachable
from binance_api.request_runner import RestSettings
from binance_api.vision import ArchiveRef, ChecksumMismatch, NotPublished, VisionClient
from domain.errors import StorageError
from domain.market import Market
from simulator.vision_faults import VisionFault, VisionFaultKind
from tests.vision_archives import SYMBOL, at_ms, run, served, table_of_trades

NOW_MS = at_ms(2024, 8, 10)
JUNE = ArchiveRef(market=Market.UM, kind="aggTrades", symbol=SYMBOL, period="2024-06")


@pytest.fixture(scope="module")
def trades():
    return table_of_trades(per_day=300)


def test_names_and_paths_are_the_archives_own():
    assert JUNE.path == ("/data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-06.zip")
    day = ArchiveRef(market=Market.SPOT, kind="klines", symbol="ETHUSDT", period="2024-06-03")
    assert day.path == "/data/spot/daily/klines/ETHUSDT/1m/ETHUSDT-1m-2024-06-03.zip"


def download(trades, folder, *faults):
    """The archive, how often its progress rose, and the client's counts."""

    async def scenario():
        seen = []
        async with served(trades, NOW_MS, faults) as (exchange, client):
            archive = await client.download(
                JUNE, folder / "june.zip", lambda done, total: seen.append((done, total))
            )
            return archive, seen, client.statistics(), exchange

    return run(scenario())


def of(kind, **fields):
    return VisionFault(kind=kind, **fields)


def test_a_download_is_what_its_checksum_says(trades, tmp_path):
    archive, seen, counts, _ = download(trades, tmp_path)
    assert hashlib.sha256(archive.path.read_bytes()).hexdigest() == archive.sha256
    assert archive.size_bytes == archive.path.stat().st_size == seen[-1][0] == seen[-1][1]
    assert archive.url.endswith(JUNE.path)
    assert counts["archives"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["june.zip"]


def test_what_is_not_published_says_so(trades, tmp_path):
    async def scenario():
        async with served(trades, NOW_MS) as (_, client):
            later = ArchiveRef(
                market=Market.UM, kind="aggTrades", symbol=SYMBOL, period="2024-08-11"
            )
            with pytest.raises(NotPublished, match="2024-08-11"):
                await client.checksum(later)
            with pytest.raises(NotPublished):
                await client.download(later, tmp_path / "x.zip")

    run(scenario())


@pytest.mark.parametrize(
    "fault",
    [
        of(VisionFaultKind.CUT),
        of(VisionFaultKind.CUT, count=9),
        of(VisionFaultKind.STALL, delay_ms=2_000),
    ],
    ids=["cut", "cut nine times", "stall"],
)
def test_a_download_that_breaks_off_goes_on_where_it_stopped(trades, tmp_path, fault):
    archive, _, counts, exchange = download(trades, tmp_path, fault)
    assert counts["resumed"] >= 1
    sent = exchange.statistics()["vision_bytes"]
    assert sent <= archive.size_bytes * 1.6  # not from the beginning again


def test_another_process_takes_an_interrupted_download_up(trades, tmp_path):
    async def scenario():
        stall = of(VisionFaultKind.STALL, delay_ms=60_000)
        async with served(trades, NOW_MS, [stall]) as (exchange, _):
            target, patient = tmp_path / "june.zip", RestSettings(base_url=exchange.vision_url)
            async with VisionClient(patient) as client:
                download = asyncio.ensure_future(client.download(JUNE, target))
                while not any(tmp_path.glob(".june.zip.*.part")):  # its first piece has come
                    await asyncio.sleep(0.01)
                download.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await download
            assert not target.exists()
            (part,) = tmp_path.iterdir()
            held = part.stat().st_size
            assert held > 0
            async with VisionClient(patient) as other:
                await other.download(JUNE, target)
                assert other.statistics()["archive_bytes"] == target.stat().st_size - held
        assert [path.name for path in tmp_path.iterdir()] == ["june.zip"]

    run(scenario())


def test_a_part_longer_than_the_archive_is_dropped(trades, tmp_path):
    archive, _, _, _ = download(trades, tmp_path)
    part = tmp_path / f".june.zip.{archive.sha256[:16]}.part"
    archive.path.rename(part)
    part.write_bytes(b"PK" + b"x" * archive.size_bytes * 2)
    again, _, _, _ = download(trades, tmp_path)
    assert again.sha256 == archive.sha256


def test_a_whole_download_is_not_repeated(trades, tmp_path):
    async def scenario():
        async with served(trades, NOW_MS) as (_, client):
            first = await client.download(JUNE, tmp_path / "june.zip")
            assert await client.download(JUNE, tmp_path / "june.zip") == first
            assert client.statistics()["archives"] == 1

    run(scenario())


@pytest.mark.parametrize(
    "fault",
    [
        of(VisionFaultKind.WRONG_CHECKSUM),
        of(VisionFaultKind.REPLACED, mode="between"),
        of(VisionFaultKind.HTML, count=2),
        of(VisionFaultKind.UNAVAILABLE, count=3),
    ],
    ids=lambda fault: fault.kind.value,
)
def test_passing_faults_are_waited_out(trades, tmp_path, fault):
    archive, _, _, exchange = download(trades, tmp_path, fault)
    assert hashlib.sha256(archive.path.read_bytes()).hexdigest() == archive.sha256
    assert fault.kind is VisionFaultKind.REPLACED or exchange.vision.applied


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (
            of(VisionFaultKind.WRONG_CHECKSUM, count=0),
            ChecksumMismatch,
            "differs from its checksum",
        ),
        (of(VisionFaultKind.HTML, count=0), BadReply, "HTML"),
        (of(VisionFaultKind.UNAVAILABLE, count=0), Unreachable, "503"),
    ],
    ids=["checksum", "html", "503"],
)
def test_lasting_faults_are_one_clear_error(trades, tmp_path, fault, error, text):
    with pytest.raises(error, match=text):
        download(trades, tmp_path, fault)
    assert not (tmp_path / "june.zip").exists()


def test_a_web_page_does_not_replace_what_has_come(trades, tmp_path):
    archive, _, _, _ = download(trades, tmp_path)
    part = tmp_path / f".june.zip.{archive.sha256[:16]}.part"
    half = archive.path.read_bytes()[: archive.size_bytes // 2]
    archive.path.unlink()
    part.write_bytes(half)
    fault = of(VisionFaultKind.HTML, count=0)

    async def scenario():
        async with served(trades, NOW_MS, [fault]) as (_, client):
            with pytest.raises(BadReply, match="HTML instead of an archive"):
                await client.download(JUNE, tmp_path / "june.zip", sha256=archive.sha256)

    run(scenario())
    assert part.read_bytes() == half


def test_a_folder_that_takes_no_file_is_a_storage_error(trades, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        download(trades, tmp_path / "file")
