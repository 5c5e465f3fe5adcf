"""Events of the bus as readings: flat fields, labels, and the clock a rule goes by.

Payloads in, ``Reading``s out. Only live windows are read: nobody acts on recovered or revised ones.
Also here: what rules may ask of a feature row beyond its columns (``rules.DERIVED_FIELDS``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from alerts.conditions import Reading, Value
from domain.events import (
    Alert,
    AnalysisUnavailable,
    ConnectionEvent,
    FeaturesEvent,
    GapEvent,
    HealthEvent,
    Signal,
)
from domain.features import FeatureRow
from domain.flow import Origin

_BPS: Final = 10_000
WALL_STOOD_S: Final = 10.0
"""A wall has to have stood for so long before its going is a pull and not a flicker."""


class AnalystBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider may take per UTC day; None: no limit."""

    tokens: int | None = None
    usd: float | None = None


class Reader:
    """Turns payloads into readings; remembers each symbol's last row.

    Args:
        budget: gives ``ai.<provider>.budget_ratio`` among the health values.
    """

    def __init__(self, budget: AnalystBudget | None = None) -> None:
        self._budget = budget or AnalystBudget()
        self._before: dict[str, dict[str, Value]] = {}

    def read(self, payload: msgspec.Struct) -> Reading | None:
        """The reading of one payload; None where no rule may look at it."""
        match payload:
            case FeaturesEvent():
                return self._of_row(payload.row) if payload.origin is Origin.LIVE else None
            case HealthEvent():
                return Reading("health", {}, self._with_budgets(payload.values))
            case Signal():
                labels = {"symbol": payload.symbol, "source": payload.source}
                return Reading("signal", labels, _fields(payload), payload.decided_at_ms)
            case GapEvent():
                labels = {"symbol": payload.symbol, "kind": payload.kind}
                labels["first_id"] = str(payload.first_id)
                return Reading("gap", labels, _fields(payload))
            case ConnectionEvent():
                labels = {"route": payload.route, "socket": str(payload.socket_id)}
                return Reading("connection", labels, _fields(payload))
            case AnalysisUnavailable():
                labels = {"symbol": payload.symbol}
                return Reading("analysis_unavailable", labels, _fields(payload))
            case Alert(alert_id=""):  # the engine's own have one
                labels = {"name": payload.name, "about": payload.message}
                if payload.symbol is not None:
                    labels["symbol"] = payload.symbol
                return Reading("alert", labels, _fields(payload))
        return None

    def _of_row(self, row: FeatureRow) -> Reading:
        values = _fields(row)
        values |= _whales(row)
        before = self._before.get(row.symbol)
        self._before[row.symbol] = values
        for side in ("bid", "ask"):
            values[f"{side}_wall_quote"] = _wall_quote(values, side)
            pulled = None if before is None else _pulled_quote(before, values, side)
            values[f"{side}_wall_pulled_quote"] = pulled
        return Reading("features", {"symbol": row.symbol}, values, row.window_end_ms)

    def _with_budgets(self, values: Mapping[str, Value]) -> dict[str, Value]:
        found = dict(values)
        for key, spent in values.items():
            name, _, what = key.rpartition(".")
            limit = {"tokens_today": self._budget.tokens, "usd_today": self._budget.usd}.get(what)
            if limit and isinstance(spent, int | float):
                known = found.get(f"{name}.budget_ratio") or 0.0
                found[f"{name}.budget_ratio"] = max(float(known), spent / limit)
        return found


def spread_out(reading: Reading, pattern: str) -> list[Reading]:
    """The readings a key with ``*`` stands for: one per match, which becomes the label ``part``.

    In each, the fields are also found under the pattern's own name, so that conditions and
    messages need not know the match.
    """
    if "*" not in pattern:
        return [reading]
    before, _, after = pattern.partition("*")
    matching = re.compile(re.escape(before) + r"(.+?)" + re.escape(after))
    found = []
    for key in reading.values:
        match = matching.fullmatch(key)
        if match:
            part = match.group(1)
            own = {
                f"{before}*{name.removeprefix(before + part)}": value
                for name, value in reading.values.items()
                if name.startswith(before + part)
            }
            labels = {**reading.labels, "part": part}
            found.append(Reading(reading.kind, labels, {**reading.values, **own}, reading.at_ms))
    return found


def _fields(payload: msgspec.Struct) -> dict[str, Value]:
    return msgspec.structs.asdict(payload)


def _whales(row: FeatureRow) -> dict[str, Value]:
    traded = row.whale_buy_volume + row.whale_sell_volume
    return {
        "whale_net_quote": None if row.vwap is None else row.whale_delta * row.vwap,
        "whale_one_sided_ratio": abs(row.whale_delta) / traded if traded else None,
    }


def _wall_quote(values: Mapping[str, Value], side: str) -> float | None:
    price, size = values[f"{side}_wall_price"], values[f"{side}_wall_size"]
    return None if price is None or size is None else float(price) * float(size)


def _pulled_quote(before: Mapping[str, Value], now: Mapping[str, Value], side: str) -> float:
    """Notional of a wall that stood, is gone, and was not traded through: 0 where there is none.

    Its price must still lie in the part of the book that is seen, behind the best price of its
    side, and no nearer wall may hide it.
    """
    price, age = before[f"{side}_wall_price"], before[f"{side}_wall_age_s"]
    mid, best, reach = now["mid_price"], now[f"{side}_price"], now[f"depth_{side}_reach_bps"]
    if price is None or age is None or mid is None or best is None or reach is None:
        return 0.0
    inward = 1 if side == "bid" else -1
    distance = inward * (float(mid) - float(price)) / float(mid) * _BPS
    nearest = now[f"{side}_wall_price"]
    is_hidden = nearest is not None and inward * (float(nearest) - float(price)) >= 0
    is_inside = inward * (float(best) - float(price)) > 0 and distance <= float(reach)
    is_pulled = float(age) >= WALL_STOOD_S and is_inside and not is_hidden
    return (_wall_quote(before, side) or 0.0) if is_pulled else 0.0
