"""Rules as data: the shipped ones, a user's own over them, and mistakes named in one line."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from alerts.rules import RuleBook, load_rules
from config import Settings
from domain.errors import ConfigError
from event_bus import EventBus
from inference.model import Model
from market_orchestrator.exchange import open_exchange
from market_orchestrator.market_orchestrator import LiveParts
from tests.alert_samples import T0, engine, health
from tests.model_cards import card_of


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_rules_cover_what_the_bot_can_tell() -> None:
    rules = {rule.name: rule for rule in load_rules().rule}
    assert {
        *("whale_print", "whale_cluster", "cvd_divergence", "delta_extreme", "volume_extreme"),
        *("burst", "absorption", "bid_wall", "ask_wall_pulled", "spread_wide", "volatility_high"),
        *("previous_high_passed", "signal_changed", "signal_confident", "symbol_silent"),
        *("gap_not_repaired", "provider_degraded", "budget_80", "budget_100", "disk_low"),
        *("loop_lag", "relayed"),
    } <= set(rules)
    assert rules["symbol_silent"].inhibits == ("market", "signal")


def test_what_the_shipped_rules_ask_of_the_bots_health_is_in_its_health(
    clean_environment: pytest.MonkeyPatch, data_dir: Path
) -> None:
    clean_environment.setenv("GROQ_API_KEY", "key")

    async def read() -> set[str]:
        async with AsyncExitStack() as stack:
            settings = Settings(data_dir=data_dir)
            exchange = await open_exchange(settings, stack)
            model = Model(card_of(), lambda *_: np.full((1, 3), 1 / 3), ["BTCUSDT"])
            parts = LiveParts(settings, settings.paths, exchange, EventBus(), model=model)
            return set(parts.read())

    known = asyncio.run(read()) | {"loop.worst_lag_ms", "ai.groq.budget_ratio", "part", "value"}
    for rule in load_rules().rule:
        if rule.on == "health":
            fields = {condition.field for condition in rule.when}
            for field in fields | set(re.findall(r"\{([\w.*]+)", rule.message)):
                pattern = re.escape(field).replace(r"\*", r"\w+")
                assert any(re.fullmatch(pattern, key) for key in known), (rule.name, field)


def test_a_feed_that_is_up_by_the_next_health_event_was_never_down() -> None:
    (rule,) = (rule for rule in load_rules().rule if rule.name == "feed_down")
    machine = engine(RuleBook(rule=(rule,)))
    beat_s = round(Settings.model_fields["health_check_interval"].default)
    states = ["subscribed", "healthy", "disconnected", "disconnected", "disconnected"]
    fired = []
    for beat, state in enumerate(states):
        for second in range(beat_s * beat + 1, beat_s * (beat + 1) + 1):
            machine.tick(T0 + second * 1_000)  # the last one is before the next health event
        at_ms = T0 + beat_s * (beat + 1) * 1_000 + 100
        machine.observe(health(connection__trades__state=state), at_ms)
        fired.append(machine.fired_count)
    assert fired == [0, 0, 0, 0, 1]


def test_an_own_file_changes_fields_adds_rules_and_switches_off(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        """
        [delivery]
        group_wait_s = 9
        [channel.webhook]
        per_hour = 1
        [[rule]]
        name = "whale_print"
        keep_s = 1
        [[rule]]
        name = "burst"
        enabled = false
        [[rule]]
        name = "btc_100k"
        about = "BTC passes 100,000"
        on = "features"
        symbols = ["BTCUSDT"]
        message = "{price}"
        when = [{ field = "price", crosses = 100000 }]
        """,
    )
    shipped, book = load_rules(), load_rules(path)
    before, after = ({r.name: r for r in b.rule} for b in (shipped, book))
    assert after["whale_print"].keep_s == 1
    assert after["whale_print"].when == before["whale_print"].when
    assert not after["burst"].enabled
    assert after["btc_100k"].when[0].crosses == 100_000
    assert len(after) == len(before) + 1
    assert book.delivery.group_wait_s == 9
    assert book.delivery.group_interval_s == shipped.delivery.group_interval_s
    assert book.channel_rule("webhook").per_hour == 1
    assert book.channel_rule("webhook").burst == shipped.channel_rule("webhook").burst
    assert book.channel_rule("apprise-2") == shipped.channel["apprise"]


BAD = {
    'when = [{ field = "delta_zz", above = 1 }]': "features has no field 'delta_zz'",
    'when = [{ field = "delta_z", above = 1, of = "nope" }]': "has no field 'nope'",
    'when = [{ field = "delta_z" }]': "one operator per condition, given: none",
    'when = [{ field = "delta_z", above = 1, below = 0 }]': "given: above, below",
    'when = [{ field = "delta_z", above = 1, release = 2 }]': "wrong side",
    'when = [{ field = "delta_z", below = 1, release = 0 }]': "wrong side",
    "when = []": "when has no condition",
    'when = [{ field = "delta_z", above = 1 }]\nfor_s = -1': "for_s is negative",
    'when = [{ field = "delta_z", above = 1 }]\nabsent_s = 3': "absent_s goes with",
    'when = [{ field = "delta_z", abov = 1 }]': "unknown field `abov` - at `rule mine.when",
    'when = [{ field = "delta_z", above = "x" }]': "rule mine.when",
    'when = [{ field = "delta_z", above = 1 }]\nseverity = "bad"': "rule mine.severity",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_one_line_that_names_the_rule(tmp_path: Path, text: str) -> None:
    path = own(
        tmp_path, f'[[rule]]\nname = "mine"\nabout = "x"\non = "features"\nmessage = "x"\n{text}\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_rules(path)
    message = str(caught.value)
    assert message.startswith(f"ALERT_RULES (--alert-rules): {path}: ")
    assert "mine" in message
    assert BAD[text] in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["rule = 5", "[rule", "[[rule]]\nname = 3", "delivery = 1"])
def test_a_file_of_another_shape_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="ALERT_RULES"):
        load_rules(own(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load_rules(tmp_path / "nowhere.toml")
