"""A trained model beside the bot: the same probabilities as offline, and what it refuses."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
]

import main  # noqa: E402
from config import Settings  # noqa: E402
from domain.errors import ConfigError  # noqa: E402
from domain.events import Signal  # noqa: E402
from domain.market import Market  # noqa: E402
from inference.card import CARD_FILE, MODEL_FILE  # noqa: E402
from inference.model import Model, _key  # noqa: E402
from inference.symbol_input import REASONS  # noqa: E402
from lake.paths import LakePaths  # noqa: E402
from lake.signal_store import signal_store  # noqa: E402
from market_orchestrator.market_orchestrator import replay  # noqa: E402
from market_orchestrator.model_signals import model_of  # noqa: E402
from research.build import BuildSettings, plan  # noqa: E402
from research.dataset import Dataset  # noqa: E402
from research.day_task import build_day  # noqa: E402
from simulator.settings import SimulatorSettings  # noqa: E402
from tests.book_days import DAY, START_MS, Walk  # noqa: E402
from tests.integration.live_parity import LiveRun, Rows, rows_of, running, serving  # noqa: E402
from tests.integration.live_parity import replayed as replayed_rows  # noqa: E402
from tests.integration.live_recordings import record_synthetic  # noqa: E402
from tests.model_folders import GEOMETRY, probabilities, write_model  # noqa: E402

TOLERANCE = 1e-6
# What becomes of a question to the model.
DEALT_WITH = ("answered", "overtaken", "failed", *map(_key, REASONS))


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    """Twelve minutes after midnight."""
    folder = tmp_path_factory.mktemp("lake")
    Walk(START_MS, START_MS + 720_000, trades_per_s=8.0).write(LakePaths.of(folder))
    return folder


@pytest.fixture(scope="module")
def dataset(lake, tmp_path_factory) -> Dataset:
    out = tmp_path_factory.mktemp("out")
    settings = BuildSettings(
        lake=str(lake),
        out=str(out),
        market=Market.UM,
        symbols=("BTCUSDT",),
        dates=(DAY,),
        window_ms=5_000,
        geometry=GEOMETRY,
    )
    for task in plan(settings):
        build_day(task)
    return Dataset.open(out)


def replayed(lake: Path, model: Path, data_dir: Path) -> list[dict[str, Any]]:
    """The model's signals of a replay."""
    settings = Settings(source=f"replay:{lake}", data_dir=data_dir, model_dir=model)
    assert settings.replay_path is not None
    assert asyncio.run(replay(settings, settings.replay_path)) == 0
    rows = signal_store(LakePaths.of(data_dir).signals).partitioned.read().to_pylist()
    return [row for row in rows if row["source"] == "model:untrained"]


@pytest.mark.parametrize("preset", ["tiny", "mlp", "cnn_lstm"])
def test_a_replay_says_what_offline_says_of_the_same_windows(
    preset, lake, dataset, tmp_path, clean_environment
):
    write_model(tmp_path / "model", preset=preset)
    signals = replayed(lake, tmp_path / "model", tmp_path / "data")
    day = dataset.day("BTCUSDT", DAY)
    rows = np.flatnonzero(day.is_valid)
    images = day.images(rows)
    offline = probabilities(tmp_path / "model", images, day.features[rows])
    by_time = dict(zip(day.decision_ms[rows].tolist(), offline.tolist(), strict=True))
    assert len(signals) > 60
    # A replay does not know of the first and the last window whether they are whole.
    assert [s["window_end_ms"] for s in signals] == sorted(by_time)[1:-1]
    for signal in signals:
        live = (signal["p_down"], signal["p_flat"], signal["p_up"])
        assert live == pytest.approx(by_time[signal["window_end_ms"]], abs=TOLERANCE)


def model_signals(data_dir: Path) -> dict[str, Signal]:
    found = signal_store(LakePaths.of(data_dir).signals).read_rows()
    return {signal.signal_id: signal for signal in found if signal.source == "model:untrained"}


async def run_until_answered(recording: Path, folder: Path, rows: Rows, **given: Any) -> int:
    """Until the bot's rows are there and its model has answered; how many questions it passed over."""
    simulated = SimulatorSettings(recording=recording, speed=10.0)
    async with serving(simulated) as exchange, running(exchange, folder, **given) as run:

        def counts() -> dict[str, int]:
            read = run.bot.read()
            return {name: int(read[f"model.{name}"] or 0) for name in ("asked", *DEALT_WITH)}

        def is_answered(_: LiveRun) -> bool:
            found = counts()
            return found["asked"] == sum(found[name] for name in DEALT_WITH)

        await run.until_equal(rows)
        await run.until(is_answered)
        return counts()["overtaken"]


def test_a_live_bot_says_what_its_replay_says(tmp_path, clean_environment):
    write_model(tmp_path / "model")
    recording = record_synthetic(tmp_path / "day.ndjson.gz", length_s=420.0, start_ms=START_MS)
    # Books come on another socket than the trades that close a window, which waits for them so long.
    given = {"model_dir": tmp_path / "model", "window_lateness_ms": 8_000}
    rows = replayed_rows(recording, tmp_path / "replayed", **given)
    wanted = model_signals(tmp_path / "replayed")
    overtaken = asyncio.run(run_until_answered(recording, tmp_path / "live", rows, **given))
    found = model_signals(tmp_path / "live")
    both = found.keys() & wanted.keys()
    assert len(wanted) >= 20
    # Of questions that pile up the newest is answered; about windows that come late none is asked.
    late = sum(row.origin != "live" for row in rows_of(tmp_path / "live").values())
    assert len(both) >= max(10, len(wanted) - overtaken - late)
    for name in both:
        live, again = found[name], wanted[name]
        assert (live.p_down, live.p_flat, live.p_up) == (again.p_down, again.p_flat, again.p_up)
        assert (live.context_hash, live.price, live.evidence) == (
            again.context_hash,
            again.price,
            again.evidence,
        )
        assert live.latency_ms > 0.0 == again.latency_ms
        assert live.decided_at_ms >= live.window_end_ms


def test_a_model_that_does_not_fit_the_run_is_refused_in_one_line(tmp_path, clean_environment):
    card = write_model(tmp_path / "model", preset="logistic")
    fits = {"market": "um", "window_ms": 5_000, "symbols": ("ETHUSDT", "BTCUSDT")}
    assert Model.open(tmp_path / "model", **fits).symbols == ("BTCUSDT",)

    def refused(**changes: Any) -> str:
        (tmp_path / "model" / CARD_FILE).write_bytes(
            msgspec.json.encode(msgspec.structs.replace(card, **changes))
        )
        with pytest.raises(ConfigError) as error:
            Model.open(tmp_path / "model", **fits)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "inputs of version 0" in refused(input_version="0")
    assert "features" in refused(feature_names=("noise",))
    assert "market spot" in refused(market="spot")
    assert "windows of 1 s" in refused(window_ms=1_000)
    assert "SOLUSDT" in refused(symbols=("SOLUSDT",), thresholds={"SOLUSDT": 0.1})
    assert "not the file" in refused(model_sha256="0")
    assert "height even" in refused(geometry=msgspec.structs.replace(GEOMETRY, height=7))
    (tmp_path / "model" / CARD_FILE).write_bytes(b"{")
    with pytest.raises(ConfigError, match="cannot be understood"):
        Model.open(tmp_path / "model", **fits)


def test_a_file_that_is_no_model_or_takes_something_else_is_refused(tmp_path, clean_environment):
    write_model(tmp_path / "model")
    other = write_model(tmp_path / "other", geometry=msgspec.structs.replace(GEOMETRY, frames=8))
    (tmp_path / "model" / CARD_FILE).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(other, geometry=GEOMETRY))
    )
    (tmp_path / "model" / MODEL_FILE).write_bytes((tmp_path / "other" / MODEL_FILE).read_bytes())
    settings = Settings(symbols="BTCUSDT", model_dir=tmp_path / "model")
    with pytest.raises(ConfigError, match="refused its input"):
        model_of(settings, settings.symbols)
    garbage = b"no model"
    (tmp_path / "model" / MODEL_FILE).write_bytes(garbage)
    (tmp_path / "model" / CARD_FILE).write_bytes(
        msgspec.json.encode(
            msgspec.structs.replace(other, model_sha256=hashlib.sha256(garbage).hexdigest())
        )
    )
    with pytest.raises(ConfigError, match="is no model"):
        model_of(settings, settings.symbols)


def test_run_names_a_missing_model_in_one_line(tmp_path, capsys, clean_environment):
    code = main.main(
        ["run", "--source", "demo", "--data-dir", str(tmp_path), "--model", str(tmp_path / "no")]
    )
    assert code == 2
    assert "--model: cannot read" in capsys.readouterr().err
