"""The doctor: every finding has a verdict and advice; data count, acknowledgements do not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from binance_api.request_runner import RestSettings
from domain.market import Market
from lake.lock import FolderLock
from lake.source import claim_source
from market_orchestrator.connection.transport import Closed, FrameHandler
from monitoring.doctor import (
    DISK_FAILURE_BYTES,
    Examined,
    Finding,
    check_owner,
    check_routes,
    check_space,
    check_writable,
    clock_finding,
    examine,
    exit_code,
    symbols_finding,
)
from simulator.server import SimulatedExchange
from simulator.settings import SimulatorSettings

SOURCE = {"market": "um", "host": "an.exchange"}


def examined(data_root: Path, address: str, symbols: tuple[str, ...] = ("BTCUSDT",)) -> Examined:
    return Examined(
        market=Market.UM,
        symbols=symbols,
        data_root=data_root,
        source=SOURCE,
        ws_url=f"ws://{address}",
        rest=RestSettings(base_url=f"http://{address}"),
    )


class ScriptedTransport:
    """Opens connections that deliver ``frames`` and then either stay silent or close."""

    def __init__(self, frames: Sequence[bytes], closed: Closed | None = None) -> None:
        self.frames, self.closed = frames, closed
        self.open_count = 0

    async def connect(self, url: str, handler: FrameHandler) -> "ScriptedConnection":
        assert "?streams=" in url
        self.open_count += 1
        handler.on_open()
        return ScriptedConnection(self, handler)


class ScriptedConnection:
    def __init__(self, transport: ScriptedTransport, handler: FrameHandler) -> None:
        self.transport, self.handler = transport, handler

    async def receive(self) -> Closed:
        for frame in self.transport.frames:
            self.handler.on_frame(frame)
            self.handler.on_pong()
        if self.transport.closed is None:
            await asyncio.Event().wait()
        assert self.transport.closed is not None
        return self.transport.closed

    async def send_text(self, text: str) -> None:
        raise AssertionError(text)

    async def ping(self) -> None:
        raise AssertionError("the doctor does not ping")

    async def close(self, *, timeout_s: float) -> None:
        assert timeout_s > 0
        self.transport.open_count -= 1


def findings_of_routes(transport: ScriptedTransport, data_root: Path) -> list[Finding]:
    found: list[Finding] = []

    async def work() -> None:
        async with asyncio.timeout(10):
            await check_routes(examined(data_root, "127.0.0.1:1"), found.append, transport, 0.2)

    asyncio.run(work())
    assert transport.open_count == 0
    return found


def test_a_working_exchange_is_found_sound(tmp_path: Path) -> None:
    lines: list[str] = []

    async def work() -> int:
        async with asyncio.timeout(30), SimulatedExchange(SimulatorSettings(speed=10)) as exchange:
            address = exchange.rest_url.removeprefix("http://")
            return await examine(examined(tmp_path / "data", address), lines.append)

    assert asyncio.run(work()) == 0, lines
    text = "\n".join(lines)
    for expected in ("REST", "clock", "all 1 are listed", "WebSocket trades", "WebSocket depth"):
        assert expected in text
    assert lines[-1] == "all is well"


def test_an_unknown_symbol_is_named_and_fails(tmp_path: Path) -> None:
    finding = symbols_finding(("BTCUSDT", "NOPEUSDT"), {"BTCUSDT"})
    assert finding.verdict == "FAILED"
    assert "NOPEUSDT" in finding.detail
    assert exit_code([finding]) == 2
    assert symbols_finding(("BTCUSDT",), set()).verdict == "warning"


def test_nobody_there_is_exit_code_3_and_every_failure_has_advice(
    tmp_path: Path, unused_address: str
) -> None:
    lines: list[str] = []

    async def work() -> int:
        async with asyncio.timeout(30):
            return await examine(examined(tmp_path, unused_address), lines.append)

    assert asyncio.run(work()) == 3
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 3
    assert all("→ check the network" in line for line in failed)


@pytest.fixture
def unused_address() -> str:
    """An address at which nobody listens."""

    async def bind() -> str:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return f"127.0.0.1:{port}"

    return asyncio.run(bind())


def test_a_route_is_sound_only_when_data_arrive(tmp_path: Path) -> None:
    data = ScriptedTransport([b'{"result":null,"id":1}', b'{"stream":"x","data":{}}'])
    assert {f.verdict for f in findings_of_routes(data, tmp_path)} == {"ok"}
    acknowledged = findings_of_routes(ScriptedTransport([b'{"result":null,"id":1}']), tmp_path)
    assert {f.verdict for f in acknowledged} == {"FAILED"}
    assert all("no data" in f.detail and f.advice for f in acknowledged)
    assert exit_code(acknowledged) == 3


def test_a_closed_route_shows_its_close_code(tmp_path: Path) -> None:
    found = findings_of_routes(ScriptedTransport([], Closed(1008, "too many")), tmp_path)
    assert all("1008 too many" in f.detail for f in found)


def test_the_clock_is_judged_beyond_what_the_round_trip_explains() -> None:
    assert clock_finding(1_000_000, 1_000_050, 100.0).verdict == "ok"
    assert clock_finding(1_000_000, 1_001_400, 1_000.0).verdict == "ok"
    behind = clock_finding(1_000_000, 997_000, 100.0)
    assert behind.verdict == "warning"
    assert "-3,050 ms" in behind.detail
    assert exit_code([behind]) == 0


def test_a_full_disk_and_a_bad_folder_fail_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": DISK_FAILURE_BYTES - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    full = check_space(tmp_path / "not" / "yet")
    assert full.verdict == "FAILED"
    assert "--data-dir" in full.advice
    (tmp_path / "file").touch()
    unusable = check_writable(tmp_path / "file" / "data")
    assert unusable.verdict == "FAILED"
    assert "--data-dir" in unusable.advice
    assert exit_code([unusable]) == 2
    assert exit_code([unusable, full]) == 1


def test_looking_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "data").verdict == "ok"
    assert check_writable(tmp_path).verdict == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_run_would_refuse_fails_with_the_reason(tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert check_owner(root, SOURCE).verdict == "ok"
    assert not root.exists()
    claim_source(root, SOURCE)
    with FolderLock(root, "bot"):
        held = check_owner(root, SOURCE)
    assert held.verdict == "FAILED"
    assert "in use by the bot with pid" in held.detail
    assert check_owner(root, SOURCE).verdict == "ok"
    other = check_owner(root, {"market": "um", "host": "another.exchange"})
    assert other.verdict == "FAILED"
    assert "holds data of market um, host an.exchange" in other.detail
    assert exit_code([held]) == exit_code([other]) == 2


def test_what_is_wrong_here_outranks_what_is_wrong_there() -> None:
    here = Finding(subject="a", verdict="FAILED", detail="")
    there = Finding(subject="b", verdict="FAILED", detail="", exit_code=3)
    warned = Finding(subject="c", verdict="warning", detail="", exit_code=1)
    assert exit_code([there, here, warned]) == 2
    assert exit_code([there, warned]) == 3
    assert exit_code([warned]) == exit_code([]) == 0
