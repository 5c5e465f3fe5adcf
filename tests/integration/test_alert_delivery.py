"""From the bus to a webhook that fails, stalls and recovers: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from alerts.channels import Channel, FileChannel, WebhookChannel
from alerts.rules import RuleBook
from alerts.service import QUEUE_EVENTS, AlertService, AlertSettings, read_state
from alerts.silences import add_silence
from domain.events import Alert, FeaturesEvent, HealthEvent, Topic
from domain.flow import Origin
from event_bus import EventBus, Fail
from tests.alert_receiver import SECRET, Receiver
from tests.alert_samples import book, feature_row
from tests.monitoring_scene import until

RULES = book(
    {"name": "bad", "on": "health", "message": "{part}", "when": [{"field": "*.bad", "above": 1}]},
    {"name": "parts", "on": "alert", "message": "{message}", "keep_s": 600},
    channel={"webhook": {"per_hour": 0}, "file": {"per_hour": 0}},
)


def unhealthy(*parts: int) -> HealthEvent:
    return HealthEvent(at_ns=1, values={f"p{part}.bad": 1 for part in parts})


def part_alert(text: str) -> Alert:
    return Alert(name="part", severity="warning", symbol=None, message=text, at_ns=1)


def service(
    bus: EventBus, folder: Path, receiver: Receiver, rules: RuleBook = RULES
) -> AlertService:
    settings = AlertSettings(folder=folder, symbols=(), window_s=5, tick_s=0.02, retry_s=0.02)
    channels: list[Channel] = [
        WebhookChannel(receiver.url, SECRET, timeout_s=1.0),
        FileChannel(folder),
    ]
    return AlertService(bus, rules, settings, channels)


@contextlib.asynccontextmanager
async def running(
    folder: Path, receiver: Receiver, rules: RuleBook = RULES
) -> AsyncIterator[tuple[EventBus, AlertService, asyncio.Task[None]]]:
    """A service beside a bus, ended as a run ends: the bus closes, the service finishes."""
    bus = EventBus()
    alerts = service(bus, folder, receiver, rules)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(alerts.run())
        yield bus, alerts, task
        bus.close()


def in_file(folder: Path) -> list[str]:
    lines = [line for p in folder.glob("alerts-*.jsonl") for line in p.read_text().splitlines()]
    return [item["message"] for line in lines for item in json.loads(line)["items"]]


def test_a_webhook_that_fails_stalls_and_recovers_gets_everything_once(tmp_path: Path) -> None:
    async def work() -> None:
        script = (500, "stall", "took_it_and_died", "reset", 429, 401, 204, "took_it_and_died", 503)
        async with Receiver(*script) as receiver, running(tmp_path, receiver) as (bus, alerts, _):
            with bus.subscribe([Topic.ALERT], policy=Fail(), name="test") as seen:
                for number in range(12):
                    bus.publish(Topic.HEALTH, unhealthy(*range(number + 1)))
                    await asyncio.sleep(0.03)
                await receiver.until(12)
                published = [e.payload for e in seen.drain_nowait() if isinstance(e.payload, Alert)]
            assert sorted(receiver.alerts()) == sorted(f"p{n}" for n in range(12))
            assert len(receiver.posts) > len(set(receiver.posts))  # it was sent some things again
            assert receiver.bad_signatures == 0
            assert not receiver.script
            assert sorted(a.message for a in published) == sorted(f"p{n}" for n in range(12))
        statistics = alerts.statistics()
        assert statistics["outbox.webhook.waiting"] == 0
        assert statistics["failed_sends"] == 8
        assert sorted(in_file(tmp_path)) == sorted(f"p{n}" for n in range(12))

    asyncio.run(work())


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 20))]
)
def test_killed_at_any_moment_nothing_is_lost_and_nothing_comes_twice(
    tmp_path: Path, seed: int
) -> None:
    """A level that still holds after a restart must have been told once over all runs."""
    choose = random.Random(seed)

    async def work() -> None:
        faults = (500, "took_it_and_died", "stall", "reset")
        async with Receiver() as receiver:
            for life in range(8):
                receiver.script.extend(choose.choices(faults, k=2))
                bus = EventBus()
                alerts = service(bus, tmp_path, receiver)
                task = asyncio.create_task(alerts.run())
                for _ in range(3):
                    bus.publish(Topic.HEALTH, unhealthy(*range(2 * life + 2)))
                    await asyncio.sleep(choose.random() * 0.08)
                task.cancel()  # nothing is written or sent on the way out
                await asyncio.wait({task})
            receiver.script.clear()
            async with running(tmp_path, receiver) as (bus, _, _):
                bus.publish(Topic.HEALTH, unhealthy(*range(16)))
                await receiver.until(16)
            expected = sorted(f"p{n}" for n in range(16))
            assert sorted(receiver.alerts()) == expected
            assert sorted(in_file(tmp_path)) == expected

    asyncio.run(work())


def test_what_fires_last_is_delivered_before_the_run_ends(tmp_path: Path) -> None:
    async def work() -> None:
        async with Receiver() as receiver:
            async with running(tmp_path, receiver) as (bus, _, _):
                bus.publish(Topic.ALERT, part_alert("the disk is full"))
            assert receiver.alerts() == ["the disk is full"]

    asyncio.run(work())


def test_a_receiver_that_is_gone_does_not_keep_the_run_and_the_next_run_delivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alerts.service.CLOSE_TIMEOUT_S", 1.0)

    async def work() -> None:
        async with Receiver(*[503] * 500) as receiver:
            with structlog.testing.capture_logs() as lines:
                async with running(tmp_path, receiver) as (bus, _, _):
                    bus.publish(Topic.ALERT, part_alert("a"))
                receiver.script.clear()
            state = read_state(tmp_path)
            assert state is not None
            assert [entry.channel for entry in state.outbox] == ["webhook"]
            assert {line["event"] for line in lines} >= {"alerts.not_delivered_yet"}
            assert "a-token-in-the-path" not in str(lines)
            async with running(tmp_path, receiver) as (bus, _, _):
                bus.publish(Topic.ALERT, part_alert("a"))  # still the same
                bus.publish(Topic.ALERT, part_alert("b"))
                await receiver.until(2)
            assert receiver.alerts() == ["a", "b"]

    asyncio.run(work())


def test_what_the_receiver_refuses_for_good_does_not_block_the_rest(tmp_path: Path) -> None:
    async def work() -> None:
        async with Receiver(400) as receiver, running(tmp_path, receiver) as (bus, alerts, _):
            bus.publish(Topic.ALERT, part_alert("refused"))
            await until(lambda: alerts.statistics().get("outbox.webhook.lost") == 1)
            bus.publish(Topic.ALERT, part_alert("taken"))
            await receiver.until(1)
            assert receiver.alerts() == ["taken"]
            assert alerts.statistics()["outbox.webhook.lost"] == 1

    asyncio.run(work())


def test_a_running_bot_heeds_a_silence(tmp_path: Path) -> None:
    async def work() -> None:
        async with Receiver() as receiver, running(tmp_path, receiver) as (bus, alerts, _):
            bus.publish(Topic.ALERT, part_alert("before"))
            await receiver.until(1)
            add_silence(tmp_path, name="b*", symbol=None, until_ms=1 << 50, now_ms=0, comment="")
            await until(lambda: alerts._loaded().silences)
            bus.publish(Topic.HEALTH, unhealthy(1))
            bus.publish(Topic.ALERT, part_alert("after"))
            await receiver.until(2)
            assert receiver.alerts() == ["before", "after"]
            assert alerts.statistics()["muted"] == 1

    asyncio.run(work())


def test_without_an_event_the_folder_is_not_touched(tmp_path: Path) -> None:
    """Another process may own it: this run may be about to end with exit code 2."""

    async def work() -> None:
        async with Receiver() as receiver, running(tmp_path / "alerts", receiver):
            await asyncio.sleep(0.05)

    asyncio.run(work())
    assert not (tmp_path / "alerts").exists()


def test_a_damaged_state_is_set_aside_and_alerts_go_on(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 1, "engine"')

    async def work() -> None:
        async with Receiver() as receiver, running(tmp_path, receiver) as (bus, _, _):
            bus.publish(Topic.ALERT, part_alert("a"))
            await receiver.until(1)

    asyncio.run(work())
    assert (tmp_path / "state.damaged").exists()
    assert read_state(tmp_path) is not None


def test_a_folder_that_takes_nothing_still_lets_the_webhook_have_it(tmp_path: Path) -> None:
    blocked = tmp_path / "alerts"
    blocked.write_text("a file where the folder should be")

    async def work() -> None:
        settings = AlertSettings(folder=blocked, symbols=(), window_s=5, tick_s=0.02)
        async with Receiver() as receiver:
            bus = EventBus()
            webhook = WebhookChannel(receiver.url, SECRET)
            alerts = AlertService(bus, RULES, settings, [webhook])
            async with asyncio.TaskGroup() as group:
                group.create_task(alerts.run())
                bus.publish(Topic.ALERT, part_alert("a"))
                await receiver.until(1)
                bus.close()
            assert receiver.alerts() == ["a"]
            assert int(alerts.statistics()["failed_saves"] or 0) > 0

    asyncio.run(work())


def test_events_that_came_too_fast_are_told_of(tmp_path: Path) -> None:
    async def work() -> None:
        async with Receiver() as receiver, running(tmp_path, receiver) as (bus, _, _):
            event = FeaturesEvent(feature_row(), Origin.RECOVERED)
            for _ in range(QUEUE_EVENTS + 1):
                bus.publish(Topic.FEATURES, event)
            await receiver.until(1)
            assert "may be missing" in receiver.alerts()[0]
            bus.publish(Topic.HEALTH, unhealthy(1))
            await receiver.until(2)

    asyncio.run(work())
