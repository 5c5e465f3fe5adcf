"""Is the program ready? One check per part, from the flat statistics of all parts.

Consumes readings ``part.name → value``, produces a ``Report``. Pure but for what it remembers between
two readings: a writer is judged by what happened last, failure or success. What is optional (the AI
analyst) can only degrade.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

type Readings = Mapping[str, float | int | str | None]

FEED_FRESH_S = 30.0  # books change ten times a second: so long without any frame is no quiet market
_HEALTHY = frozenset({"healthy", "suspect", "rotating"})  # data flows, or is being asked about
_WRITERS = (  # part, failures, what shows a success
    ("store", "store.failed_flushes", "store.flushes"),
    ("storage", "storage.failed_flushes", "store.flushes"),
    ("recorder", "recorder.failed_flushes", "recorder.flushes"),
)


class State(enum.StrEnum):
    """How a check came out; the worst one is the report's."""

    OK = "ok"
    DEGRADED = "degraded"  # works, with less
    FAILING = "failing"  # not ready


_RANK = {State.OK: 0, State.DEGRADED: 1, State.FAILING: 2}


class Check(msgspec.Struct, frozen=True):
    """One part's state, and why."""

    state: State
    detail: str


class Report(msgspec.Struct, frozen=True):
    """All checks by name."""

    status: State
    checks: dict[str, Check]

    @property
    def is_ready(self) -> bool:
        """Whether nothing is failing."""
        return self.status is not State.FAILING


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits.

    Attributes:
        fresh_s: A feed without a frame for so long is stale.
        disk_warn_mib: Less free space than this degrades; 0: never.
        disk_stop_mib: Less than this is failing; 0: never.
    """

    fresh_s: float = FEED_FRESH_S
    disk_warn_mib: int = 0
    disk_stop_mib: int = 0


class HealthChecks:
    """Judges readings; ``observe`` each one, so that writers are remembered."""

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._last: dict[str, tuple[float, float]] = {}  # writer: failures and successes before
        self._is_failing: dict[str, bool] = {}

    def report(self, values: Readings) -> Report:
        """Judge one reading; an empty one means that the program is starting."""
        checks: dict[str, Check] = {}
        if not values:
            checks["start"] = Check(State.FAILING, "starting")
        checks |= self._feed(values) | self._writers(values)
        if (free := _number(values, "disk.free_bytes")) is not None:
            checks["disk"] = self._disk(free / 1_048_576)
        if "ai.mode" in values:
            checks["ai"] = _ai(values)
        if (failures := _number(values, "schedule.failures")) is not None:
            is_failing = bool(_number(values, "schedule.is_failing"))
            state = State.DEGRADED if is_failing else State.OK
            checks["schedule"] = Check(state, f"{failures:.0f} failed runs since the start")
        status = max((c.state for c in checks.values()), key=_RANK.__getitem__, default=State.OK)
        return Report(status, checks)

    def _feed(self, values: Readings) -> dict[str, Check]:
        found, ages = {}, []
        for key, state in values.items():
            part, _, name = key.rpartition(".")
            if not part.startswith("connection.") or name != "state":
                continue
            age_s = _number(values, f"{part}.data_age_s")
            ages += [] if age_s is None else [age_s]
            up = bool(set(str(state).split(",")) & _HEALTHY)
            text = "no data yet" if age_s is None else f"last data {age_s:.1f} s ago"
            found[part.replace("connection.", "feed.")] = Check(
                State.OK if up else State.FAILING, f"{state}, {text}"
            )
        if ages and min(ages) > self._settings.fresh_s:
            found["feed"] = Check(State.FAILING, f"no frame for {min(ages):.0f} s")
        return found

    def _writers(self, values: Readings) -> dict[str, Check]:
        found = {}
        for name, failures, successes in _WRITERS:
            failed, done = _number(values, failures), _number(values, successes)
            if failed is None or done is None:
                continue
            failed_before, done_before = self._last.get(name, (0.0, 0.0))
            if failed > failed_before:
                self._is_failing[name] = True
            elif done > done_before:
                self._is_failing[name] = False
            self._last[name] = (failed, done)
            is_failing = self._is_failing.get(name, False)
            state = State.FAILING if is_failing else State.OK
            found[f"writer.{name}"] = Check(state, f"{failed:.0f} failed writes since the start")
        return found

    def _disk(self, free_mib: float) -> Check:
        state = State.OK
        if free_mib < self._settings.disk_stop_mib:
            state = State.FAILING
        elif free_mib < self._settings.disk_warn_mib:
            state = State.DEGRADED
        return Check(state, f"{free_mib:.0f} MiB free")


def _ai(values: Readings) -> Check:
    states = {
        key.split(".")[1]: str(state)
        for key, state in values.items()
        if key.startswith("ai.") and key.endswith(".state")
    }
    if values["ai.mode"] != "live":
        return Check(State.OK, f"mode {values['ai.mode']}")
    if not states:
        return Check(State.DEGRADED, "no provider has a key: only the rules decide")
    usable = [name for name, state in states.items() if state not in {"open", "disabled"}]
    text = ", ".join(f"{name} {state}" for name, state in states.items())
    return Check(State.OK if usable else State.DEGRADED, text)


def _number(values: Readings, key: str) -> float | None:
    value = values.get(key)
    return None if value is None or isinstance(value, str) else float(value)
