"""Synthetic days of the lake: the rows are those that the simulated exchange sends of the same seed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from domain.errors import ConfigError
from lake.paths import LakePaths
from lake.stream_files import read_stream_file, stream_dates, stream_files
from research.synthetic_days import DaysWanted, main, write_days
from simulator.frames import FrameKind
from simulator.synthetic import SyntheticMarket

DATES = ("2026-01-01", "2026-01-02")
START_MS = 1_767_225_600_000
SECONDS = 20


def wanted(**changes) -> DaysWanted:
    given = {"symbols": ("BTCUSDT",), "first_date": DATES[0], "days": 2, "hours": 1, "seed": 5}
    return DaysWanted(**{**given, "planted_edge": 1.0, "rate_multiplier": 0.2, **changes})


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> LakePaths:
    made = LakePaths.of(tmp_path_factory.mktemp("lake"))
    assert tuple(write_days(made, wanted())) == DATES
    return made


def test_rows_are_what_the_exchange_sends(paths):
    market = SyntheticMarket(
        5, ("BTCUSDT",), start_ms=START_MS, rate_multiplier=0.2, planted_edge=1.0
    )
    frames = list(itertools.chain.from_iterable(itertools.islice(market.chunks(), SECONDS)))
    for kind, wanted_kind in (("trades", FrameKind.TRADE), ("depth", FrameKind.DEPTH)):
        (path,) = stream_files(paths, kind, DATES[0])
        rows = read_stream_file(path, kind, end_ms=START_MS + SECONDS * 1_000).to_pylist()
        sent = [frame for frame in frames if frame.kind is wanted_kind]
        assert len(rows) == len(sent) > 10
        for row, frame in zip(rows, sent, strict=True):
            data = json.loads(frame.data)
            assert (row["event_time_ms"], row["transact_time_ms"]) == (data["E"], data["T"])
            assert row["receive_time_ns"] == frame.due_ns
            if kind == "trades":
                assert row["agg_trade_id"] == data["a"]
                assert (row["price"], row["quantity"]) == (float(data["p"]), float(data["q"]))
                assert (row["first_trade_id"], row["last_trade_id"]) == (data["f"], data["l"])
                assert (row["is_buyer_maker"], row["source"]) == (data["m"], "stream")
            else:
                ids = (row["first_update_id"], row["final_update_id"], row["prev_final_update_id"])
                assert ids == (data["U"], data["u"], data["pu"])
                for side, name in (("bids", "b"), ("asks", "a")):
                    assert row[side] == [[float(x) for x in level] for level in data[name]]


def test_every_day_has_its_hours_and_no_hole_in_its_ids(paths):
    assert stream_dates(paths, "depth") == list(DATES)
    for date in DATES:
        (path,) = stream_files(paths, "depth", date)
        table = read_stream_file(path, "depth")
        final = np.array(table.column("final_update_id"))
        assert len(final) == 36_000
        assert np.array_equal(np.array(table.column("prev_final_update_id"))[1:], final[:-1])
        (path,) = stream_files(paths, "trades", date)
        ids = np.array(read_stream_file(path, "trades").column("agg_trade_id"))
        assert np.array_equal(ids, ids[0] + np.arange(len(ids)))


def test_days_that_are_there_are_left_alone(paths):
    with pytest.raises(ConfigError, match="has files of 2026-01-02 already"):
        next(write_days(paths, wanted(first_date=DATES[1], days=1)))


def test_the_command_writes_days_and_its_errors_are_one_line(tmp_path, capsys):
    folder = ["--data-dir", str(tmp_path / "new"), "--days", "1", "--hours", "1", "--rate", "0.1"]
    assert main([*folder, "--symbols", "ethusdt", "--planted-edge", "0"]) == 0
    assert capsys.readouterr().out.startswith("2026-01-01  1 h")
    assert stream_dates(LakePaths.of(tmp_path / "new"), "trades") == ["2026-01-01"]
    for flags, expected in (
        (folder, "has files of 2026-01-01 already"),
        ([*folder, "--from", "1.1."], "--from: '1.1.' is no day"),
        ([*folder, "--from", "1960-01-01"], "is no day from 2000 on"),
        ([*folder, "--days", "0"], "--days: must be from 1"),
        ([*folder, "--hours", "25"], "--hours: must be from 1 to 24"),
        ([*folder, "--planted-edge", "2"], "--planted-edge: must be from 0 to 1"),
        ([*folder, "--symbols", ","], "--symbols: ',' names none"),
        ([*folder, "--days", "many"], "--days: invalid int value"),
        ([], "--data-dir"),
    ):
        assert main(flags) == 2, flags
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
