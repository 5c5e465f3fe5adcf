"""Whatever comes in whatever order, with restarts anywhere: nothing twice, nothing forgotten."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alerts.conditions import Reading
from alerts.engine import EngineState
from alerts.notification import AlertState
from alerts.silences import Silence
from tests.alert_samples import T0, book, engine, health, numbered, row_reading

V = [{"field": "v", "above": 5, "release": 2}]
RULES = book(
    {"name": "flow", "on": "features", "when": V, "for_s": 10, "keep_s": 15},
    {"name": "spike", "on": "features", "when": V, "group": "spikes"},
    {"name": "busy", "on": "health", "when": V, "for_s": 5, "repeat_s": 120, "tell_resolved": True},
    {"name": "down", "on": "health", "when": [{"field": "up", "below": 0}], "inhibits": ["market"]},
    {"name": "parts", "on": "alert", "keep_s": 60},
    delivery={"group_wait_s": 2, "group_interval_s": 20, "forget_s": 1e9},
)
SYMBOLS = st.sampled_from(["BTCUSDT", "ETHUSDT"])
VALUES = st.sampled_from([0, 3, 6, None])


@given(
    values=st.lists(st.sampled_from([0.0, 3.0, 6.0]), max_size=40),
    for_s=st.sampled_from([0, 5, 12]),
    keep_s=st.sampled_from([0, 5, 12]),
    restarts=st.sets(st.integers(0, 40)),
)
def test_firing_equals_its_definition_restarts_or_not(
    values: list[float], for_s: int, keep_s: int, restarts: set[int]
) -> None:
    """Against a plain reading of the definitions, five seconds of market time apart."""
    rules = book({"name": "flow", "on": "features", "when": V, "for_s": for_s, "keep_s": keep_s})
    machine = engine(rules)
    expected, found = [], []
    since: int | None = None
    held, is_firing = 0, False
    for number, value in enumerate(values):
        at_s = 5 * number
        if value == 6:
            since = at_s if since is None else since
            held = at_s
            if not is_firing and at_s - since >= for_s:
                is_firing = True
                expected.append(number)
        elif is_firing and value == 3:
            held = at_s
        elif not is_firing or at_s - held >= keep_s:
            since, is_firing = None, False
        if number in restarts:
            saved = msgspec.json.decode(msgspec.json.encode(machine.state), type=EngineState)
            machine = engine(rules, saved)
        machine.observe(row_reading(T0 + at_s * 1_000, v=value), T0 + at_s * 1_000)
        found += [number for _ in machine.take_published()]
        machine.tick(T0 + at_s * 1_000)
    assert found == expected


class Alerting(RuleBasedStateMachine):
    """Any readings, silences, clock steps and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.new_id = numbered()
        self.engine = engine(RULES, new_id=self.new_id)
        self.now_ms = T0
        self.engine.tick(T0)
        self.published: list[str] = []
        self.told: list[tuple[str, AlertState]] = []

    @rule(symbol=SYMBOLS, value=VALUES)
    def window(self, symbol: str, value: float | None) -> None:
        self.engine.observe(row_reading(self.now_ms, symbol, v=value), self.now_ms)

    @rule(value=VALUES, up=st.sampled_from([0, 1]))
    def health(self, value: float | None, up: int) -> None:
        self.engine.observe(health(v=value, up=up), self.now_ms)

    @rule(name=st.sampled_from(["a", "b"]))
    def part(self, name: str) -> None:
        values = {"name": name, "severity": "error", "message": name}
        self.engine.observe(Reading("alert", {"name": name}, values), self.now_ms)

    @rule(seconds=st.sampled_from([1, 3, 25, 400, -1, -5_000]))
    def time_passes(self, seconds: int) -> None:
        self.now_ms += seconds * 1_000
        self.tick()

    @rule(name=st.sampled_from(["flow", "*"]), symbol=st.none() | SYMBOLS, length_s=st.just(30))
    def silence(self, name: str, symbol: str | None, length_s: int) -> None:
        until_ms = self.now_ms + length_s * 1_000
        self.engine.silences = (
            Silence(silence_id="s", name=name, symbol=symbol, until_ms=until_ms, created_ms=T0),
        )

    @rule()
    def restart(self) -> None:
        self.collect()  # published once saved
        saved = msgspec.json.decode(msgspec.json.encode(self.engine.state), type=EngineState)
        silences = self.engine.silences
        self.engine = engine(RULES, saved, new_id=self.new_id)
        self.engine.silences = silences
        self.tick()

    def tick(self) -> None:
        for note in self.engine.tick(self.now_ms):
            for item in note.items:
                symbol = item.labels.get("symbol")
                assert not any(
                    s.covers(item.name, symbol, self.now_ms) for s in self.engine.silences
                )
                self.told.append((item.alert_id, item.state))
        self.collect()

    def collect(self) -> None:
        self.published += [alert.alert_id for alert in self.engine.take_published()]

    @invariant()
    def nothing_is_told_twice(self) -> None:
        assert len(set(self.published)) == len(self.published)
        firing = [i for i, state in self.told if state is AlertState.FIRING]
        assert len(set(firing)) == len(firing)

    @invariant()
    def an_end_is_told_only_of_what_was_told(self) -> None:
        begun = set()
        for alert_id, state in self.told:
            if state is AlertState.FIRING:
                begun.add(alert_id)
            elif state is AlertState.REPEATED:
                assert alert_id in begun

    def teardown(self) -> None:
        """Silences end and nothing is down: what still fires was told, and all that was published."""
        self.engine.silences = ()
        self.engine.observe(health(v=None, up=1), self.now_ms)
        for _ in range(60):
            self.now_ms += 1_000
            self.tick()
        told = {alert_id for alert_id, state in self.told if state is AlertState.FIRING}
        firing = [i for i in self.engine.state.instances.values() if i.fired_ms is not None]
        assert {i.alert_id for i in firing} <= told
        assert all(i.is_announced for i in firing)
        assert not self.engine.state.groups or all(
            not group.items for group in self.engine.state.groups.values()
        )
        self.nothing_is_told_twice()


TestAlerting = Alerting.TestCase
