"""Fixtures and profiles shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# Two test processes on two cores: threads of numerical libraries would wait for each other, spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background (nohup, a script's &), this process and its children would ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A verb that a test runs in this process sets the log's level: the next test has the defaults."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def recordings_dir() -> Path:
    """Recorded market data, beside the repository; the test is skipped where there are none."""
    if not RECORDED_DATA.is_dir():
        pytest.skip("no recorded market data beside the repository")
    return RECORDED_DATA


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data folder of this test's own."""
    return tmp_path / "data"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable of ours is set, and no ``.env`` is in the working directory."""
    from config import variables  # noqa: PLC0415 - only tests of settings need all the parts

    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper() in variables():
            monkeypatch.delenv(name)
    return monkeypatch
