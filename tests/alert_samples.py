"""Rules and readings for tests of alerts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from alerts.conditions import Reading
from alerts.engine import Engine, EngineState
from alerts.notification import AlertItem, AlertState, Notification, NotificationKind
from alerts.rules import RuleBook
from domain.features import FeatureRow

T0 = 1_721_347_200_000


def book(*rules: dict[str, Any], **sections: Any) -> RuleBook:
    """A rule book of these rules; what they do not say is filled in."""
    whole = [{"about": "x", "message": "{symbol} {value}", **rule} for rule in rules]
    sections.setdefault("delivery", {"group_wait_s": 0, "group_interval_s": 0})
    return msgspec.convert({"rule": whole, **sections}, RuleBook)


def numbered() -> Callable[[], str]:
    """Ids in order."""
    count = itertools.count(1)
    return lambda: f"id-{next(count)}"


def engine(
    rules: RuleBook,
    state: EngineState | None = None,
    *,
    symbols: tuple[str, ...] = (),
    new_id: Callable[[], str] | None = None,
) -> Engine:
    return Engine(rules, symbols=symbols, window_s=5, new_id=new_id or numbered(), state=state)


def row_reading(at_ms: int, symbol: Any = "BTCUSDT", **values: Any) -> Reading:
    return Reading("features", {"symbol": symbol}, {"symbol": symbol, **values}, at_ms)


def health(**values: Any) -> Reading:
    return Reading("health", {}, {name.replace("__", "."): v for name, v in values.items()})


def feature_row(end_ms: int = T0, **values: Any) -> FeatureRow:
    """A row of which only some columns matter."""
    filled: dict[str, Any] = {
        field.name: 0 for field in msgspec.structs.fields(FeatureRow) if field.required
    }
    filled |= {"symbol": "BTCUSDT", "origin": "live", "complete": True, "cvd_complete": True}
    filled |= {"window_start_ms": end_ms - 5_000, "window_end_ms": end_ms, "vwap": 100.0}
    return FeatureRow(**(filled | values))


def items(notifications: list[Notification]) -> list[tuple[str, str]]:
    """(name, state) of every alert told."""
    return [(item.name, item.state.value) for note in notifications for item in note.items]


def notification(
    key: str = "k1", severity: str = "warning", name: str = "whale", created_ms: int = T0
) -> Notification:
    item = AlertItem(
        alert_id=f"a-{key}",
        name=name,
        severity=severity,
        labels={"symbol": "BTCUSDT"},
        message=f"{name} at 64,000",
        state=AlertState.FIRING,
        started_ms=created_ms,
        at_ms=created_ms,
    )
    return Notification(
        key=key,
        kind=NotificationKind.ALERTS,
        group="market",
        symbol="BTCUSDT",
        items=(item,),
        created_ms=created_ms,
    )
