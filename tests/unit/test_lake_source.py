from __future__ import annotations

import msgspec
import pytest

from domain.errors import DataFolderError
from domain.market import Market
from lake.atomic import Step
from lake.paths import LakePaths
from lake.source import SOURCE_FILE, claim_source, read_source
from tests.lake_fakes import FullDisk

BINANCE = {"market": "um", "host": "fstream.binance.com"}
DEMO = {"market": "um", "seed": 7}


def test_the_first_run_claims_the_folder_and_the_same_source_may_return(tmp_path):
    claim_source(tmp_path / "data", BINANCE)
    claim_source(tmp_path / "data", BINANCE)
    assert msgspec.json.decode((tmp_path / "data" / SOURCE_FILE).read_bytes()) == BINANCE


def test_another_source_is_refused_naming_the_folder_and_both(tmp_path):
    claim_source(tmp_path, BINANCE)
    with pytest.raises(DataFolderError) as caught:
        claim_source(tmp_path, DEMO)
    assert str(caught.value) == (
        f"data folder {tmp_path} holds data of market um, host fstream.binance.com, "
        "this run's source is market um, seed 7; choose another --data-dir"
    )
    assert read_source(tmp_path) == BINANCE


def test_of_two_that_claim_at_once_one_is_refused(tmp_path):
    def race(step, _path):
        if step is Step.SYNCED:
            claim_source(tmp_path, DEMO)

    with pytest.raises(DataFolderError, match="holds data of market um, seed 7"):
        claim_source(tmp_path, BINANCE, hook=race)


def test_a_damaged_description_is_one_line(tmp_path):
    (tmp_path / SOURCE_FILE).write_bytes(b"{\xff")
    with pytest.raises(DataFolderError, match=r"^data folder .*source.json is damaged .*$"):
        claim_source(tmp_path, BINANCE)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(DataFolderError, match=r"^data folder .* cannot be used: .*No space.*$"):
        claim_source(tmp_path, BINANCE, hook=FullDisk())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match="Not a directory"):
        claim_source(tmp_path / "file", BINANCE)


def test_a_folder_without_description_reads_as_empty(tmp_path):
    assert read_source(tmp_path) == {}


def test_futures_lie_at_the_root_and_other_markets_below(tmp_path):
    futures, spot = LakePaths.of(tmp_path), LakePaths.of(tmp_path, Market.SPOT)
    assert futures.features == tmp_path / "features"
    assert spot.features == tmp_path / "spot" / "features"
    assert spot.stream("trades", "2024-07-18") == (
        tmp_path / "spot" / "raw" / "stream" / "trades" / "2024-07-18"
    )
    assert futures.klines("1m") == tmp_path / "raw" / "1m"


def test_raw_and_curated_folders_may_lie_elsewhere(tmp_path):
    paths = LakePaths.of(tmp_path, Market.SPOT, raw=tmp_path / "r", curated=tmp_path / "c")
    assert paths.historical("BTCUSDT") == tmp_path / "r" / "spot" / "historical" / "BTCUSDT"
    assert paths.curated == tmp_path / "c" / "spot"
    assert paths.signals == tmp_path / "spot" / "signals"
