import json
import random
from pathlib import Path

import msgspec
import pytest

from domain.errors import ConfigError
from simulator.fault_frames import corrupt
from simulator.faults import (
    CORRUPTION_MODES,
    COUNTED,
    TIMED,
    Fault,
    FaultKind,
    FaultPlan,
    load_plan,
)

FRAME = (
    b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1721347200005,"a":77,"s":"BTCUSDT",'
    b'"p":"64000.10","q":"0.011","f":770,"l":771,"T":1721347200000,"m":true}}'
)


def test_random_plans_depend_on_their_arguments_alone() -> None:
    first = FaultPlan.random(5, 600_000, mean_interval_ms=3_000)
    assert first == FaultPlan.random(5, 600_000, mean_interval_ms=3_000)
    assert first != FaultPlan.random(6, 600_000, mean_interval_ms=3_000)
    assert len(first.faults) > 100


def test_random_plans_cover_their_kinds_in_order_and_leave_the_tail_alone() -> None:
    plan = FaultPlan.random(1, 900_000, mean_interval_ms=1_000, quiet_tail_ms=60_000)
    times = [fault.at_ms for fault in plan.faults]
    assert times == sorted(times)
    assert max(fault.at_ms + fault.duration_ms for fault in plan.faults) <= 840_001
    assert {fault.kind for fault in plan.faults} == set(FaultKind) - {
        FaultKind.REST_LOST_TRADES,
        FaultKind.SERVER_SHUTDOWN,
    }
    only = FaultPlan.random(1, 90_000, (FaultKind.MISSING,), mean_interval_ms=1_000)
    assert {fault.kind for fault in only.faults} == {FaultKind.MISSING}


def test_plans_are_read_from_json_toml_and_seeds(tmp_path: Path) -> None:
    expected = FaultPlan(faults=(Fault(at_ms=5, kind=FaultKind.MISSING, count=3),))
    as_json = tmp_path / "plan.json"
    as_json.write_bytes(msgspec.json.encode(expected))
    as_toml = tmp_path / "plan.toml"
    as_toml.write_text('[[faults]]\nat_ms = 5\nkind = "missing"\ncount = 3\n')
    assert load_plan(str(as_json), 1) == expected
    assert load_plan(str(as_toml), 1) == expected
    assert load_plan("random:9", 50_000) == FaultPlan.random(9, 50_000)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "plan"),
        ('{"faults": [{"at_ms": 1, "kind": "nonsense"}]}', "nonsense"),
        ('{"faults": [{"at_ms": 1, "kind": "missing"}]}', "count"),
        ('{"faults": [{"at_ms": 1, "kind": "stall"}]}', "duration_ms"),
        ('{"faults": [{"at_ms": -1, "kind": "disconnect"}]}', "negative"),
        ('{"faults": [{"at_ms": 1, "kind": "disconnect", "mode": "1006"}]}', "mode"),
        ('{"faults": [{"at_ms": 1, "kind": "disconnect", "route": "x"}]}', "route"),
        ('{"faults": [{"at_ms": 1, "kind": "missing", "count": 1, "cuont": 1}]}', "cuont"),
    ],
)
def test_a_wrong_plan_is_one_line_that_names_the_fault(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_plan(str(path), 1)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["random:x", "random:", "/no/such/plan.json"])
def test_a_plan_that_cannot_be_found_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        load_plan(text, 1)


@pytest.mark.parametrize("mode", CORRUPTION_MODES)
@pytest.mark.parametrize("seed", range(20))
def test_damage_is_always_detectable(mode: str, seed: int) -> None:
    damaged = corrupt(mode, FRAME, random.Random(seed))
    assert damaged != FRAME
    assert damaged == corrupt(mode, FRAME, random.Random(seed))
    try:
        data = json.loads(damaged)["data"]
    except (ValueError, UnicodeDecodeError):
        return
    sound = json.loads(FRAME)["data"]
    if mode == "changed_payload":
        assert (data["a"], data["q"] != sound["q"]) == (77, True)
    else:
        assert data["s"] != "BTCUSDT" or float(data["p"]) <= 0


def test_every_kind_is_either_an_instant_a_span_or_a_count() -> None:
    assert not set(COUNTED) & set(TIMED)
