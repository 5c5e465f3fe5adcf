"""Rules as data: what deserves an alert, how alerts are gathered, and what each channel takes.

Consumes the shipped ``default_rules.toml`` and perhaps a file of the user's, produces ``RuleBook``.
The user's rules replace shipped ones of the same name field by field; others are added.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from domain.errors import ConfigError
from domain.events import Alert as AlertEvent
from domain.events import AnalysisUnavailable, ConnectionEvent, GapEvent, Signal
from domain.features import FeatureRow

DEFAULT_RULES: Final = Path(__file__).with_name("default_rules.toml")
SEVERITIES: Final = ("info", "warning", "error")
MOMENTARY: Final = frozenset({"alert", "analysis_unavailable"})
"""Kinds of events of which nothing is ever said about their end; the event itself is enough."""

type Severity = Literal["info", "warning", "error"]
type Kind = Literal[
    "features", "signal", "health", "gap", "connection", "analysis_unavailable", "alert"
]

# What rules may ask of a feature row beside its columns; alerts/readings.py computes them.
DERIVED_FIELDS: Final = frozenset(
    {
        *("whale_net_quote", "whale_one_sided_ratio"),
        *("bid_wall_quote", "ask_wall_quote", "bid_wall_pulled_quote", "ask_wall_pulled_quote"),
    }
)
_FIELDS: Final[dict[str, frozenset[str]]] = {
    "features": frozenset(FeatureRow.__struct_fields__) | DERIVED_FIELDS,
    "signal": frozenset(Signal.__struct_fields__),
    "gap": frozenset(GapEvent.__struct_fields__),
    "connection": frozenset(ConnectionEvent.__struct_fields__),
    "analysis_unavailable": frozenset(AnalysisUnavailable.__struct_fields__),
    "alert": frozenset(AlertEvent.__struct_fields__),
}


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison of one field; it has exactly one operator.

    Attributes:
        field: a feature column, a payload's field or a key of the health values (``*`` in a key
            stands for one or more of its parts; each match is an alert of its own).
        above: holds from this value on. With ``of`` it is a multiple of that field.
        below: holds down from this value; ``of`` as above.
        outside: holds where the absolute value is at least this; ``of`` as above.
        release: for the three: the condition is over only beyond this value (hysteresis).
        of: field whose value scales the threshold, e.g. the symbol's own past quantile.
        equals: holds where the value is this one.
        is_in: ... is one of these.
        not_in: ... is none of these.
        changed: holds at an event whose value differs from that of the one before.
        rises: holds where the value grew by at least this since the reading before.
        crosses: holds at an event where the value passed this level; ``crosses_field`` names a
            field that holds the level instead.
        band_bps: for crossings: a side is left only this far beyond the level.
    """

    field: str
    above: float | None = None
    below: float | None = None
    outside: float | None = None
    release: float | None = None
    of: str = ""
    equals: str | float | bool | None = None
    is_in: tuple[str | float, ...] = ()
    not_in: tuple[str | float, ...] = ()
    changed: bool = False
    rises: float | None = None
    crosses: float | None = None
    crosses_field: str = ""
    band_bps: float = 1.0

    @property
    def operators(self) -> list[str]:
        """The operators that are given; a sound condition has one."""
        names = ("above", "below", "outside", "equals", "rises", "crosses")
        found = [name for name in names if getattr(self, name) is not None]
        found += [name for name in ("is_in", "not_in", "crosses_field") if getattr(self, name)]
        return [*found, "changed"] if self.changed else found

    @property
    def threshold(self) -> float | None:
        """The number of a comparison with hysteresis."""
        if self.above is not None:
            return self.above
        return self.outside if self.below is None else self.below


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to alert.

    Attributes:
        name: unique; what silences and overrides refer to.
        about: one line for people.
        on: kind of event that is looked at.
        severity: info, warning or error; alerts of other parts keep their own.
        group: alerts of one group and symbol share a notification.
        message: text with ``{field}`` or ``{field:format}``; also ``{value}``: the first condition's.
        where: which events concern the rule at all; the others are ignored.
        when: conditions, all of which must hold.
        absent_s: instead of ``when``: no live window of a symbol for so long beyond its length, s,
            or only incomplete ones without a trade.
        symbols: only these; empty: all.
        for_s: how long it must hold before it fires, s (market time for features and signals).
        keep_s: how long after it last held the alert goes on, s (the same clock).
        repeat_s: while it lasts, tell again after so long, s; 0: never.
        tell_resolved: also tell its end.
        inhibits: rules or groups that are not told of while this one fires, of the same symbol; of
            all symbols where this one has none.
        enabled: whether it is looked at.
    """

    name: str
    about: str
    on: Kind
    severity: Severity = "info"
    group: str = "market"
    message: str
    where: tuple[Condition, ...] = ()
    when: tuple[Condition, ...] = ()
    absent_s: float = 0.0
    symbols: tuple[str, ...] = ()
    for_s: float = 0.0
    keep_s: float = 0.0
    repeat_s: float = 0.0
    tell_resolved: bool = False
    inhibits: tuple[str, ...] = ()
    enabled: bool = True

    @property
    def has_market_clock(self) -> bool:
        """Whether durations are exchange time: what is told about the market, not about us."""
        return self.on in {"features", "signal"} and not self.absent_s


class Delivery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How alerts are gathered, seconds of wall time.

    Attributes:
        group_wait_s: wait for more of a group before its first notification.
        group_interval_s: least time between two notifications of a group; what is worse than the
            last one held does not wait for it.
        forget_s: an alert nobody has reported on for so long ends.
    """

    group_wait_s: float = 2.0
    group_interval_s: float = 60.0
    forget_s: float = 3_600.0


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a channel takes.

    Attributes:
        least_severity: less severe alerts do not go there.
        per_hour: notifications an hour; what is more is gathered into digests. 0: no limit.
            Errors are never held back.
        burst: notifications at once before the hourly rate counts.
    """

    least_severity: Severity = "info"
    per_hour: float = 30.0
    burst: int = 6


class RuleBook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the files say."""

    rule: tuple[Rule, ...]
    delivery: Delivery = Delivery()
    channel: dict[str, ChannelRule] = {}

    def channel_rule(self, name: str) -> ChannelRule:
        """What a channel takes: its own entry, or that of its kind (``apprise`` for ``apprise-2``)."""
        return self.channel.get(name) or self.channel.get(name.partition("-")[0]) or ChannelRule()


def load_rules(path: Path | None = None) -> RuleBook:
    """The shipped rules, with those of ``path`` worked in.

    Raises:
        ConfigError: The file cannot be read or says something that cannot be meant; one line.
    """
    merged = _read(DEFAULT_RULES)
    if path is not None:
        merged = _merged(merged, _read(path))
    named = f"ALERT_RULES (--alert-rules): {path or DEFAULT_RULES.name}"
    try:
        book = msgspec.convert(merged, RuleBook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{named}: {_placed(str(error), merged)}") from None
    for rule in book.rule:
        problem = _problem(rule)
        if problem is not None:
            raise ConfigError(f"{named}: rule {rule.name}: {problem}")
    return book


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"ALERT_RULES (--alert-rules): {path}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"ALERT_RULES (--alert-rules): {path}: {error}") from None


def _merged(shipped: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``shipped``: rules by name, sections by key; odd shapes are left to the check."""
    merged = {**shipped, **own}
    if isinstance(own.get("delivery"), dict):
        merged["delivery"] = {**shipped["delivery"], **own["delivery"]}
    if isinstance(own.get("channel"), dict):
        channels = dict(shipped["channel"])
        for name, given in own["channel"].items():
            merge = isinstance(given, dict)
            channels[name] = {**channels.get(name, {}), **given} if merge else given
        merged["channel"] = channels
    given_rules = own.get("rule", [])
    if isinstance(given_rules, list) and all(isinstance(rule, dict) for rule in given_rules):
        rules = {rule["name"]: rule for rule in shipped["rule"]}
        for number, rule in enumerate(given_rules):
            name = rule.get("name", number)
            rules[name] = {**rules.get(name, {}), **rule}
        merged["rule"] = list(rules.values())
    return merged


def _placed(error: str, merged: dict[str, Any]) -> str:
    """The error with the rule's name in place of its number."""
    before, found, after = error.partition("$.rule[")
    number, _, rest = after.partition("]")
    if not found or not number.isdigit():
        return error
    name = merged["rule"][int(number)].get("name", f"number {int(number) + 1}")
    return f"{before}rule {name}{rest}"


def _problem(rule: Rule) -> str | None:
    if rule.absent_s and (rule.when or rule.on != "features"):
        return "absent_s goes with on = 'features' and without when"
    if not rule.absent_s and not rule.when and rule.on not in MOMENTARY:
        return "when has no condition"
    negative = [n for n in ("for_s", "keep_s", "repeat_s", "absent_s") if getattr(rule, n) < 0]
    if negative:
        return f"{negative[0]} is negative"
    for condition in (*rule.where, *rule.when):
        if len(condition.operators) != 1:
            given = ", ".join(condition.operators) or "none"
            return f"{condition.field}: one operator per condition, given: {given}"
        unknown = _unknown_field(rule, condition)
        if unknown is not None:
            return unknown
        if _is_release_inside(condition):
            return f"{condition.field}: release lies on the wrong side of the threshold"
    return None


def _unknown_field(rule: Rule, condition: Condition) -> str | None:
    known = _FIELDS.get(rule.on)
    for name in (condition.field, condition.of, condition.crosses_field):
        if known is not None and name and name not in known:
            return f"{rule.on} has no field {name!r}"
    return None


def _is_release_inside(condition: Condition) -> bool:
    threshold, release = condition.threshold, condition.release
    if release is None or threshold is None:
        return release is not None
    return release < threshold if condition.below is not None else release > threshold
