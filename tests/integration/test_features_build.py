"""Days of the lake as datasets: what the build writes is what live code computes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

import main
from domain.errors import ConfigError
from domain.market import Market
from domain.model_card import ImageGeometry
from lake.gap_ledger import GapLedger
from lake.part_files import date_of
from lake.paths import LakePaths
from microstructure.book_image import IMAGE_LOOK_BACK_MS, book_images
from microstructure.measures import LOOK_BACK_MS, LOOK_BACK_WINDOWS, features_of, window_bins
from research.build import BuildSettings, dates_between, plan, run_here
from research.dataset import Dataset
from research.day_task import BUILT, EMPTY, FAILED, SKIPPED, DayTask, Stopped, build_day
from research.lake_day import books_of
from tests.book_days import DAY, START_MS, Walk

WINDOW_MS = 5_000
SMALL = ImageGeometry(frames=2, height=8, width=4)
MIDNIGHT_MS = START_MS
BEFORE_MS, AFTER_MS = MIDNIGHT_MS - 600_000, MIDNIGHT_MS + 600_000


def task_of(lake: Path, out: Path, **changes) -> DayTask:
    given = {"lake": str(lake), "out": str(out), "market": "um", "symbol": "BTCUSDT", "date": DAY}
    return DayTask(**{**given, "window_ms": WINDOW_MS, "geometry": SMALL, **changes})


def settings_of(lake: Path, out: Path, **changes) -> BuildSettings:
    given: dict[str, Any] = {"lake": str(lake), "out": str(out), "market": Market.UM}
    given |= {"symbols": ("BTCUSDT",)}
    given |= {"dates": (DAY,), "window_ms": WINDOW_MS, "geometry": SMALL}
    return BuildSettings(**{**given, **changes})


def built(lake: Path, out: Path, **changes) -> Dataset:
    for task in plan(settings_of(lake, out, **changes)):
        assert build_day(task).status == BUILT
    return Dataset.open(out)


@pytest.fixture(scope="module")
def walk() -> Walk:
    """Ten minutes on either side of midnight."""
    return Walk(BEFORE_MS, AFTER_MS, trades_per_s=8.0)


@pytest.fixture(scope="module")
def lake(walk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    walk.write(LakePaths.of(folder))
    return folder


@pytest.fixture(scope="module")
def dataset(lake, tmp_path_factory) -> Dataset:
    return built(lake, tmp_path_factory.mktemp("out"))


def test_features_and_images_equal_those_computed_live_window_by_window(walk, dataset):
    day = dataset.day("BTCUSDT", DAY)
    tape, trades = books_of(walk.depth()).tape, walk.trade_rows()
    rows: list[np.void] = []
    for start_ms in range(BEFORE_MS, AFTER_MS, WINDOW_MS):
        end_ms = start_ms + WINDOW_MS
        known = trades[trades["transact_time_ms"] < end_ms]
        rows.append(window_bins(known, tape.between(0, end_ms), start_ms, WINDOW_MS))
        if start_ms < MIDNIGHT_MS:
            continue
        row = (start_ms - MIDNIGHT_MS) // WINDOW_MS
        live = features_of(np.stack(rows[-LOOK_BACK_WINDOWS:]), WINDOW_MS)[-1]
        assert live.tobytes() == day.features[row].tobytes()
        assert day.decision_ms[row] == end_ms
        if row % 12 == 0:
            past = tape.between(end_ms - IMAGE_LOOK_BACK_MS, end_ms)
            image, _, is_defined = book_images(past, known, np.array([end_ms]), SMALL)
            assert image.tobytes() == day.images(slice(row, row + 1)).tobytes()
            assert is_defined[0] == day.is_valid[row]
    assert len(day) == 17_280
    assert (
        np.isfinite(day.features[: len(rows) // 2]).mean() > 0.99
    )  # the look-back crosses midnight


def test_a_day_says_what_is_usable_and_what_the_quotes_were(dataset, walk):
    day = dataset.day("BTCUSDT", DAY)
    assert day.is_valid[:120].all()
    assert not day.is_valid[121:].any()
    assert day.has_depth
    slot = np.searchsorted(day.quote_slot_ms, day.decision_ms[:120])
    assert np.array_equal(day.quote_slot_ms[slot], day.decision_ms[:120])
    assert np.array_equal(day.quote_bid[slot], day.bid_price[:120])
    last = np.searchsorted(walk.time_ms, day.decision_ms[:120]) - 1
    assert day.bid_price[:120] == pytest.approx(walk.bid_tick[last] / 10)
    assert day.images(np.array([5, 3])).shape == (2, *SMALL.shape)
    measures = dataset.columns("BTCUSDT", DAY, [*dataset.info.measure_names, "bin_width"])
    assert measures["bin_width"][:120] == pytest.approx(0.1, rel=0.5)


def test_a_long_hole_excludes_the_windows_that_look_back_at_it(lake, walk, tmp_path):
    folder = tmp_path / "lake"
    walk.write(LakePaths.of(folder))
    ledger = GapLedger(LakePaths.of(folder).gaps, "recorder")
    hole = (MIDNIGHT_MS - 1_000_000, MIDNIGHT_MS + 60_000)
    ledger.found(
        *("trades", "BTCUSDT", 1, 2), cause="test", at_ns=0, from_ms=hole[0], until_ms=hole[1]
    )
    ledger.flush()
    day = built(folder, tmp_path / "out").day("BTCUSDT", DAY)
    touched = day.decision_ms - LOOK_BACK_MS < hole[1]
    assert not day.is_valid[touched].any()
    assert day.is_valid[:120].sum() == 120 - touched.sum()


def test_a_broken_chain_excludes_the_look_back_after_it(walk, tmp_path):
    keep = np.ones(len(walk.time_ms), bool)
    gone = int(np.searchsorted(walk.time_ms, MIDNIGHT_MS + 100_000))
    keep[gone] = False
    walk.write(LakePaths.of(tmp_path / "lake"), keep=keep)
    day = built(tmp_path / "lake", tmp_path / "out").day("BTCUSDT", DAY)
    broken_ms = walk.time_ms[gone + 1]
    is_after = (day.decision_ms > broken_ms) & (day.decision_ms <= broken_ms + LOOK_BACK_MS)
    assert not day.is_valid[is_after].any()
    assert day.is_valid[:120].sum() == 120 - is_after.sum()


def test_a_day_without_books_is_reconstructed_from_trades_and_says_so(walk, tmp_path):
    walk.write(LakePaths.of(tmp_path / "lake"), books=False)
    dataset = built(tmp_path / "lake", tmp_path / "out")
    day = dataset.day("BTCUSDT", DAY)
    assert not day.has_depth
    assert day.is_valid[:120].sum() > 110
    images = day.images(np.flatnonzero(day.is_valid))
    assert images.any(axis=(0, 1, 3, 4)).all()
    assert np.isnan(day.features[:, day.feature_names.index("spread_bps")]).all()


def test_an_interrupted_build_goes_on_and_a_whole_day_is_left_alone(lake, dataset, tmp_path):
    task = task_of(lake, tmp_path)
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped):
        build_day(task, lambda: next(asked))
    assert not list(tmp_path.rglob("*.parquet"))
    plan(settings_of(lake, tmp_path))
    assert build_day(task).status == BUILT
    assert build_day(task).status == SKIPPED
    assert Dataset.open(tmp_path).sha256() == dataset.sha256()
    (tmp_path / "BTCUSDT" / f"{DAY}.quotes.parquet").unlink()
    assert build_day(task).status == BUILT


def test_a_day_is_built_anew_when_its_source_changed(walk, tmp_path):
    paths = LakePaths.of(tmp_path / "lake")
    walk.write(paths)
    task = task_of(tmp_path / "lake", tmp_path / "out")
    assert build_day(task).status == BUILT
    Walk(AFTER_MS, AFTER_MS + 60_000, seed=6).write(paths)
    assert build_day(task).status == BUILT
    assert build_day(task).status == SKIPPED


def test_a_damaged_file_is_named_and_the_rest_goes_on(walk, tmp_path):
    paths = LakePaths.of(tmp_path / "lake")
    walk.write(paths)
    later = Walk(AFTER_MS, AFTER_MS + 60_000, seed=6)
    later.write(paths)
    bad = max(paths.stream("trades", DAY).iterdir())
    bad.write_bytes(bad.read_bytes()[:-20])
    with capture_logs() as logs:
        day = built(tmp_path / "lake", tmp_path / "out").day("BTCUSDT", DAY)
    assert day.is_valid[:120].all()
    assert any(bad.name in str(entry) for entry in logs)


def test_a_symbol_without_trades_leaves_no_files(lake, tmp_path):
    report = build_day(task_of(lake, tmp_path, symbol="ETHUSDT"))
    assert report.status == EMPTY
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_dataset_of_another_shape_is_not_mixed_with(lake, dataset, tmp_path):
    plan(settings_of(lake, tmp_path))
    with pytest.raises(ConfigError, match="another geometry"):
        plan(settings_of(lake, tmp_path, geometry=None))
    with pytest.raises(ConfigError, match="recorded days from 2024-07-17 to 2024-07-18"):
        plan(settings_of(lake, tmp_path, dates=("2020-01-01",)))
    with pytest.raises(ConfigError, match="height even"):
        plan(settings_of(lake, tmp_path, geometry=ImageGeometry(height=3)))
    with pytest.raises(ConfigError, match="--lake: nowhere"):
        plan(settings_of("nowhere://x", tmp_path))
    with pytest.raises(ConfigError, match="has no ETHUSDT of"):
        dataset.day("ETHUSDT", DAY)
    with pytest.raises(ConfigError, match="no dataset at"):
        Dataset.open(tmp_path / "none")


def test_days_are_named_as_people_write_them():
    assert dates_between("2024-02-28", "2024-03-01") == ("2024-02-28", "2024-02-29", "2024-03-01")
    with pytest.raises(ConfigError, match="--to: '2024-13-01' is no day"):
        dates_between("2024-02-28", "2024-13-01")
    with pytest.raises(ConfigError, match="--to: lies before --from"):
        dates_between("2024-02-28", "2024-02-27")


def test_the_verb_refuses_what_it_cannot_do_in_one_line(lake, capsys, clean_environment):
    build = ["features", "build", "--data-dir", str(lake), "--log-level", "ERROR"]
    for flags, text in (
        (["--from", "18.7."], "--from: '18.7.' is no day"),
        (["--name", "../x"], "--name: letters, digits"),
        (["--workers", "0"], "--workers: must be 1 to 256"),
        (["--symbol", "ADAUSDT", "--workers", "1"], "has no trades of ADAUSDT"),
    ):
        assert main.main([*build, *flags]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert main.main(["features"]) == 2


@pytest.mark.long
def test_the_verb_builds_shows_and_explains(lake, tmp_path, capsys, clean_environment):
    data = ["--data-dir", str(lake), "--symbol", "btcusdt", "--log-level", "ERROR"]
    build = ["features", "build", *data, "--out", str(tmp_path / "sets"), "--height", "8"]
    build += ["--width", "4", "--frames", "2", "--from", DAY, "--workers", "1"]
    assert main.main(build) == 0
    assert "BTCUSDT     2024-07-18  built        17,280     120" in capsys.readouterr().out
    assert main.main(build) == 0
    assert "unchanged" in capsys.readouterr().out
    show = ["features", "show", *data, "--dataset", str(tmp_path / "sets" / "default")]
    picture = tmp_path / "picture.png"
    assert main.main([*show, "--at", f"{DAY}T00:05", "--out", str(picture), "--count", "3"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main.main([*show, "--at", f"{DAY}T12:00"]) == 2
    assert "the nearest is of 2024-07-18T00:10:00" in capsys.readouterr().err


DIES = "2024-07-19"


def _die_once() -> None:
    """The first worker that starts dies after a moment; its mark keeps the others alive."""
    mark = Path(os.environ["ORDERFLOW_TEST_MARK"])
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    import threading  # noqa: PLC0415

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def many_days(tmp_path) -> tuple[Path, tuple[str, ...]]:
    dates = tuple(date_of(START_MS + day * 86_400_000) for day in range(4))
    for number in range(4):
        start_ms = START_MS + number * 86_400_000
        walk = Walk(start_ms, start_ms + 300_000, seed=number)
        walk.write(LakePaths.of(tmp_path / "lake"))
    return tmp_path / "lake", dates


@pytest.mark.long
def test_a_killed_worker_changes_nothing_in_the_files(many_days, tmp_path, monkeypatch):
    folder, dates = many_days
    wanted = settings_of(folder, tmp_path / "here", dates=dates)
    assert {report.status for report in run_here(plan(wanted), 1)} == {BUILT}
    monkeypatch.setenv("ORDERFLOW_TEST_MARK", str(tmp_path / "mark"))
    wanted = settings_of(folder, tmp_path / "there", dates=dates)
    reports = list(run_here(plan(wanted), 2, _die_once))
    assert (tmp_path / "mark").exists()
    assert sorted(report.date for report in reports) == list(dates)
    assert {report.status for report in reports} == {BUILT}
    assert Dataset.open(tmp_path / "here").sha256() == Dataset.open(tmp_path / "there").sha256()
    assert not multiprocessing.active_children()


@pytest.mark.long
def test_a_day_whose_worker_dies_twice_is_named(many_days, tmp_path):
    folder, dates = many_days
    tasks = plan(settings_of(folder, tmp_path / "out", dates=dates))
    reports = list(run_here(tasks[:2], 2, _die_always))
    assert {report.status for report in reports} == {FAILED}
    assert all("died twice" in report.reason for report in reports)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_dask_workers_give_the_same_files_though_one_is_killed(many_days, tmp_path):
    pytest.importorskip("distributed")
    script = """
import json, os, signal, sys, threading, time
from research.build import plan, run_here
from research.dask_run import run_on_dask
from tests.integration.test_features_build import settings_of
from distributed import LocalCluster

if __name__ == "__main__":
    lake, out, *dates = sys.argv[1:]
    tasks = plan(settings_of(lake, out, dates=tuple(dates)))
    with LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]
        threading.Timer(0.4, os.kill, (pids[0], signal.SIGKILL)).start()
        reports = list(run_on_dask(tasks, cluster.scheduler_address))
    print(json.dumps([[r.date, r.status, r.reason] for r in reports]))
"""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    folder, dates = many_days
    wanted = settings_of(folder, tmp_path / "here", dates=dates)
    assert {report.status for report in run_here(plan(wanted), 1)} == {BUILT}
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", folder, tmp_path / "there", *dates],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert sorted(reports) == [[date, BUILT, ""] for date in dates], done.stderr[-2_000:]
    assert Dataset.open(tmp_path / "here").sha256() == Dataset.open(tmp_path / "there").sha256()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_lake_and_a_dataset_may_lie_in_an_object_store(lake, dataset, tmp_path, monkeypatch):
    server_module = pytest.importorskip("moto.server")
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="lake")
        for path in lake.rglob("*.parquet"):
            client.upload_file(str(path), "lake", f"data/{path.relative_to(lake).as_posix()}")
        query = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        wanted = settings_of(f"s3://lake/data{query}", f"s3://lake/sets/default{query}")
        tasks = plan(wanted)
        assert [build_day(task).status for task in tasks] == [BUILT]
        assert [build_day(task).status for task in tasks] == [SKIPPED]
        stored = Dataset.open(wanted.out)
        assert stored.sha256() == dataset.sha256()
        rows = np.array([100, 7])
        day = stored.day("BTCUSDT", DAY)
        assert np.array_equal(day.images(rows), dataset.day("BTCUSDT", DAY).images(rows))
        keys = [o["Key"] for o in client.list_objects_v2(Bucket="lake", Prefix="sets")["Contents"]]
        assert len(keys) == 4
    finally:
        server.stop()
