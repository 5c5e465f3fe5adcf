"""Fixtures of the end-to-end tests: recordings with what their replay stores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.integration.live_parity import Rows, replayed
from tests.integration.live_processes import Program
from tests.integration.live_recordings import MIDNIGHT_MS, cut, record_synthetic

RECORDING = "recordings/usdm_20240718.ndjson.gz"
SHORT_S = 80.0


class Market(msgspec.Struct):
    """A recording over midnight and what its replay stores."""

    recording: Path
    truth: Rows
    length_ms: int


type MarketOf = Callable[..., Market]


@pytest.fixture(scope="session")
def market_of(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> MarketOf:
    """Recordings by name ("synthetic" or "recorded"), 80 s or whole; made once per process."""
    made: dict[tuple[str, bool], Market] = {}

    def make(name: str, *, is_whole: bool) -> Market:
        folder = tmp_path_factory.mktemp(name)
        path, length_s = folder / "recording.ndjson.gz", 180.0 if is_whole else SHORT_S
        if name == "synthetic":
            record_synthetic(path, length_s=length_s, start_ms=MIDNIGHT_MS - int(length_s * 600))
        else:
            path, length_s = _recorded(request.getfixturevalue("recordings_dir"), path, is_whole)
        return Market(path, replayed(path, folder / "truth"), int(length_s * 1_000))

    def market(name: str, *, is_whole: bool = False) -> Market:
        if (name, is_whole) not in made:
            made[name, is_whole] = make(name, is_whole=is_whole)
        return made[name, is_whole]

    return market


def _recorded(recordings: Path, path: Path, is_whole: bool) -> tuple[Path, float]:
    if is_whole:
        return recordings / RECORDING, 480.0
    return cut(recordings / RECORDING, path, from_s=135.0, length_s=SHORT_S), SHORT_S


@pytest.fixture(autouse=True)
def _own_weight_budget(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ports are used again: no test, nor a process it starts, may inherit another one's ban."""
    tmp_path_factory.getbasetemp()  # lies in the machine's temporary folder, not in this one
    with (
        tempfile.TemporaryDirectory(prefix="orderflow-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """What a failed test started does not outlive it."""
    before = len(Program.started)
    yield
    for program in Program.started[before:]:
        if program.is_running:
            program.kill()
    del Program.started[before:]
