"""The signals of a real recording, scored by the verb and again by plain arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import main
from domain.events import Action
from feature_store import FeatureStore
from lake.signal_store import signal_store

RECORDING = "recordings/usdm_20240718.ndjson.gz"


def test_the_rules_of_a_recording_are_scored_as_by_hand(
    recordings_dir: Path,
    tmp_path: Path,
    clean_environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "replayed"
    arguments = ["replay", str(recordings_dir / RECORDING), "--headless", "--data-dir", str(root)]
    assert main.main(arguments) == 0
    assert main.main(["signals", "--data-dir", str(root), "--json", "report.json"]) == 0
    rows = {(r.symbol, r.window_start_ms): r for r in FeatureStore(root).read_rows()}
    calls, pending, net, hits = 0, 0, 0.0, 0
    for signal in signal_store(root / "signals").read_rows():
        entry = rows.get((signal.symbol, 5_000 * math.ceil(signal.decided_at_ms / 5_000)))
        leave = entry and rows.get((signal.symbol, entry.window_start_ms + 60_000))
        if entry is None or leave is None:
            pending += 1
        elif signal.action is not Action.HOLD:
            assert entry.mid_price and leave.mid_price
            spreads = [entry.spread_bps or 0.0, leave.spread_bps or 0.0]
            side = 1 if signal.action is Action.BUY else -1
            gain = side * 1e4 * (leave.mid_price / entry.mid_price - 1)
            net += gain - 10 - sum(spreads) / 2
            hits += gain > 0
            calls += 1
    report = json.loads(Path("report.json").read_text())
    scores = report["sources"][0]["summary"]
    assert report["left_out"] == {"horizon not over yet": pending}
    assert scores["calls"] == calls > 10
    assert scores["hit_rate"]["value"] == pytest.approx(hits / calls)
    assert scores["net_total_bps"] == pytest.approx(net)
    assert "too few" in capsys.readouterr().out
