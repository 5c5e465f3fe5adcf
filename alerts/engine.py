"""The state machine of alerts: pending, firing, told, over; Alertmanager's terms without its server.

Readings and a clock in, ``Alert``s for the bus and ``Notification``s for the router out; no I/O, and
all state is one plain value. Two clocks: how long the market did something (``for_s``, ``keep_s`` of
rules about features and signals) is counted in exchange time, so that a late or replayed feed alerts
alike; everything about ourselves, and when people are told, in wall time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from alerts.conditions import Memory, Reading, Value, Verdict, judge_all
from alerts.notification import AlertItem, AlertState, Notification, NotificationKind, rank
from alerts.readings import spread_out
from alerts.rules import MOMENTARY, Rule, RuleBook
from alerts.silences import Silence
from domain.events import Alert

MAX_ITEMS: Final = 50  # listed in one notification; the others are counted
MAX_INSTANCES: Final = 5_000
ASLEEP_MS: Final = 30_000
"""Ticks come every second; after so long without one the machine slept, and silence proves nothing."""
_PLACE = re.compile(r"\{([\w.*]+)(?::([^{}]*))?\}")


class Instance(msgspec.Struct, kw_only=True):
    """One rule about one set of labels, from when it first holds to its end."""

    rule: str
    labels: dict[str, str]
    name: str
    severity: str
    message: str
    since_ms: int  # the rule's clock
    held_ms: int  # the rule's clock: when it last held
    judged_ms: int  # wall clock, as all below
    fired_ms: int | None = None
    told_ms: int = 0  # when it was last put into a notification
    alert_id: str = ""
    is_announced: bool = False
    is_published: bool = False

    @property
    def symbol(self) -> str | None:
        """The symbol it is about, if any."""
        return self.labels.get("symbol")


class Group(msgspec.Struct, kw_only=True):
    """What one group and symbol will be told of next."""

    group: str
    symbol: str | None
    items: list[AlertItem] = []
    omitted_count: int = 0
    due_ms: int | None = None
    sent_ms: int | None = None
    sent_rank: int = 0  # of the worst it was told of last


class EngineState(msgspec.Struct, kw_only=True):
    """All the engine knows; as JSON it survives a restart."""

    now_ms: int = 0
    instances: dict[str, Instance] = {}
    groups: dict[str, Group] = {}
    memory: Memory = {}


class Engine:
    """Judges readings and says what is to be told.

    Args:
        book: the rules.
        symbols: whose silence is noticed.
        window_s: length of a window; a symbol is silent ``absent_s`` beyond it.
        new_id: gives unique ids, of alerts and of notifications.
        state: what an earlier run left.
    """

    def __init__(
        self,
        book: RuleBook,
        *,
        symbols: Iterable[str],
        window_s: float,
        new_id: Callable[[], str],
        state: EngineState | None = None,
    ) -> None:
        rules = [rule for rule in book.rule if rule.enabled]
        self._rules = {rule.name: rule for rule in rules}
        self._delivery = book.delivery
        self._absence = [rule for rule in rules if rule.absent_s]
        self._by_kind: dict[str, list[Rule]] = {}
        for rule in rules:
            if not rule.absent_s:
                self._by_kind.setdefault(rule.on, []).append(rule)
        self._symbols = tuple(symbols)
        self._window_s = window_s
        self._new_id = new_id
        self.state = _still_known(state or EngineState(), self._rules)
        self._seen_ms: dict[str, int] = {}
        self._awake_ms: int | None = None
        self._published: list[Alert] = []
        self.silences: Sequence[Silence] = ()
        self.fired_count = self.muted_count = self.refused_count = 0
        self.has_changed = False  # since whoever saves it looked last

    # --- readings ---

    def observe(self, reading: Reading, now_ms: int) -> None:
        """Judge one reading by every rule about its kind."""
        symbol = reading.labels.get("symbol", "")
        if reading.kind == "features" and _was_heard(reading):
            self._seen_ms[symbol] = now_ms
            for rule in self._absence:
                self._apply(rule, reading, Verdict.OVER, now_ms)
        for rule in self._by_kind.get(reading.kind, ()):
            if rule.symbols and symbol not in rule.symbols:
                continue
            for own in spread_out(reading, rule.when[0].field if rule.when else ""):
                key = f"{rule.name}|{own.labels_key}"
                memory = self.state.memory
                if rule.where and judge_all(rule.where, own.values, memory, f"{key}|where"):
                    continue
                self._apply(rule, own, judge_all(rule.when, own.values, memory, key), now_ms)

    def _apply(self, rule: Rule, reading: Reading, verdict: Verdict, now_ms: int) -> None:
        key = f"{rule.name}|{reading.labels_key}"
        instance = self.state.instances.get(key)
        at_ms = now_ms
        if reading.at_ms is not None and rule.has_market_clock:
            at_ms = reading.at_ms
        if verdict is Verdict.HOLDS:
            instance = instance or self._begin(key, rule, reading, at_ms)
            if instance is not None:
                self._hold(instance, rule, reading, at_ms, now_ms)
        elif instance is not None:
            self._loosen(key, instance, rule, verdict, at_ms, now_ms)

    def _loosen(
        self,
        key: str,
        instance: Instance,
        rule: Rule,
        verdict: Verdict,
        at_ms: int,
        now_ms: int,
    ) -> None:
        """It does not hold: what is pending is dropped, what fires is kept for a while."""
        if instance.fired_ms is None:
            del self.state.instances[key]
            self.has_changed = True
        elif verdict is Verdict.BETWEEN:
            instance.held_ms, instance.judged_ms = at_ms, now_ms
        elif verdict is Verdict.OVER:
            instance.judged_ms = now_ms
            if at_ms - instance.held_ms >= rule.keep_s * 1_000:
                self._end(key, instance, rule, now_ms)

    def _begin(self, key: str, rule: Rule, reading: Reading, at_ms: int) -> Instance | None:
        if len(self.state.instances) >= MAX_INSTANCES:
            self.refused_count += 1
            return None
        is_foreign = rule.on == "alert"
        instance = Instance(
            rule=rule.name,
            labels=reading.labels,
            name=str(reading.values["name"]) if is_foreign else rule.name,
            severity=str(reading.values["severity"]) if is_foreign else rule.severity,
            message="",
            since_ms=at_ms,
            held_ms=at_ms,
            judged_ms=0,
            is_published=is_foreign,
        )
        self.state.instances[key] = instance
        self.has_changed = True
        return instance

    def _hold(
        self, instance: Instance, rule: Rule, reading: Reading, at_ms: int, now_ms: int
    ) -> None:
        instance.since_ms = min(instance.since_ms, at_ms)
        instance.held_ms, instance.judged_ms = at_ms, now_ms
        instance.message = fill(rule, reading)
        if instance.fired_ms is None and at_ms - instance.since_ms >= rule.for_s * 1_000:
            self._fire(instance, now_ms)

    def _fire(self, instance: Instance, now_ms: int) -> None:
        instance.fired_ms = now_ms
        instance.alert_id = self._new_id()
        self.fired_count += 1
        self.has_changed = True
        if self._is_muted(instance, now_ms):
            self.muted_count += 1
        else:
            self._announce(instance, now_ms)

    def _end(self, key: str, instance: Instance, rule: Rule, now_ms: int) -> None:
        del self.state.instances[key]
        self.has_changed = True
        if rule.tell_resolved and instance.is_announced and not self._is_muted(instance, now_ms):
            self._tell(instance, AlertState.RESOLVED, now_ms)

    # --- telling ---

    def _announce(self, instance: Instance, now_ms: int) -> None:
        instance.is_announced = True
        self._tell(instance, AlertState.FIRING, now_ms)
        if not instance.is_published:
            instance.is_published = True
            self._published.append(
                Alert(
                    name=instance.name,
                    severity=instance.severity,
                    symbol=instance.symbol,
                    message=instance.message,
                    at_ns=now_ms * 1_000_000,
                    alert_id=instance.alert_id,
                )
            )

    def _tell(self, instance: Instance, state: AlertState, now_ms: int) -> None:
        named = self._rules[instance.rule].group
        key = f"{named}|{instance.symbol or ''}"
        group = self.state.groups.get(key)
        if group is None:
            group = Group(group=named, symbol=instance.symbol)
            self.state.groups[key] = group
        instance.told_ms = now_ms
        self.has_changed = True
        if len(group.items) >= MAX_ITEMS:
            group.omitted_count += 1
        else:
            group.items.append(_item(instance, state, now_ms))
        due_ms = now_ms + int(self._delivery.group_wait_s * 1_000)
        # Worse than what the group was told last does not wait for the interval.
        if group.sent_ms is not None and rank(instance.severity) <= group.sent_rank:
            due_ms = max(due_ms, group.sent_ms + int(self._delivery.group_interval_s * 1_000))
        group.due_ms = due_ms if group.due_ms is None else min(group.due_ms, due_ms)

    def _is_muted(self, instance: Instance | AlertItem, now_ms: int) -> bool:
        """Silenced, or inhibited by what fires about the same symbol or about everything."""
        symbol = instance.labels.get("symbol")
        if any(silence.covers(instance.name, symbol, now_ms) for silence in self.silences):
            return True
        rule = self._rules.get(instance.rule if isinstance(instance, Instance) else instance.name)
        if rule is None:
            return False
        for other in self.state.instances.values():
            inhibits = self._rules[other.rule].inhibits
            if inhibits and other.fired_ms is not None and other.rule != rule.name:
                concerns = rule.name in inhibits or rule.group in inhibits
                if concerns and other.symbol in {None, symbol}:
                    return True
        return False

    # --- time ---

    def tick(self, now_ms: int) -> list[Notification]:
        """Let time pass: about once a second.

        Returns:
            What is to be sent now.
        """
        self._follow_clock(now_ms)
        self._look_for_silence(now_ms)
        for key, instance in list(self.state.instances.items()):
            self._age(key, instance, self._rules[instance.rule], now_ms)
        found = []
        for key, group in list(self.state.groups.items()):
            if group.due_ms is not None and now_ms >= group.due_ms:
                found += self._flush(group, now_ms)
            is_quiet = group.due_ms is None and group.sent_ms is not None
            if is_quiet and now_ms - (group.sent_ms or 0) > self._delivery.group_interval_s * 1_000:
                del self.state.groups[key]
                self.has_changed = True
        return found

    def take_published(self) -> list[Alert]:
        """Alerts for the bus, each exactly once."""
        taken, self._published = self._published, []
        return taken

    def _age(self, key: str, instance: Instance, rule: Rule, now_ms: int) -> None:
        awake_ms = now_ms if self._awake_ms is None else self._awake_ms
        is_forgotten = now_ms - max(instance.judged_ms, awake_ms) >= self._delivery.forget_s * 1_000
        if instance.fired_ms is None:
            holds_still = instance.judged_ms >= awake_ms and not rule.has_market_clock
            if is_forgotten:
                del self.state.instances[key]
            elif holds_still and now_ms - instance.since_ms >= rule.for_s * 1_000:
                self._fire(instance, now_ms)  # nothing else was said, so it lasts
            return
        is_past = rule.on in MOMENTARY and now_ms - instance.judged_ms >= rule.keep_s * 1_000
        if is_past or is_forgotten:
            del self.state.instances[key]
            self.has_changed = True
        elif not instance.is_announced:
            if not self._is_muted(instance, now_ms):
                self._announce(instance, now_ms)
        elif rule.repeat_s and now_ms - instance.told_ms >= rule.repeat_s * 1_000:
            self._repeat(instance, now_ms)

    def _repeat(self, instance: Instance, now_ms: int) -> None:
        if not self._is_muted(instance, now_ms):
            self._tell(instance, AlertState.REPEATED, now_ms)

    def _flush(self, group: Group, now_ms: int) -> list[Notification]:
        """Send what waits; what was muted meanwhile is told when it is no longer."""
        items, omitted = group.items, group.omitted_count
        group.items, group.omitted_count, group.due_ms = [], 0, None
        self.has_changed = True
        told = []
        for item in items:
            if self._is_muted(item, now_ms):
                self.muted_count += 1
                for instance in self.state.instances.values():
                    if instance.alert_id == item.alert_id:
                        instance.is_announced = False
            else:
                told.append(item)
        if not told:
            if group.sent_ms is None:  # nothing to keep a distance from
                group.sent_ms = now_ms - int(self._delivery.group_interval_s * 1_000)
            return []
        notification = Notification(
            key=self._new_id(),
            kind=NotificationKind.ALERTS,
            group=group.group,
            symbol=group.symbol,
            items=tuple(told),
            created_ms=now_ms,
            omitted_count=omitted,
        )
        group.sent_ms, group.sent_rank = now_ms, rank(notification.severity)
        return [notification]

    def _look_for_silence(self, now_ms: int) -> None:
        if not self._absence or self._awake_ms is None:
            return
        for symbol in dict.fromkeys((*self._symbols, *self._seen_ms)):
            since_ms = max(self._seen_ms.get(symbol, 0), self._awake_ms)
            silent_s = (now_ms - since_ms) / 1_000
            for rule in self._absence:
                if silent_s >= rule.absent_s + self._window_s and (
                    not rule.symbols or symbol in rule.symbols
                ):
                    values: dict[str, Value] = {"silent_s": round(silent_s), "symbol": symbol}
                    reading = Reading("features", {"symbol": symbol}, values)
                    self._apply(rule, reading, Verdict.HOLDS, now_ms)

    def _follow_clock(self, now_ms: int) -> None:
        """A clock set back must not freeze anything, and a machine that slept heard nothing."""
        before_ms, self.state.now_ms = self.state.now_ms, now_ms
        if before_ms and now_ms < before_ms:
            self._shift(now_ms - before_ms)
        if self._awake_ms is None or not before_ms <= now_ms <= before_ms + ASLEEP_MS:
            self._awake_ms = now_ms

    def _shift(self, by_ms: int) -> None:
        for instance in self.state.instances.values():
            instance.judged_ms += by_ms
            instance.told_ms += by_ms
            if instance.fired_ms is not None:
                instance.fired_ms += by_ms
            if not self._rules[instance.rule].has_market_clock:
                instance.since_ms += by_ms
                instance.held_ms += by_ms
        for group in self.state.groups.values():
            group.due_ms = None if group.due_ms is None else group.due_ms + by_ms
            group.sent_ms = None if group.sent_ms is None else group.sent_ms + by_ms
        self._seen_ms = {symbol: at_ms + by_ms for symbol, at_ms in self._seen_ms.items()}

    def statistics(self) -> dict[str, int | float | str | None]:
        """Alerts pending and firing now; fired, muted and refused since the start."""
        firing = sum(i.fired_ms is not None for i in self.state.instances.values())
        return {
            "rules": len(self._rules),
            "firing": firing,
            "pending": len(self.state.instances) - firing,
            "fired": self.fired_count,
            "muted": self.muted_count,
            "refused": self.refused_count,
        }


def fill(rule: Rule, reading: Reading) -> str:
    """The rule's message with the reading's fields in it; what is undefined shows as a dash."""
    values: Mapping[str, Value] = {**reading.values, **reading.labels}
    if rule.when:
        values = {**values, "value": values.get(rule.when[0].field)}

    def shown(place: re.Match[str]) -> str:
        value = values.get(place[1])
        if value is None:
            return "–"
        try:
            return format(value, place[2] or "")
        except ValueError:  # a number's format for a text
            return str(value)

    return _PLACE.sub(shown, rule.message)


def _item(instance: Instance, state: AlertState, now_ms: int) -> AlertItem:
    return AlertItem(
        alert_id=instance.alert_id,
        name=instance.name,
        severity=instance.severity,
        labels=instance.labels,
        message=instance.message,
        state=state,
        started_ms=now_ms if instance.fired_ms is None else instance.fired_ms,
        at_ms=now_ms,
    )


def _was_heard(reading: Reading) -> bool:
    """Whether a window shows that its symbol's feed lives: windows of a dead one are empty, and holed."""
    return bool(reading.values.get("complete", True) or reading.values.get("trade_count"))


def _still_known(state: EngineState, rules: Mapping[str, Rule]) -> EngineState:
    """Without what rules that are gone left behind, and without the sockets of a dead process."""
    keep = {
        key: instance
        for key, instance in state.instances.items()
        if instance.rule in rules and rules[instance.rule].on != "connection"
    }
    memory = {k: v for k, v in state.memory.items() if k.partition("|")[0] in rules}
    return EngineState(now_ms=state.now_ms, instances=keep, groups=state.groups, memory=memory)
