"""The files under deploy/ name metrics that exist, and Prometheus' own tool accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.health import HealthChecks, HealthSettings, Readings
from monitoring.metric_names import METRICS, PREFIX
from monitoring.metrics import Metrics

SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.fixture
def exposition() -> str:
    metrics = Metrics(dict, version="1", labels={"verb": "run"})
    body, _ = metrics.exposition(HealthChecks(HealthSettings()).report({}))
    return body.decode()


def known(exposition: str) -> set[str]:
    described = {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}
    return described | {PREFIX + metric.name for metric in METRICS}


def named(text: str) -> set[str]:
    found = set(re.findall(r"\borderflow_[a-z0-9_]+", text))
    return {name for name in found if not name.startswith("orderflow_token")}


def deploy_texts(repository: Path) -> dict[str, str]:
    rules = (repository / "deploy/prometheus/alerts.yml").read_text("utf-8")
    board = json.loads((repository / "deploy/grafana/dashboards/orderflow.json").read_text("utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 30
    return {"alerts.yml": rules, "orderflow.json": "\n".join(asked)}


@pytest.mark.parametrize("name", ["alerts.yml", "orderflow.json"])
def test_every_metric_in_the_files_exists(name: str, repository: Path, exposition: str) -> None:
    text = deploy_texts(repository)[name]
    asked = named(text)
    assert asked
    there = known(exposition)
    for metric in asked:
        whole = next((metric.removesuffix(s) for s in SUFFIXES if metric.endswith(s)), metric)
        assert metric in there or whole in there, f"{name} asks for {metric}"


def test_names_and_labels_keep_to_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert not re.search(r"_(ms|mib|kib|percent|count)(_|$)", metric.name), metric.name
        assert "symbol" not in metric.pattern.groupindex
        assert metric.about.endswith(".")


def promtool(*arguments: str, folder: Path, text: str = "") -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr  # promtool's lint


def test_promtool_accepts_the_rules_and_their_tests(repository: Path) -> None:
    folder = repository / "deploy/prometheus"
    promtool("check", "rules", "alerts.yml", folder=folder)
    promtool("test", "rules", "alerts_test.yml", folder=folder)


def test_promtool_accepts_the_metrics(repository: Path) -> None:
    values: Readings = {
        "connection.trades.frames": 5,
        "connection.trades.ended.timeout": 1,
        "connection.trades.state": "healthy",
        "rest.replies./fapi/v1/klines.200": 3,
        "ai.groq.ok": 1,
        "ai.groq.state": "closed",
        "ai.groq.usd_today": 0.25,
        "bus.subscriber.view.waiting_count": 0,
    }
    metrics = Metrics(lambda: values, version="1", labels={})
    body, _ = metrics.exposition(HealthChecks(HealthSettings()).report(values))
    promtool("check", "metrics", folder=repository, text=body.decode())
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["orderflow_feed_messages_total", "trades"] == 5
    assert samples["orderflow_feed_disconnects_total", "timeout", "trades"] == 1
    assert samples["orderflow_feed_state", "healthy", "trades"] == 1
    assert samples["orderflow_rest_replies_total", "/fapi/v1/klines", "200"] == 3
    assert samples["orderflow_ai_calls_total", "groq", "ok"] == 1
    assert samples["orderflow_ai_cost_today_dollars", "groq"] == 0.25
    assert ("orderflow_ai_calls_total", "groq", "state") not in samples


def test_the_service_is_fed_by_progress_and_stops_in_order(repository: Path) -> None:
    unit = (repository / "deploy/orderflow.service").read_text("utf-8")
    options = dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line))
    assert options["Type"] == "notify"
    assert "WatchdogSec" in options
    assert options["KillSignal"] == options["WatchdogSignal"] == "SIGTERM"
    assert options["RestartPreventExitStatus"] == "2"
