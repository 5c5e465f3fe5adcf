from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from data_pipeline.levels import VolumeProfile, classic_pivots, key_levels, value_area
from tests.pipeline_samples import DAY, vector


def test_pivots_equal_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "pivots_classic")
    given, expected = example["inputs"], example["expected"]
    pivots = classic_pivots(given["H"], given["L"], given["C"])
    found = {name.upper(): value for name, value in msgspec.structs.asdict(pivots).items()}
    found["P"] = found.pop("PIVOT")
    assert found == pytest.approx(expected, abs=1e-9)


def test_value_area_equals_the_worked_example(recordings_dir: Path) -> None:
    example = vector(recordings_dir, "volume_profile")
    bins, expected = example["inputs"]["bins"], example["expected"]
    area = value_area(example["inputs"]["vols"], example["params"]["value_area"])
    assert area is not None
    assert (bins[area.poc], bins[area.high], bins[area.low]) == (
        expected["poc"],
        expected["vah"],
        expected["val"],
    )
    assert area.covered_ratio == pytest.approx(expected["covered"], abs=1e-9)


def test_the_area_grows_upwards_on_a_tie() -> None:
    area = value_area([10.0, 40.0, 10.0, 0.0], 0.8)
    assert area is not None
    assert (area.low, area.poc, area.high) == (1, 1, 2)


def test_tied_points_of_control_go_to_the_centre_then_down() -> None:
    centre = value_area([5.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0, 9.0], 0.1)
    lower = value_area([9.0, 1.0, 1.0, 9.0], 0.1)
    assert centre is not None
    assert lower is not None
    assert centre.poc == 4
    assert lower.poc == 0


def test_no_volume_has_no_area() -> None:
    assert value_area([]) is None
    assert value_area([0.0, 0.0]) is None
    assert VolumeProfile().levels() is None


def test_profile_prices_lie_within_a_bin_of_where_it_traded() -> None:
    profile = VolumeProfile(5.0)
    for price, volume in ((100.0, 50.0), (101.0, 20.0), (99.0, 10.0), (105.0, 5.0)):
        profile.add(price, volume)
    levels = profile.levels()
    assert levels is not None
    assert levels == pytest.approx((100.0, 101.0, 100.0), rel=5e-4)


def test_a_wide_day_widens_the_bins_and_loses_no_volume() -> None:
    profile = VolumeProfile(5.0)
    for step in range(2000):
        profile.add(100.0 * 1.001**step, 1.0)
    assert len(profile._volumes) <= 256
    assert sum(profile._volumes.values()) == 2000.0


def test_key_levels_hold_the_day_and_its_profile() -> None:
    profile = VolumeProfile()
    profile.add(105.0, 3.0)
    levels = key_levels(DAY, 110.0, 100.0, 108.0, profile)
    assert (levels.high, levels.low, levels.close, levels.pivot) == (110.0, 100.0, 108.0, 106.0)
    assert levels.poc == pytest.approx(105.0, rel=5e-4)
    assert key_levels(DAY, 110.0, 100.0, 108.0, VolumeProfile()).poc is None
