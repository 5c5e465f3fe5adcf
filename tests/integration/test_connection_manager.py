from __future__ import annotations

import asyncio
import contextlib
import json
import random

import msgspec
import pytest

from binance_api.endpoints import Route
from domain.errors import ConnectionLost
from domain.events import ConnectionEvent, ConnectionState
from market_orchestrator.connection.clock import SystemClock
from market_orchestrator.connection.liveness import LivenessSettings
from market_orchestrator.connection.robust_connection import (
    DEPTH_PRIMARY_SWITCHED,
    ConnectionSettings,
    FrameBatch,
    RobustConnectionManager,
)
from market_orchestrator.connection.transport import PicowsTransport
from tests.integration.connection_exchange import (
    PING,
    TEXT,
    LocalExchange,
    quiet,
    running,
    steady,
    wait_until,
)

TRADES = "btcusdt@aggTrade"
QUIET_TRADES = "altusdt@aggTrade"
DEPTH = "btcusdt@depth20@100ms"
DISCONNECTED, CLOSED = ConnectionState.DISCONNECTED, ConnectionState.CLOSED
HEALTHY, SUBSCRIBED = ConnectionState.HEALTHY, ConnectionState.SUBSCRIBED

FAST = ConnectionSettings(
    ping_interval_s=2.0,
    backoff_base_s=0.001,
    backoff_cap_s=0.004,
    reconnect_jitter_s=0.001,
    connect_timeout_s=2.0,
    check_interval_s=0.005,
    stagger_s=0.02,
    rotation_overlap_s=0.03,
    rotation_grace_s=0.05,
    rotation_first_data_s=0.1,
    rotation_retry_s=60.0,
    depth_stale_after_s=0.05,
    probe_min_interval_s=0.0,
    liveness=LivenessSettings(
        floor_s=0.1,
        cap_s=0.1,
        first_frame_depth_s=0.2,
        first_frame_trades_s=0.05,
        confirm_s=0.02,
        retry_s=0.03,
    ),
)


class Desk:
    """Sink, listener and prober in one; ``log`` has frames and events in the order they came."""

    def __init__(self) -> None:
        self.log: list[ConnectionEvent | tuple[str, int, str, int]] = []
        self.probed: list[str] = []
        self.verdict: bool | None = False
        self.fail_with: Exception | None = None

    def __call__(self, batch: FrameBatch) -> set[str]:
        if self.fail_with is not None:
            raise self.fail_with
        assert len(batch.payloads) == len(batch.receive_time_ns) > 0
        streams = set()
        for payload in batch.payloads:
            with contextlib.suppress(ValueError):
                frame = json.loads(payload)
                row = (batch.route.value, batch.socket_id, frame["stream"], frame["data"]["n"])
                self.log.append(row)
                streams.add(frame["stream"])
        return streams

    def on_connection(self, event: ConnectionEvent) -> None:
        self.log.append(event)

    async def probe(self, stream: str) -> bool | None:
        self.probed.append(stream)
        return self.verdict

    def events(self, *states: ConnectionState, route: str | None = None) -> list[ConnectionEvent]:
        found = [entry for entry in self.log if isinstance(entry, ConnectionEvent)]
        found = [e for e in found if route is None or e.route == route]
        return [e for e in found if not states or e.state in states]

    def frames(self, route: str | None = None) -> list[tuple[str, int, str, int]]:
        return [e for e in self.log if isinstance(e, tuple) and route in (None, e[0])]


@pytest.fixture
def transport():
    return PicowsTransport()


def change(settings: ConnectionSettings = FAST, **values: object) -> ConnectionSettings:
    return msgspec.structs.replace(settings, **values)


@contextlib.asynccontextmanager
async def managed(transport, script, streams=(TRADES,), settings=FAST, desk=None, clock=None):
    """A manager running against a scripted exchange; everything must be closed afterwards."""
    desk = desk or Desk()
    before = asyncio.all_tasks()
    async with LocalExchange(script) as exchange:
        manager = RobustConnectionManager(
            change(settings, ws_base=exchange.ws_base),
            list(streams),
            desk,
            desk,
            desk,
            transport=transport,
            clock=clock or SystemClock(),
            random=random.Random(1),
        )
        async with running(manager.run()) as task:
            yield manager, desk, exchange, task
        await wait_until(lambda: exchange.open_count == 0)
    assert asyncio.all_tasks() <= before


def assert_order(desk: Desk) -> None:
    """SUBSCRIBED before a socket's first frame, nothing after its end."""
    subscribed, ended = set(), set()
    for entry in desk.log:
        if isinstance(entry, tuple):
            assert entry[1] in subscribed
            assert entry[1] not in ended
        elif entry.state is SUBSCRIBED:
            subscribed.add(entry.socket_id)
        elif entry.state in (DISCONNECTED, CLOSED):
            ended.add(entry.socket_id)


class SleepyClock(SystemClock):
    """A machine that can be suspended: afterwards both clocks have jumped."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.slept_s

    def time_ns(self) -> int:
        return super().time_ns() + round(self.slept_s * 1e9)


def test_frames_of_both_routes_arrive_and_trades_open_first(transport):
    async def check():
        async with managed(transport, steady(), [DEPTH, TRADES]) as (manager, desk, exchange, _):
            await wait_until(lambda: desk.frames("trades") and desk.frames("depth"))
            assert [peer.is_trades for peer in exchange.peers] == [True, False]
            assert manager.is_healthy(Route.TRADES)
            assert manager.is_healthy(Route.DEPTH)
            (status,) = manager.sockets(Route.DEPTH)
            assert status.state is HEALTHY
            assert status.is_primary
            assert manager.depth_primary == status.socket_id
            assert manager.statistics()["trades.frames"] > 0
        assert [e.state for e in desk.events(route="trades")] == [
            ConnectionState.CONNECTING,
            SUBSCRIBED,
            HEALTHY,
            CLOSED,
        ]
        assert_order(desk)

    asyncio.run(check())


def test_depth_does_not_wait_long_for_a_trade_route_that_is_down(transport):
    async def check():
        async with managed(transport, steady(), [DEPTH, TRADES]) as (_, desk, exchange, _):
            exchange.refuse = lambda index: 503 if index == 0 else None
            await wait_until(lambda: desk.frames("depth"))

    asyncio.run(check())


@pytest.mark.parametrize("ending", [1000, 1001, 1012, "reset", "drop"])
def test_any_end_we_did_not_ask_for_is_a_loss_that_reconnects(transport, ending):
    async def script(peer):
        for number in range(3):
            peer.data(TRADES, n=number + 10 * peer.index)
        if peer.index == 0:
            await asyncio.sleep(0.01)
            getattr(peer, ending)() if isinstance(ending, str) else peer.close(ending)
        await peer.gone.wait()

    async def check():
        async with managed(transport, script) as (manager, desk, _, _):
            await wait_until(lambda: len(desk.frames()) == 6)
            (loss,) = desk.events(DISCONNECTED)
            assert loss.close_code == (1006 if isinstance(ending, str) else ending)
            assert str(loss.close_code) in loss.reason
            states = [e.state for e in desk.events()]
            assert states.index(DISCONNECTED) < states.index(SUBSCRIBED, 2)
            assert [frame[3] for frame in desk.frames()] == [0, 1, 2, 10, 11, 12]
            kind = "dropped" if isinstance(ending, str) else "closed_by_peer"
            assert manager.statistics()[f"trades.ended.{kind}"] == 1
        assert_order(desk)

    asyncio.run(check())


def test_pending_frames_are_delivered_before_the_loss_is_reported(transport):
    async def script(peer):
        if peer.index == 0:
            for number in range(50):
                peer.data(TRADES, n=number)
            peer.close(1001)
        await peer.gone.wait()

    async def check():
        settings = change(batch_interval_s=30.0)
        async with managed(transport, script, settings=settings) as (_, desk, _, _):
            await wait_until(lambda: desk.events(DISCONNECTED))
            at = next(i for i, e in enumerate(desk.log) if e in desk.events(DISCONNECTED))
            assert [e[3] for e in desk.log[:at] if isinstance(e, tuple)] == list(range(50))

    asyncio.run(check())


def test_batches_are_bounded_and_in_order(transport):
    sizes = []

    class Sizes(Desk):
        def __call__(self, batch):
            sizes.append(len(batch.payloads))
            return super().__call__(batch)

    async def script(peer):
        for number in range(2000):
            peer.data(TRADES, n=number)
        await peer.gone.wait()

    async def check():
        settings = change(max_batch=64)
        async with managed(transport, script, settings=settings, desk=Sizes()) as (_, desk, _, _):
            await wait_until(lambda: len(desk.frames()) == 2000)
            assert [frame[3] for frame in desk.frames()] == list(range(2000))
            assert max(sizes) <= 64

    asyncio.run(check())


def test_a_stall_with_pongs_answered_is_proven_and_reconnected(transport):
    async def script(peer):
        for number in range(30):
            peer.data(TRADES, n=number)
            await asyncio.sleep(0.001)
        if peer.index > 0:
            await steady()(peer)
        await peer.gone.wait()

    async def check():
        desk = Desk()
        desk.verdict = True
        async with managed(transport, script, desk=desk) as (manager, _, exchange, _):
            await wait_until(lambda: len(exchange.peers) == 2)
            desk.verdict = False
            assert "newer data" in desk.events(DISCONNECTED)[0].reason
            assert set(desk.probed) == {TRADES}
            assert manager.statistics()["trades.ended.stalled"] == 1
            await wait_until(lambda: manager.is_healthy(Route.TRADES))

    asyncio.run(check())


def test_a_stream_stalled_beside_a_delivering_one_is_found(transport):
    async def script(peer):
        while True:
            peer.data(TRADES, n=0)
            if peer.index > 0 or not desk.probed:
                peer.data("ethusdt@aggTrade", n=0)
            if len(desk.log) > 60 and not desk.probed:
                break
            await asyncio.sleep(0.002)
        while True:
            peer.data(TRADES, n=1)
            await asyncio.sleep(0.002)

    desk = Desk()
    desk.verdict = True

    async def check():
        streams = [TRADES, "ethusdt@aggTrade"]
        async with managed(transport, script, streams, desk=desk) as (_, _, exchange, _):
            await wait_until(lambda: len(exchange.peers) >= 2)
            assert "ethusdt@aggTrade" in desk.probed
            assert desk.events(DISCONNECTED)[0].reason.startswith("ethusdt@aggTrade silent")

    asyncio.run(check())


def test_quiet_is_not_dead(transport):
    async def script(peer):
        while True:
            peer.data(TRADES, n=0)  # QUIET_TRADES never comes
            await asyncio.sleep(0.002)

    async def check():
        streams = [TRADES, QUIET_TRADES]
        async with managed(transport, script, streams) as (manager, desk, exchange, task):
            await wait_until(lambda: desk.probed.count(QUIET_TRADES) >= 3)
            assert len(exchange.peers) == 1
            assert manager.is_healthy(Route.TRADES)
            assert not desk.events(DISCONNECTED)
            assert not task.done()

    asyncio.run(check())


def test_a_socket_of_quiet_streams_alone_is_healthy_once_probed(transport):
    async def check():
        async with managed(transport, quiet, [QUIET_TRADES]) as (manager, desk, exchange, _):
            await wait_until(lambda: desk.events(HEALTHY))
            assert "nothing newer" in desk.events(HEALTHY)[0].reason
            assert manager.is_healthy(Route.TRADES)
            assert len(exchange.peers) == 1

    asyncio.run(check())


def test_a_missing_pong_loses_the_connection(transport):
    async def script(peer):
        peer.answers_pings = peer.index > 0
        await steady()(peer)

    async def check():
        settings = change(ping_interval_s=0.05)
        async with managed(transport, script, settings=settings) as (_, desk, exchange, _):
            await wait_until(lambda: len(exchange.peers) >= 2)
            assert "no pong" in desk.events(DISCONNECTED)[0].reason
            opcodes = [opcode for opcode, _ in exchange.peers[0].received]
            assert opcodes.count(PING) >= 1

    asyncio.run(check())


def test_a_dead_depth_socket_reconnects_while_trades_flow(transport):
    async def script(peer):
        if not peer.is_trades and len([p for p in exchange_of if not p.is_trades]) == 1:
            for _ in range(20):
                peer.data(DEPTH, n=0)
                await asyncio.sleep(0.002)
            await peer.gone.wait()
        await steady()(peer)

    exchange_of = []

    async def check():
        desk = Desk()
        desk.verdict = None
        liveness = msgspec.structs.replace(FAST.liveness, retry_s=5.0)  # no third answer in time
        settings = change(liveness=liveness)
        async with managed(transport, script, [TRADES, DEPTH], settings, desk) as (
            _,
            _,
            exchange,
            _,
        ):
            exchange.peers = exchange_of
            await wait_until(lambda: desk.events(DISCONNECTED, route="depth"))
            loss = desk.events(DISCONNECTED, route="depth")[0]
            assert loss.reason == "all depth streams silent while trades flow"
            await wait_until(lambda: len(exchange.of(trades=False)) >= 2)

    asyncio.run(check())


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_suspended_machine_recovers_and_judges_no_silence_of_its_own(transport, is_dead):
    async def script(peer):
        if peer.index == 0:
            await wait_until(asleep.is_set)
            peer.answers_pings = not is_dead
            await asyncio.sleep(0.1 if not is_dead else 60)
        await steady()(peer)

    asleep = asyncio.Event()

    async def check():
        clock, desk = SleepyClock(), Desk()
        desk.verdict = True
        settings = change(ping_interval_s=0.4, liveness=LivenessSettings())
        async with managed(transport, script, settings=settings, desk=desk, clock=clock) as (
            _,
            _,
            exchange,
            _,
        ):
            await wait_until(lambda: exchange.peers)
            asleep.set()
            await asyncio.sleep(0.01)
            clock.slept_s = 8 * 3600.0
            await wait_until(desk.frames)
            reasons = [event.reason for event in desk.events(DISCONNECTED)]
            assert ["no pong" in reason for reason in reasons] == ([True] if is_dead else [])

    asyncio.run(check())


@pytest.mark.parametrize("redundancy", [1, 2])
def test_connection_lost_after_all_sockets_of_a_route_failed_too_often(transport, redundancy):
    async def check():
        settings = change(max_reconnect_attempts=4, redundancy=redundancy)
        async with managed(transport, steady(), [TRADES], settings) as (_, desk, exchange, task):
            exchange.refuse = lambda _index: 503
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionLost, match="503"):
                    await asyncio.shield(task)
            assert exchange.attempts >= 4 * redundancy
            assert len(desk.events(ConnectionState.GAVE_UP)) == redundancy
            assert {e.attempt for e in desk.events(DISCONNECTED)} >= {1, 2, 3, 4}

    with contextlib.suppress(ConnectionLost):
        asyncio.run(check())


def test_one_socket_alive_keeps_the_route_alive(transport):
    async def check():
        settings = change(max_reconnect_attempts=2, redundancy=2)
        async with managed(transport, steady(), [TRADES], settings) as (_, desk, exchange, task):
            exchange.refuse = lambda index: 503 if index > 0 else None
            await wait_until(lambda: exchange.attempts > 8)
            assert not task.done()
            assert not desk.events(ConnectionState.GAVE_UP)

    asyncio.run(check())


def test_zero_attempts_means_never_give_up(transport):
    async def check():
        settings = change(max_reconnect_attempts=0)
        async with managed(transport, steady(), [TRADES], settings) as (_, desk, exchange, task):
            exchange.refuse = lambda index: 503 if index < 20 else None
            await wait_until(desk.frames)
            assert not task.done()

    asyncio.run(check())


def test_only_data_resets_the_attempts(transport):
    """Connections that open and end without data count; one data frame starts over."""

    async def script(peer):
        if peer.index == 2:
            peer.data(TRADES, n=0)
            await asyncio.sleep(0.01)
        peer.close(1001)
        await peer.gone.wait()

    async def check():
        settings = change(max_reconnect_attempts=4)
        async with managed(transport, script, settings=settings) as (_, _, exchange, task):
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionLost):
                    await asyncio.shield(task)
            assert len(exchange.peers) == 3 + 4  # two failures, one success, four failures

    with contextlib.suppress(ConnectionLost):
        asyncio.run(check())


@pytest.mark.parametrize("redundancy", [1, 2])
def test_rotation_loses_no_frame(transport, redundancy):
    async def check():
        settings = change(
            redundancy=redundancy,
            rotation_after_s=0.1,
            rotation_spread_s=0.0,
            stagger_s=0.0,
            depth_stale_after_s=5.0,
            rotation_first_data_s=30.0,  # a busy machine takes its time to connect
            liveness=LivenessSettings(),
        )
        sent = []
        number = 0

        async def script(peer):
            await peer.gone.wait()

        async def market(exchange):
            nonlocal number
            while True:
                number += 1
                live = [p for p in exchange.peers if not p.gone.is_set()]
                for peer in live:
                    for stream in peer.streams:
                        peer.data(stream, n=number, u=number)
                if live:
                    sent.append(number)
                await asyncio.sleep(0.001)

        streams = [TRADES, DEPTH]
        async with managed(transport, script, streams, settings) as (manager, desk, exchange, _):
            await wait_until(lambda: len(exchange.peers) == 2 * redundancy)
            async with running(market(exchange)):
                await wait_until(lambda: manager.statistics()["rotations"] >= 4)
            await asyncio.sleep(0.02)
            trades = {frame[3] for frame in desk.frames("trades")}
            assert set(range(1, max(trades))) <= trades
            assert not desk.events(DISCONNECTED)
            depth = [frame[3] for frame in desk.frames("depth")]
            assert depth == sorted(depth)
            assert set(range(1, max(depth))) <= set(depth)
            switches = [e for e in desk.events() if e.reason == DEPTH_PRIMARY_SWITCHED]
            assert switches
        assert_order(desk)
        assert_depth_never_interleaves(desk)

    asyncio.run(check())


def assert_depth_never_interleaves(desk: Desk) -> None:
    """Once another socket's depth passed, the former one's never does again without a switch."""
    current, may_change = None, True
    for entry in desk.log:
        if isinstance(entry, ConnectionEvent):
            if entry.route == "depth" and (
                entry.reason == DEPTH_PRIMARY_SWITCHED or entry.state in (DISCONNECTED, CLOSED)
            ):
                may_change = True
        elif entry[0] == "depth" and entry[1] != current:
            assert may_change
            current, may_change = entry[1], False


def test_a_rotation_whose_new_socket_is_deaf_keeps_the_old_one(transport):
    async def script(peer):
        if peer.index == 0:
            await steady()(peer)
        await peer.gone.wait()

    async def check():
        settings = change(rotation_after_s=0.05)
        async with managed(transport, script, settings=settings) as (manager, desk, exchange, _):
            await wait_until(lambda: desk.events(CLOSED))
            assert "rotation failed" in desk.events(CLOSED)[0].reason
            assert desk.events(CLOSED)[0].socket_id == 2
            count = len(desk.frames())
            await wait_until(lambda: len(desk.frames()) > count)
            assert manager.is_healthy(Route.TRADES)
            assert not exchange.peers[0].gone.is_set()

    asyncio.run(check())


def test_a_rotation_whose_new_socket_is_refused_keeps_the_old_one(transport):
    async def check():
        settings = change(rotation_after_s=0.05)
        async with managed(transport, steady(), settings=settings) as (manager, desk, exchange, _):
            exchange.refuse = lambda index: 503 if index > 0 else None
            await wait_until(lambda: desk.events(DISCONNECTED))
            assert desk.events(DISCONNECTED)[0].socket_id == 2
            await wait_until(lambda: manager.is_healthy(Route.TRADES))
            assert "kept" in desk.events(HEALTHY)[-1].reason

    asyncio.run(check())


def test_quiet_streams_rotate_after_pong_and_grace(transport):
    async def check():
        settings = change(rotation_after_s=0.05)
        async with managed(transport, quiet, settings=settings) as (manager, desk, exchange, _):
            await wait_until(lambda: manager.statistics()["rotations"] >= 1)
            assert desk.events(CLOSED)[0].reason == "rotated"
            assert exchange.peers[0].gone.is_set() or len(exchange.peers) == 2

    asyncio.run(check())


def test_the_shutdown_notice_rotates_at_once_and_is_not_data(transport):
    async def script(peer):
        if peer.index == 0:
            peer.data(TRADES, n=0)
            peer.frame(TEXT, b'{"e":"serverShutdown","E":1770123456789}')
            await peer.gone.wait()
        await steady()(peer)

    async def check():
        async with managed(transport, script) as (manager, desk, _, _):
            await wait_until(lambda: manager.statistics()["rotations"] == 1)
            assert "serverShutdown" in desk.events(ConnectionState.ROTATING)[0].reason

    asyncio.run(check())


def test_two_trade_sockets_both_deliver_with_their_ids(transport):
    async def check():
        settings = change(redundancy=2)
        async with managed(transport, steady(), settings=settings) as (manager, desk, _, _):
            await wait_until(lambda: len({frame[1] for frame in desk.frames()}) == 2)
            assert [s.is_primary for s in manager.sockets(Route.TRADES)] == [True, True]

    asyncio.run(check())


@pytest.mark.parametrize("how", ["reset", "stall"])
def test_the_standby_takes_over_depth(transport, how):
    """Numbers are those of one clock (and the peer's), so a hole or a step back would show."""
    stalled: list[int] = []
    sent: dict[int, list[int]] = {}

    async def script(peer):
        while peer.index not in stalled:
            time_ms = int(asyncio.get_running_loop().time() * 1000)
            number = 10 * time_ms + peer.index
            peer.data(DEPTH, n=number, u=time_ms)
            sent.setdefault(peer.index, []).append(number)
            await asyncio.sleep(0.005)
        await peer.gone.wait()

    async def check():
        settings = change(redundancy=2, stagger_s=0.0, liveness=LivenessSettings())
        async with managed(transport, script, [DEPTH], settings) as (manager, desk, exchange, _):
            await wait_until(lambda: manager.statistics()["depth_withheld"] > 20)
            first = manager.depth_primary
            index = desk.frames()[-1][3] % 10
            if how == "reset":
                exchange.peers[index].reset()
            else:
                stalled.append(index)
            await wait_until(lambda: manager.depth_primary not in (None, first))
            await wait_until(lambda: desk.frames()[-1][1] == manager.depth_primary)
        switch = next(e for e in desk.events() if e.reason == DEPTH_PRIMARY_SWITCHED)
        assert switch.socket_id != first
        numbers = [frame[3] for frame in desk.frames()]
        assert numbers == sorted(numbers)
        if how == "stall":  # the standby's frames since the primary's last one were kept
            at = next(i for i, number in enumerate(numbers) if number % 10 != index)
            last = numbers[at - 1] // 10
            taken_over = [n for n in sent[1 - index] if last < n // 10 <= numbers[-1] // 10]
            assert numbers[at:] == taken_over
        assert_depth_never_interleaves(desk)

    asyncio.run(check())


def test_many_streams_are_subscribed_by_messages_after_the_url(transport):
    streams = [f"s{number}usdt@aggTrade" for number in range(25)]

    async def script(peer):
        await wait_until(lambda: sum(op == TEXT for op, _ in peer.received) == 2)
        for opcode, payload in list(peer.received):
            if opcode == TEXT:
                message = json.loads(payload)
                peer.frame(TEXT, json.dumps({"result": None, "id": message["id"]}).encode())
                peer.streams += message["params"]
        await steady()(peer)

    async def check():
        settings = change(max_streams_in_url=10, subscribe_interval_s=0.001)
        async with managed(transport, script, streams, settings) as (_, desk, exchange, _):
            assert streams
            await wait_until(lambda: {frame[2] for frame in desk.frames()} == set(streams))
            assert len(exchange.peers) == 1

    asyncio.run(check())


def test_streams_beyond_the_limit_of_a_connection_get_further_sockets(transport):
    streams = [f"s{number}usdt@aggTrade" for number in range(5)]

    async def check():
        settings = change(max_streams_per_connection=2)
        async with managed(transport, steady(), streams, settings) as (manager, desk, exchange, _):
            await wait_until(lambda: {frame[2] for frame in desk.frames()} == set(streams))
            assert sorted(len(peer.streams) for peer in exchange.peers) == [1, 2, 2]
            assert manager.is_healthy(Route.TRADES)

    asyncio.run(check())


def test_garbage_is_passed_on_and_the_feed_goes_on(transport):
    async def script(peer):
        peer.frame(TEXT, b"\xff{{{not json")
        await steady()(peer)

    async def check():
        async with managed(transport, script) as (_, desk, exchange, _):
            await wait_until(desk.frames)
            assert len(exchange.peers) == 1

    asyncio.run(check())


def test_a_sink_that_raises_ends_the_run_with_its_error(transport):
    async def check():
        desk = Desk()
        desk.fail_with = RuntimeError("a bug in the sink")
        async with managed(transport, steady(), desk=desk) as (_, _, _, task):
            async with asyncio.timeout(10):
                with pytest.raises(RuntimeError, match="a bug in the sink"):
                    await asyncio.shield(task)

    with contextlib.suppress(RuntimeError):
        asyncio.run(check())


class CountingClock(SystemClock):
    """Cancels ``victim`` when the ``at``-th sleep is entered."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.sleeps = 0
        self.victim: asyncio.Task[None] | None = None

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        if self.sleeps == self.at and self.victim is not None:
            self.victim.cancel()
        await super().sleep(seconds)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 40, 80])
def test_a_cancellation_at_any_step_leaves_nothing(transport, steps):
    """Cancelled after so many turns of the loop: while connecting, shaking hands, serving."""

    async def check():
        before = asyncio.all_tasks()
        desk = Desk()
        async with LocalExchange(steady()) as exchange:
            manager = RobustConnectionManager(
                change(ws_base=exchange.ws_base, redundancy=2, rotation_after_s=0.01),
                [TRADES, DEPTH],
                desk,
                desk,
                desk,
                transport=transport,
                clock=SystemClock(),
                random=random.Random(1),
            )
            task = asyncio.ensure_future(manager.run())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert manager.sockets(Route.TRADES) == manager.sockets(Route.DEPTH) == []
            await wait_until(lambda: exchange.open_count == 0)
            left = {repr(task) for task in asyncio.all_tasks() - before}
            assert not {text for text in left if "LocalExchange" not in text}

    asyncio.run(check())


@pytest.mark.parametrize("at", range(1, 60, 4))
def test_a_cancellation_at_any_sleep_leaves_nothing(transport, at):
    """Cancelled inside backoff, supervision, stagger and rotation."""

    async def script(peer):
        if peer.index % 3 == 1:
            peer.close(1001)
            await peer.gone.wait()
        await steady()(peer)

    async def check():
        desk = Desk()
        clock = CountingClock(at)
        async with LocalExchange(script) as exchange:
            manager = RobustConnectionManager(
                change(ws_base=exchange.ws_base, redundancy=2, rotation_after_s=0.02),
                [TRADES, DEPTH],
                desk,
                desk,
                desk,
                transport=transport,
                clock=clock,
                random=random.Random(1),
            )
            clock.victim = asyncio.ensure_future(manager.run())
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await clock.victim
            await wait_until(lambda: exchange.open_count == 0)
        assert_order(desk)

    asyncio.run(check())
