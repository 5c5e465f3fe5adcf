"""``main.py signals``: usage, files, and what a user without signals is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import main
from domain.events import Action
from tests.signal_market import random_walk, signal_at, write_market, write_signals


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable and no ``.env`` of this machine; the working directory is ``tmp_path``."""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A data folder with 100 signals on each of two symbols."""
    root = tmp_path / "stored"
    signals = []
    for number, symbol in enumerate(("BTCUSDT", "SOLUSDT")):
        write_market(root, random_walk(number, 900), symbol)
        signals += [
            signal_at(8 * k + 20, Action.BUY if k % 2 else Action.SELL, symbol=symbol)
            for k in range(100)
        ]
    write_signals(root, signals)
    return root


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "yesterday"], "--from: must be a day or time"),
        (["--to", "2026-13-01"], "--to: must be a day or time"),
        (["--from", "2026-01-02", "--to", "2026-01-01"], "--to: lies before --from"),
        (["--fee-bps", "-1"], "--fee-bps: must be a number"),
        (["--fee-bps", "nan"], "--fee-bps: must be a number"),
        (["--symbols", "BTC/USDT"], "SYMBOLS (--symbols)"),
        (["--market", "cm"], "MARKET (--market)"),
        (["--data-dir", "absent"], "DATA_DIR (--data-dir): absent does not exist"),
        (["--json", "absent/report.json"], "--json: absent/report.json lies in a folder"),
        (["--html", "."], "--html: . is a folder"),
        (["--duration", "5"], "--duration"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["signals", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert captured.out == ""


def test_without_any_data_it_says_so_and_creates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["signals"]) == 0
    assert "no signals" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_folder_beside_that_has_signals_is_named(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.rename("data-demo")
    assert main.main(["signals"]) == 0
    assert "--data-dir can be data-demo" in capsys.readouterr().out


def test_the_report_covers_every_symbol_unless_some_are_named(
    stored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYMBOLS", "ETHUSDT")  # what a run follows is not what has been signalled
    assert main.main(["signals", "--data-dir", str(stored)]) == 0
    assert "200 signals on 2 symbols (BTCUSDT, SOLUSDT)" in capsys.readouterr().out
    assert main.main(["signals", "--data-dir", str(stored), "--symbols", "solusdt"]) == 0
    assert "100 signals on 1 symbol (SOLUSDT)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (["--from", "2024-07-18"], 200),
        (["--to", "2024-07-18"], 200),
        (["--to", "2024-07-17"], 0),
        (["--from", "2024-07-19"], 0),
        (["--from", "2024-07-18T00:30"], 2 * 57),
        (["--to", "2024-07-18T00:30"], 2 * 43),
        (["--from", "2024-07-18T02:30+02:00"], 2 * 57),
    ],
)
def test_days_are_whole_and_times_are_utc_unless_they_say_otherwise(
    stored: Path, capsys: pytest.CaptureFixture[str], chosen: list[str], count: int
) -> None:
    assert main.main(["signals", "--data-dir", str(stored), *chosen]) == 0
    text = capsys.readouterr().out
    assert f"{count} signals" in text if count else "no signals" in text


def test_json_and_page_are_written_and_written_again(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["signals", "--data-dir", str(stored), "--json", "r.json", "--html", "r.html"]
    assert main.main(arguments) == 0
    assert main.main([*arguments, "--fee-bps", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["fee_bps"] == 0.0
    (rules,) = found["sources"]
    assert rules["summary"]["calls"] == 200
    assert rules["summary"]["cost_bps"] == pytest.approx(0.2)
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json", "stored"]


def test_spot_has_its_own_folder_and_fees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "stored"
    write_market(root / "spot", random_walk(1, 100))
    write_signals(root / "spot", [signal_at(30)])
    assert main.main(["signals", "--data-dir", str(root), "--market", "spot"]) == 0
    assert "fees 10 bps a leg" in " ".join(capsys.readouterr().out.split())


def test_reading_changes_nothing_in_the_folder(stored: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in stored.rglob("*")}
    assert main.main(["signals", "--data-dir", str(stored)]) == 0
    assert {p: p.stat().st_mtime_ns for p in stored.rglob("*")} == before
