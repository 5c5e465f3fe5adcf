"""The state machine of alerts: for, keep, hysteresis, groups, repeats, inhibition, silences, restarts."""

from typing import Any

import msgspec
import pytest

from alerts.conditions import Reading
from alerts.engine import MAX_ITEMS, Engine, EngineState
from alerts.notification import text_of, title_of
from alerts.rules import load_rules
from alerts.silences import Silence
from tests.alert_samples import T0, book, engine, health, items, numbered, row_reading

BURST = {"name": "burst", "on": "features", "when": [{"field": "v", "above": 5, "release": 2}]}
# The rules of these tests name a field of no row; only files are checked for that.


def restarted(old: Engine, rules: Any, **given: Any) -> Engine:
    """A new process with what the old one saved."""
    saved = msgspec.json.decode(msgspec.json.encode(old.state), type=EngineState)
    return engine(rules, saved, **given)


def told(machine: Engine, now_ms: int) -> list[tuple[str, str]]:
    return items(machine.tick(now_ms))


def test_an_alert_fires_once_while_it_holds_and_again_after_it_was_over() -> None:
    machine = engine(book(BURST))
    found = []
    for second, value in enumerate([1, 6, 7, 3, 6, 1, 6]):
        at_ms = T0 + second * 1_000
        machine.observe(row_reading(at_ms, v=value), at_ms)
        found += [(second, *item) for item in told(machine, at_ms)]
    assert found == [(1, "burst", "firing"), (6, "burst", "firing")]
    assert [a.alert_id for a in machine.take_published()] == ["id-1", "id-3"]
    assert machine.take_published() == []


def test_for_and_keep_of_market_rules_count_exchange_time() -> None:
    machine = engine(book({**BURST, "for_s": 10, "keep_s": 20, "tell_resolved": True}))
    found = []
    values = [(0, 6), (5, 6), (10, 6), (15, 1), (20, 6), (25, 1), (35, 1), (45, 1)]
    for market_s, value in values:
        wall_ms = T0 + market_s  # a thousandth of the market's pace: a fast replay
        machine.observe(row_reading(T0 + market_s * 1_000, v=value), wall_ms)
        found += [(market_s, *item) for item in told(machine, wall_ms)]
    assert found == [(10, "burst", "firing"), (45, "burst", "resolved")]


def test_between_threshold_and_release_it_still_holds() -> None:
    machine = engine(book({**BURST, "keep_s": 12}))
    for number, value in enumerate([6, 3, 1, 1, 6]):
        machine.observe(row_reading(T0 + number * 5_000, v=value), T0)
    assert machine.fired_count == 1


def test_what_does_not_last_long_enough_never_fires() -> None:
    machine = engine(book({**BURST, "for_s": 10}))
    for second, value in [(0, 6), (5, 6), (9, 3), (10, 6), (15, None), (16, 6), (24, 6)]:
        machine.observe(row_reading(T0 + second * 1_000, v=value), T0 + second * 1_000)
        assert told(machine, T0 + second * 1_000) == []


def test_an_operational_alert_fires_by_the_clock_when_nothing_else_is_said() -> None:
    rule = {
        "name": "down",
        "on": "gap",
        "for_s": 30,
        "when": [{"field": "state", "equals": "open"}],
    }
    machine = engine(book(rule))
    opened = Reading("gap", {"symbol": "BTCUSDT"}, {"state": "open"})
    machine.tick(T0)
    machine.observe(opened, T0)
    assert [told(machine, T0 + s * 1_000) for s in (0, 29, 30)] == [[], [], [("down", "firing")]]
    machine.observe(Reading("gap", {"symbol": "BTCUSDT"}, {"state": "repaired"}), T0 + 31_000)
    assert machine.statistics()["firing"] == 0


def test_groups_wait_then_keep_their_distance_and_hold_what_came_between() -> None:
    two = [{**BURST, "name": n, "when": [{"field": n, "above": 1}]} for n in ("a", "b")]
    rules = book(*two, delivery={"group_wait_s": 2, "group_interval_s": 60})
    machine = engine(rules)
    found = {}
    for second in range(70):
        at_ms = T0 + second * 1_000
        values = {"a": int(second in {0, 5}), "b": int(second == 1)}
        machine.observe(row_reading(at_ms, **values), at_ms)
        if second == 5:
            machine.observe(row_reading(at_ms, "ETHUSDT", a=1, b=0), at_ms)
        notes = machine.tick(at_ms)
        if notes:
            found[second] = [(n.symbol, [i.name for i in n.items]) for n in notes]
    assert found == {
        2: [("BTCUSDT", ["a", "b"])],
        7: [("ETHUSDT", ["a"])],
        62: [("BTCUSDT", ["a"])],
    }


def test_what_is_worse_does_not_wait_for_the_groups_interval() -> None:
    levels = [("a", "warning"), ("b", "error"), ("c", "error")]
    rules = book(
        *(
            {"name": n, "severity": s, "on": "health", "when": [{"field": n, "above": 1}]}
            for n, s in levels
        ),
        delivery={"group_wait_s": 2, "group_interval_s": 60},
    )
    machine = engine(rules)
    found = {}
    for second in range(80):
        values = {"a": 1, "b": int(second >= 10), "c": int(second >= 20)}
        machine.observe(health(**values), T0 + second * 1_000)
        for note in machine.tick(T0 + second * 1_000):
            found[second] = [i.name for i in note.items]
    assert found == {2: ["a"], 12: ["b"], 72: ["c"]}


def test_a_lasting_alert_is_repeated_and_its_end_is_told() -> None:
    rule = {"name": "disk", "on": "health", "repeat_s": 3_600, "tell_resolved": True}
    machine = engine(book({**rule, "when": [{"field": "free", "below": 10}]}))
    found = []
    for minute in range(0, 130, 10):
        at_ms = T0 + minute * 60_000
        machine.observe(health(free=5 if minute < 125 else 50), at_ms)
        found += [(minute, *item) for item in told(machine, at_ms)]
    machine.observe(health(free=50), T0 + 130 * 60_000)
    found += [(130, *item) for item in told(machine, T0 + 130 * 60_000)]
    assert found == [
        (0, "disk", "firing"),
        (60, "disk", "repeated"),
        (120, "disk", "repeated"),
        (130, "disk", "resolved"),
    ]


STALE = {"name": "stale", "on": "features", "absent_s": 10, "group": "feed", "tell_resolved": True}


def test_a_silent_symbol_mutes_its_own_market_rules_and_no_others() -> None:
    signal = {**BURST, "name": "signal", "on": "signal"}
    rules = book(BURST, signal, {**STALE, "inhibits": ["market"]})
    machine = engine(rules, symbols=("BTCUSDT", "ETHUSDT"))
    machine.tick(T0)
    machine.observe(row_reading(T0, v=6), T0)  # fires, but the notification is only due
    found = []
    for second in range(1, 20):
        at_ms = T0 + second * 1_000
        machine.observe(row_reading(at_ms, "ETHUSDT", v=6 if second == 17 else 1), at_ms)
        for symbol in ("BTCUSDT", "ETHUSDT") if second == 18 else ():
            machine.observe(Reading("signal", {"symbol": symbol}, {"v": 6}), at_ms)
        for note in machine.tick(at_ms):
            found += [(second, note.symbol, i.name) for i in note.items]
    assert found == [
        (1, "BTCUSDT", "burst"),
        (15, "BTCUSDT", "stale"),
        (17, "ETHUSDT", "burst"),
        (18, "ETHUSDT", "signal"),
    ]


def test_what_is_inhibited_is_told_when_the_reason_is_over_if_it_still_fires() -> None:
    down = {"name": "down", "on": "health", "when": [{"field": "up", "below": 0}]}
    machine = engine(book(BURST, {**down, "inhibits": ["burst"]}))
    machine.tick(T0)
    machine.observe(health(up=0), T0)  # of no symbol: mutes all
    machine.observe(row_reading(T0, v=6), T0)
    assert told(machine, T0) == [("down", "firing")]
    assert [a.name for a in machine.take_published()] == ["down"]
    machine.observe(health(up=1), T0 + 1_000)
    assert told(machine, T0 + 1_000) == [("burst", "firing")]
    assert [a.name for a in machine.take_published()] == ["burst"]


def silence(name: str, until_ms: int, symbol: str | None = None) -> Silence:
    return Silence(silence_id="s", name=name, symbol=symbol, until_ms=until_ms, created_ms=T0)


def test_a_silence_holds_until_it_expires() -> None:
    machine = engine(book(BURST))
    machine.silences = (silence("bu*", T0 + 60_000, "BTCUSDT"),)
    found = []
    for second in (0, 30, 59, 60):
        at_ms = T0 + second * 1_000
        for symbol in ("BTCUSDT", "ETHUSDT"):
            machine.observe(row_reading(at_ms, symbol, v=6), at_ms)
        found += [(second, n.symbol) for n in machine.tick(at_ms)]
    assert found == [(0, "ETHUSDT"), (60, "BTCUSDT")]


def test_a_silence_made_while_a_notification_waits_holds_it_back() -> None:
    machine = engine(book(BURST, delivery={"group_wait_s": 5, "group_interval_s": 0}))
    machine.observe(row_reading(T0, v=6), T0)
    machine.silences = (silence("*", T0 + 8_000),)
    assert [told(machine, T0 + s * 1_000) for s in (5, 7)] == [[], []]
    assert told(machine, T0 + 8_000) == []  # the group gathers anew
    assert told(machine, T0 + 13_000) == [("burst", "firing")]
    assert len(machine.take_published()) == 1


def test_after_a_restart_nothing_fires_twice_and_nothing_is_forgotten() -> None:
    rules = book(
        {**BURST, "for_s": 10, "keep_s": 600}, delivery={"group_wait_s": 5, "group_interval_s": 60}
    )
    new_id = numbered()
    machine = engine(rules, new_id=new_id)
    machine.tick(T0)
    machine.observe(row_reading(T0, v=6), T0)
    machine = restarted(machine, rules, new_id=new_id)  # pending
    machine.tick(T0 + 9_000)
    machine.observe(row_reading(T0 + 10_000, v=6), T0 + 10_000)
    assert [a.name for a in machine.take_published()] == ["burst"]
    machine = restarted(machine, rules, new_id=new_id)  # fired, not told yet
    assert told(machine, T0 + 15_000) == [("burst", "firing")]
    machine = restarted(machine, rules, new_id=new_id)  # told
    machine.observe(row_reading(T0 + 20_000, v=6), T0 + 20_000)
    assert told(machine, T0 + 3_600_000) == []
    assert machine.take_published() == []


def test_an_alert_nobody_reports_on_ends_but_not_because_the_bot_was_off() -> None:
    rule = {"name": "disk", "on": "health", "when": [{"field": "free", "below": 10}]}
    rules = book(rule, delivery={"group_wait_s": 0, "forget_s": 600})
    machine = engine(rules)
    machine.tick(T0)
    machine.observe(health(free=5), T0)
    machine.tick(T0)
    later = T0 + 86_400_000
    machine = restarted(machine, rules)
    machine.tick(later)
    machine.observe(health(free=5), later + 30_000)
    assert told(machine, later + 30_000) == []  # still the same alert
    for second in range(30, 700, 10):
        machine.tick(later + second * 1_000)
    assert machine.statistics()["firing"] == 0


def test_a_rule_that_is_gone_takes_its_alerts_along() -> None:
    machine = engine(book(BURST))
    machine.observe(row_reading(T0, v=6), T0)
    other = book({**BURST, "name": "other"})
    assert restarted(machine, other).statistics()["firing"] == 0


def test_a_clock_set_back_freezes_nothing() -> None:
    rules = book(BURST, delivery={"group_wait_s": 5, "group_interval_s": 60})
    machine = engine(rules)
    machine.tick(T0)
    machine.observe(row_reading(T0, v=6), T0)
    machine.tick(T0 + 1_000)
    back = T0 - 3_600_000
    assert told(machine, back) == []
    assert told(machine, back + 4_000) == [("burst", "firing")]


def test_a_machine_that_slept_does_not_take_its_own_silence_for_the_feeds() -> None:
    machine = engine(book(STALE), symbols=("BTCUSDT",))
    machine.tick(T0)
    machine.observe(row_reading(T0), T0)
    assert told(machine, T0 + 3_600_000) == []
    found = [told(machine, T0 + 3_600_000 + s * 1_000) for s in range(1, 16)]
    assert found == [[]] * 14 + [[("stale", "firing")]]


def test_incomplete_windows_without_a_trade_are_silence() -> None:
    """A dead route's windows are emitted all the same."""
    machine = engine(book(STALE), symbols=("BTCUSDT", "ETHUSDT"))
    machine.tick(T0)
    found = []
    for second in range(16):
        at_ms = T0 + second * 1_000
        machine.observe(row_reading(at_ms, complete=False, trade_count=0), at_ms)
        machine.observe(row_reading(at_ms, "ETHUSDT", complete=False, trade_count=3), at_ms)
        found += [(second, n.symbol) for n in machine.tick(at_ms)]
    assert found == [(15, "BTCUSDT")]


def test_a_symbol_that_never_came_is_noticed_and_its_coming_ends_it() -> None:
    machine = engine(book(STALE), symbols=("BTCUSDT",))
    found = []
    for second in range(20):
        found += [(second, *i) for i in told(machine, T0 + second * 1_000)]
    machine.observe(row_reading(T0 + 20_000), T0 + 20_000)
    found += [(20, *i) for i in told(machine, T0 + 20_000)]
    assert found == [(15, "stale", "firing"), (20, "stale", "resolved")]


def test_alerts_of_other_parts_go_out_under_their_own_name_and_not_on_the_bus_again() -> None:
    machine = engine(load_rules())
    machine.tick(T0)
    for _ in range(2):
        values = {"name": "ai.key_refused", "severity": "error", "message": "groq refuses"}
        labels = {"name": "ai.key_refused", "about": "groq refuses"}
        machine.observe(Reading("alert", labels, values), T0)
    notes = machine.tick(T0 + 2_000)
    assert items(notes) == [("ai.key_refused", "firing")]
    assert notes[0].severity == "error"
    assert notes[0].items[0].message == "groq refuses"
    assert machine.take_published() == []


def test_only_events_a_rule_is_about_end_its_alerts() -> None:
    rule = {
        "name": "sure",
        "on": "signal",
        "where": [{"field": "source", "not_in": ["rules"]}],
        "when": [{"field": "confidence", "above": 0.75}],
    }
    machine = engine(book(rule))
    for source, confidence in (("groq", 0.9), ("rules", 0.1), ("groq", 0.8)):
        values: dict[str, Any] = {"source": source, "confidence": confidence}
        machine.observe(Reading("signal", {"symbol": "BTCUSDT"}, values, T0), T0)
        machine.tick(T0)
    assert machine.fired_count == 1


def test_a_long_list_is_cut_and_counted() -> None:
    machine = engine(book({**BURST, "on": "gap", "group": "feed"}))
    for number in range(MAX_ITEMS + 7):
        labels = {"symbol": "BTCUSDT", "first_id": str(number)}
        machine.observe(Reading("gap", labels, {"v": 9}), T0)
    (note,) = machine.tick(T0)
    assert (len(note.items), note.omitted_count) == (MAX_ITEMS, 7)
    assert text_of(note).endswith("and 7 more")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{symbol}: {value:,.1f} of {nothing}", "BTCUSDT: 1,234.5 of –"),
        ("{loop.worst_lag_ms:.0f} ms {value:d}", "7 ms 1234.5"),
        ("{symbol.__class__} {0} {", "– – {"),
    ],
)
def test_messages_show_fields_and_nothing_else(message: str, expected: str) -> None:
    machine = engine(book({**BURST, "message": message}))
    reading = row_reading(T0, v=1_234.5)
    more = {**reading.values, "loop.worst_lag_ms": 7.2}
    machine.observe(msgspec.structs.replace(reading, values=more), T0)
    (note,) = machine.tick(T0)
    assert note.items[0].message == expected
    assert title_of(note) == "[INFO] BTCUSDT: burst"


def test_a_large_sweep_is_one_alert_not_four() -> None:
    machine = engine(load_rules())
    machine.tick(T0)
    values = {
        "max_sweep_notional": 6e6,
        "whale_threshold_quantile_notional": 5e5,
        "price": 64_000.0,
        "delta_z": 9.0,
        "volume_z": 20.0,
        "burst_count": 1,
        "trade_count_z": 9.0,
        "delta": 3.0,
    }
    machine.observe(row_reading(T0, **values), T0)
    (note,) = machine.tick(T0 + 2_000)
    assert [i.name for i in note.items] == ["whale_print"]
    assert "one sweep of 6,000,000 at 64,000" in note.items[0].message


def test_drifted_inputs_of_a_model_are_told_once_until_they_are_calm_again() -> None:
    machine = engine(load_rules())
    found = []
    readings = enumerate((None, 0.1, 0.4, 0.22, 0.3, 0.1))
    for number, psi in readings:
        now = T0 + number * 3_600_000
        worst = {"model__psi_max": psi, "model__psi_worst": "ofi_1 0.40", "model__name": "first"}
        machine.observe(health(**worst), now)
        found += [(number, *i) for i in items([*machine.tick(now), *machine.tick(now + 600_000)])]
    assert found == [(2, "model_drift", "firing"), (5, "model_drift", "resolved")]
