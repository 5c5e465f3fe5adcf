"""Training on small datasets: skill where there is some, none where not, leaks, resume, export."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

import main
from domain.errors import ConfigError
from research.presets import preset_of
from research.samples import LabelSpec, Samples
from research.splits import LeakError, Split
from tests.research_days import DATES, FEATURES, SMALL, SPLIT, write_dataset

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
]

from inference.card import nonsense_of, read_card  # noqa: E402
from inference.onnx_model import OnnxModel  # noqa: E402
from research import fitting  # noqa: E402
from research.export import check_parity, export  # noqa: E402
from research.models import Network  # noqa: E402
from research.report import render_html  # noqa: E402
from research.train import TrainOptions, train  # noqa: E402


def options(name: str = "m", **changes) -> TrainOptions:
    base = TrainOptions(
        name=name,
        preset=SMALL,
        symbols=("BTCUSDT",),
        split=SPLIT,
        spec=LabelSpec(),
        device="cpu",
    )
    return msgspec.structs.replace(base, **changes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("market") / "ds")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    card, found = train(dataset, options(), models, lambda _: None)
    return models, card, found


def test_a_planted_pattern_is_found_and_beats_the_naive_baselines(trained):
    _, card, found = trained
    assert found.has_skill
    gains = {b.name: b.macro_f1_gain for b in found.baselines}
    assert {"majority", "always_flat", "last_sign", "logistic_ofi", "gradient_boosting"} == set(
        gains
    )
    assert all(gains[name].low > 0.0 for name in ("majority", "always_flat", "last_sign"))
    assert card.metrics["test"]["macro_f1"][1] > 0.4
    assert {p.dimension for p in found.parts} == {"horizon", "volatility"}


def test_the_report_is_well_formed_html(trained):
    _, card, found = trained
    page = render_html(msgspec.structs.replace(found, model="<b>x</b>"), card)
    assert "<b>x</b>" not in page
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in {"meta", "circle", "rect", "line", "polyline"}:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in {"circle", "rect", "line", "polyline"}:
                assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []
    assert found.verdict in page


def test_the_card_says_what_is_there_and_nonsense_is_refused(trained, dataset):
    models, card, _ = trained
    assert read_card(models / "m") == card
    assert card.data_sha256 == dataset.sha256()
    assert card.train_dates == SPLIT.train
    assert [histogram.name for histogram in card.input_histograms] == list(FEATURES)
    for changes in (
        {"horizon_s": 0},
        {"test_dates": card.train_dates[:1]},
        {"feature_names": (), "geometry": None},
        {"thresholds": {}},
        {"label": "guess"},
        {"schema_version": 99},
    ):
        assert nonsense_of(msgspec.structs.replace(card, **changes)), changes
    folder = models / "other"
    folder.mkdir()
    (folder / "card.json").write_bytes(msgspec.json.encode(card))
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(ConfigError, match="not the file"):
        read_card(folder)
    (folder / "card.json").write_bytes(b'{"name": 1}')
    with pytest.raises(ConfigError, match="cannot be understood"):
        read_card(folder)


def test_shuffled_labels_give_chance(dataset, tmp_path, monkeypatch):
    of_day = Samples.of_day

    def shuffled(self, symbol, date):
        found = of_day(self, symbol, date)
        order = np.random.default_rng(int(date[-2:])).permutation(len(found.labels))
        return msgspec.structs.replace(found, labels=found.labels[order])

    monkeypatch.setattr(Samples, "of_day", shuffled)
    _, found = train(dataset, options(), tmp_path, lambda _: None)
    assert not found.has_skill
    assert found.scores.chance.low <= 0.0 <= found.scores.chance.high
    assert "no skill" in found.verdict


def test_a_leak_planted_on_purpose_is_refused(dataset, tmp_path):
    leaking = Split((*DATES[:3], DATES[4]), DATES[3:4], DATES[4:])
    with pytest.raises(LeakError, match="share time"):
        train(dataset, options(split=leaking), tmp_path, lambda _: None)
    samples = Samples(dataset, ("BTCUSDT",), SPLIT, LabelSpec())
    samples.check(list(SPLIT.train))
    with pytest.raises(LeakError, match=DATES[4]):
        samples.check([*SPLIT.train, DATES[4]])
    assert not (tmp_path / "m").exists()


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(trained, dataset, tmp_path):
    models, card, _ = trained

    def stop(progress):
        if progress.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, options(), tmp_path, stop)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["checkpoint.pt"]
    seen = []
    resumed, _ = train(dataset, options(is_resumed=True), tmp_path, lambda p: seen.append(p.epoch))
    assert seen == [2, 3]
    assert resumed.model_sha256 == card.model_sha256
    assert (tmp_path / "m" / "model.onnx").read_bytes() == (models / "m/model.onnx").read_bytes()
    with pytest.raises(ConfigError, match="other settings"):
        train(dataset, options(is_resumed=True, seed=2), tmp_path, lambda _: None)
    (tmp_path / "m" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(dataset, options(is_resumed=True), tmp_path, lambda _: None)


@pytest.mark.parametrize("preset", ["tiny", "cnn_lstm", "mlp", "logistic"])
def test_every_kind_says_the_same_in_torch_and_onnx(preset, dataset, tmp_path):
    geometry = msgspec.structs.replace(dataset.info.geometry, height=8, width=8)
    kind = preset_of(preset)
    network = Network(kind, geometry, len(FEATURES)).eval()
    random = np.random.default_rng(3)
    images = random.normal(size=(9, *geometry.shape)).astype(np.float16)
    features = random.normal(size=(9, len(FEATURES))).astype(np.float32)
    features[2:5, 1], features[6] = np.nan, 1e30
    images[3] = np.nan
    batch = fitting.Batch(images, features, np.zeros(9, np.int64))
    path = tmp_path / "model.onnx"
    export(network, geometry, len(FEATURES), path)
    assert check_parity(network, path, batch) <= 1e-4
    alone = OnnxModel(path)(images[:1], features[:1])
    assert np.abs(alone - OnnxModel(path)(batch.images, batch.features)[:1]).max() < 1e-6


def test_the_verbs_train_and_evaluate_and_their_errors_are_one_line(
    data_dir, tmp_path, capsys, clean_environment
):
    write_dataset(data_dir / "datasets" / "default", images=False, windows=300)
    common = ["--data-dir", str(data_dir)]
    assert main.main(["train", *common, "--preset", "mlp", "--epochs", "2"]) == 0
    output = capsys.readouterr()
    assert "epoch 2/2" in output.err
    assert "verdict: " in output.out
    folder = data_dir / "models" / "mlp-60s"
    page = tmp_path / "report.html"
    code = main.main(["evaluate", *common, "--model", str(folder), "--html", str(page), "--json"])
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dates"] == [DATES[4]]
    assert page.read_text().startswith("<!doctype html>")
    sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert read_card(folder).model_sha256 == sha256
    for arguments, expected in (
        (["train", *common, "--preset", "huge"], "--preset: no 'huge'"),
        (["train", *common], "--preset: tiny takes images"),
        (["train", *common, "--symbol", "ETHUSDT"], "no days of ETHUSDT"),
        (["train", *common, "--dataset", "none"], "no dataset at"),
        (["train", *common, "--train-days", "9"], "--train-days"),
        (["train", *common, "--preset", "mlp", "--train-days", "2", "--steps", "4"], "--steps"),
        (["train", *common, "--preset", "mlp", "--name", "new", "--resume"], "--resume"),
        (["evaluate", *common, "--model", str(tmp_path / "no")], "--model: cannot read"),
        (["evaluate", *common, "--model", str(folder), "--latency-ms", "1"], "--latency-ms"),
    ):
        assert main.main(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert expected in error
        assert len(error.splitlines()) == 1


def test_walking_forward_tests_each_step_on_the_days_after_the_one_before(
    data_dir, capsys, clean_environment
):
    write_dataset(data_dir / "datasets" / "default", images=False, windows=300)
    common = ["train", "--data-dir", str(data_dir), "--preset", "mlp", "--epochs", "1"]
    assert main.main([*common, "--steps", "2", "--name", "walk"]) == 0
    output = capsys.readouterr().out
    assert "walking forward:" in output
    assert "of 2 steps" in output
    cards = [read_card(data_dir / "models" / f"walk-{step}") for step in (1, 2)]
    assert [card.test_dates for card in cards] == [(DATES[3],), (DATES[4],)]
    assert [card.train_dates for card in cards] == [DATES[:2], DATES[1:3]]
    assert main.main([*common, "--steps", "2", "--name", "walk", "--resume"]) == 0


def test_without_torch_the_verb_says_what_to_install(data_dir, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))
    assert main.main(["train", "--data-dir", str(data_dir)]) == 2
    assert capsys.readouterr().err == "error: training needs torch: run make setup-research\n"
