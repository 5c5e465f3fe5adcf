import pytest

from domain.errors import ConfigError
from domain.market import Market
from simulator.clock import MarketClock
from simulator.settings import SimulatorSettings
from simulator.weights import WeightMeter


class ManualTime:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_the_clock_stands_until_it_starts_and_then_runs_at_its_speed() -> None:
    wall = ManualTime()
    clock = MarketClock(1_000_000_000, 60.0, wall)
    wall.now = 5_000_000_000
    assert clock.now_ns() == 1_000_000_000
    clock.start()
    wall.now += 1_000_000_000
    clock.start()
    assert clock.now_ns() == 61_000_000_000
    assert clock.elapsed_ms() == 60_000
    assert clock.wall_s_until(121_000_000_000) == 1.0
    assert clock.wall_s_until(0) == 0.0


def test_an_unpaced_clock_follows_the_frames_and_never_runs_back() -> None:
    wall = ManualTime()
    clock = MarketClock(1_000, None, wall)
    clock.start()
    clock.advance_to(5_000)
    clock.advance_to(4_000)
    wall.now = 10**9
    assert clock.now_ns() == 5_000
    clock.pace(1.0)
    wall.now += 500
    assert clock.now_ns() == 5_500


def test_weights_are_refused_above_the_limit_then_banned_and_forgiven_later() -> None:
    now = ManualTime()
    now.now = 30_000
    meter = WeightMeter(40, 2, 120, now)
    assert [meter.spend(20).status for _ in range(5)] == [200, 200, 429, 429, 418]
    verdict = meter.spend(20)
    assert (verdict.status, verdict.retry_after_s, verdict.banned_until_ms) == (418, 120, 150_000)
    now.now = 150_000
    assert meter.spend(20).status == 200
    assert [meter.spend(20).status for _ in range(4)] == [200, 429, 429, 418]
    assert meter.spend(1).retry_after_s == 240


def test_retry_after_reaches_to_the_next_minute_where_weights_start_anew() -> None:
    now = ManualTime()
    now.now = 60_000 + 12_500
    meter = WeightMeter(10, 5, 120, now)
    assert meter.spend(10).used_weight == 10
    assert meter.spend(1).retry_after_s == 48
    now.now = 120_000
    assert meter.spend(1).used_weight == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"speed": -1.0}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"port": 70_000}, "port"),
        ({"rate_multiplier": 0.0}, "rate_multiplier"),
        ({"weight_clock": "sun"}, "weight_clock"),
        ({"seed": -1}, "seed"),
        ({"symbols": ()}, "symbols"),
        ({"symbols": ("btcusdt",)}, "symbols"),
    ],
)
def test_settings_that_cannot_work_name_their_field(
    arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        SimulatorSettings(**arguments)  # type: ignore[arg-type]


def test_zero_and_infinity_both_mean_unpaced() -> None:
    assert SimulatorSettings(speed=0).is_unpaced
    assert SimulatorSettings(speed=float("inf"), market=Market.SPOT).is_unpaced
    assert SimulatorSettings(speed=20).wall_per_market == 0.05
