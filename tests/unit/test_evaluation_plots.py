"""Plots of the signals report say when."""

from __future__ import annotations

import calendar

import pytest

from evaluation.svg_plots import curves_plot
from evaluation.versus import Curve, Curves


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        ((2026, 12, 25), (2027, 1, 4), "2027-01-04"),
        ((2026, 3, 1), (2026, 3, 21), ">03-21<"),
        ((2026, 12, 31), (2027, 1, 2), "01-02 00:00"),
    ],
)
def test_days_of_two_years_carry_the_year(
    first: tuple[int, int, int], last: tuple[int, int, int], shown: str
) -> None:
    times = [calendar.timegm((*day, 0, 0, 0)) * 1_000 for day in (first, last)]
    curve = Curve(name="rules", total_bps=[0.0, 1.0])
    text = curves_plot(Curves(time_ms=times, curves=[curve]))
    assert shown in text
    assert ("2026-" in text) == (shown[:2] == "20")
