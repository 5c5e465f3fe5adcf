"""``main.py repair`` and ``main.py prune`` as a user calls them."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from urllib.parse import urlsplit

import pytest

import main
from collectors.recording import open_folder
from config import DEMO_SEED, Settings
from domain.events import GapState
from lake.gap_ledger import GapLedger
from lake.paths import LakePaths
from lake.source import claim_source
from simulator.synthetic import SyntheticMarket
from tests.integration.live_processes import Program, simulating
from tests.stream_samples import stored_ids, trades, write

SYMBOL = "BTCUSDT"


@pytest.fixture(autouse=True)
def _isolated(clean_environment):
    """No variable of this machine."""


@pytest.fixture
def paths(data_dir):
    settings = Settings(source="demo", data_dir=data_dir)
    claim_source(data_dir, settings.source_description)
    return LakePaths.of(data_dir)


def lack(paths, *, symbol=SYMBOL, end_ms=None, beyond=0):
    """A hole of 5 s, two minutes ago; with ``beyond`` it ends in ids yet to come."""
    now_ms = time.time_ns() // 1_000_000
    end_ms = end_ms or now_ms - 120_000
    market = SyntheticMarket(DEMO_SEED, (SYMBOL, "ETHUSDT"), start_ms=now_ms)
    rows = market.between(symbol, end_ms - 5_000, end_ms).rows
    ids, times = rows["agg_trade_id"].tolist(), rows["transact_time_ms"].tolist()
    ledger = GapLedger(paths.gaps, "recorder")
    ledger.found(
        *("trades", symbol, ids[1], ids[-1] + beyond),
        cause="recorder was not running",
        at_ns=1,
        from_ms=times[0],
        until_ms=times[-1] + 1_000,
    )
    ledger.flush()
    return ids[1:]


def repair(paths, *arguments):
    return main.main(["repair", "--source", "demo", "--data-dir", str(paths.root), *arguments])


def test_repair_fills_holes_and_says_so_in_a_table(paths, capsys):
    ids = lack(paths)
    assert repair(paths) == 0
    assert stored_ids(paths) == ids
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith(SYMBOL)]
    assert row == [SYMBOL, f"{len(ids):,}", f"{len(ids):,}", "0", "0", "0", "-", "0"]
    assert repair(paths) == 0
    assert "No trades are missing." in capsys.readouterr().out
    assert stored_ids(paths) == ids


def test_repair_ends_with_4_when_something_may_be_repaired_later(paths, capsys):
    ids = lack(paths, beyond=10_000_000)
    assert repair(paths) == 4
    assert stored_ids(paths)[: len(ids)] == ids
    assert "Holes that may be repaired later: 1" in capsys.readouterr().out


def test_repair_of_a_folder_without_a_recording_says_that_there_is_nothing(tmp_path, capsys):
    assert main.main(["repair", "--source", "demo", "--data-dir", str(tmp_path / "none")]) == 0
    assert "Nothing is recorded" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_repair_beside_a_running_recorder_is_refused_and_names_it(paths, capsys):
    lack(paths)
    with open_folder(paths, Settings(source="demo", data_dir=paths.root).source_description):
        assert repair(paths) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is in use by the recorder with pid {os.getpid()}" in line
    assert line.endswith("which repairs by itself")


def test_repair_of_another_sources_folder_is_refused(paths, capsys):
    lack(paths)
    assert main.main(["repair", "--data-dir", str(paths.root)]) == 2
    assert "holds data of market um, seed 1" in capsys.readouterr().err


def test_repair_without_an_exchange_ends_with_3_and_changes_nothing(data_dir, capsys):
    nowhere = "http://127.0.0.1:9"
    claim_source(data_dir, Settings(data_dir=data_dir).source_description)
    paths = LakePaths.of(data_dir)
    lack(paths)
    assert main.main(["repair", "--data-dir", str(data_dir), "--binance-rest-url", nowhere]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert [gap.state for gap in GapLedger(paths.gaps, "recorder").all()] == [GapState.OPEN]


def test_repair_does_not_take_a_recording_as_its_source(tmp_path, capsys):
    path = tmp_path / "day.ndjson"
    path.write_text("")
    assert main.main(["repair", "--source", f"replay:{path}"]) == 2
    assert "SOURCE (--source)" in capsys.readouterr().err


def test_prune_deletes_only_what_a_dry_run_has_named(paths, capsys):
    for number in (0, 60, 60 + 86_400):  # July 18, 19, 20
        write(paths, trades([number]))
    flags = ["prune", "--data-dir", str(paths.root), "--retention-days-stream-trades", "2"]
    assert main.main([*flags, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2024-07-18" in shown
    assert "1 would go" in shown
    assert stored_ids(paths) == [0, 60, 86_460]
    assert main.main(flags) == 0
    assert stored_ids(paths) == [60, 86_460]
    assert "1 deleted" in capsys.readouterr().out


def test_prune_says_why_a_day_stays(paths, capsys):
    write(paths, trades([0]))
    write(paths, trades([60 + 3 * 86_400]))
    ledger = GapLedger(paths.gaps, "recorder")
    at_ms = 1_721_347_200_000 - 50_000
    ledger.found("trades", "BTCUSDT", 5, 6, cause="x", at_ns=1, from_ms=at_ms, until_ms=at_ms)
    ledger.flush()
    flags = ["--data-dir", str(paths.root), "--retention-days-stream-trades", "1"]
    assert main.main(["prune", *flags]) == 0
    shown = capsys.readouterr().out
    assert "open repairs: 1" in shown
    assert "0 deleted" in shown
    assert stored_ids(paths) == [0, 60 + 3 * 86_400]


def test_prune_without_settings_deletes_nothing(paths, capsys):
    write(paths, trades([0]))
    assert main.main(["prune", "--data-dir", str(paths.root)]) == 0
    assert "Nothing is ever deleted" in capsys.readouterr().out
    assert stored_ids(paths) == [0]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_repairs_killed_at_random_moments_store_every_trade_once(tmp_path):
    """``kill -9`` of real processes; each step is tried with kill points elsewhere."""
    chance = random.Random(5)
    data = tmp_path / "data"
    now_ms = time.time_ns() // 1_000_000
    with simulating(tmp_path / "exchange", seed=DEMO_SEED) as urls:
        urls["BINANCE_VISION_URL"] = urls["BINANCE_REST_URL"]
        host = urlsplit(urls["BINANCE_WS_URL"]).netloc
        claim_source(data, {"market": "um", "host": host})
        paths = LakePaths.of(data)
        wanted = {symbol: [] for symbol in (SYMBOL, "ETHUSDT")}
        for symbol, ids in wanted.items():
            for number in range(12, 0, -1):
                ids.extend(lack(paths, symbol=symbol, end_ms=now_ms - 20_000 * number))
        for _ in range(3):  # all in all within one minute's request weight
            program = Program(tmp_path, "repair", "--data-dir", data, variables=urls)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(chance.uniform(0.8, 2.5))
            program.kill()
        assert Program(tmp_path, "repair", "--data-dir", data, variables=urls).wait() == 0
        for symbol, ids in wanted.items():
            found = stored_ids(paths, symbol)  # and what lies between two of the holes
            assert len(found) == len(set(found))
            assert set(ids) <= set(found)
