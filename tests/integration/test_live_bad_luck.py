"""Bad input and bad luck, as a user meets them: real processes, their exit codes and their words."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import MarketOf
from tests.integration.live_parity import check_parity, differences, rows_of
from tests.integration.live_processes import (
    FAST,
    Program,
    has_begun,
    has_rows,
    simulating,
    start_bot,
)

CANARY = "sk-canary-0123456789abcdef"
STOP_LIMIT_S = 10.0
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that point at an endless exchange in a process of its own."""
    with simulating(tmp_path_factory.mktemp("exchange"), seed=5, speed=5) as found:
        yield found


def error_line(program: Program) -> str:
    """The one line that says what is wrong, without the prefix."""
    lines = [line for line in program.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, program.stderr
    return lines[0].removeprefix("error: ")


def run_to_the_end(folder: Path, *arguments: object, **variables: str) -> tuple[int, str]:
    program = Program(folder, *arguments, variables={**FAST, **variables})
    code = program.wait()
    return code, error_line(program)


# --- bad input ----------------------------------------------------------------------------


def test_an_unknown_symbol_is_refused(tmp_path: Path, urls: dict[str, str]) -> None:
    code, line = run_to_the_end(
        tmp_path, "run", "--headless", "--symbols", "BTCUSDT,NOSUCHUSDT", **urls
    )
    assert code == 2
    assert "SYMBOLS" in line
    assert "NOSUCHUSDT" in line


@pytest.mark.parametrize(
    ("arguments", "variables", "field"),
    [
        (["run"], {"WS_REDUNDANCY": "many"}, "WS_REDUNDANCY"),
        (["simulate", "--faults", "random:x"], {}, "faults"),
        pytest.param(["run", "--window-duration", "7"], {}, "WINDOW_DURATION", marks=LONG),
        pytest.param(["run"], {"BINANCE_WS_URL": "https://no host"}, "BINANCE_WS_URL", marks=LONG),
        pytest.param(["run", "--durration", "5"], {}, "--durration", marks=LONG),
    ],
)
def test_a_malformed_setting_is_named(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], field: str
) -> None:
    code, line = run_to_the_end(tmp_path, *arguments, **variables)
    assert code == 2
    assert field in line


def test_an_exchange_out_of_reach_ends_with_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, line = run_to_the_end(
        tmp_path,
        *("run", "--headless", "--data-dir", tmp_path / "data"),
        BINANCE_WS_URL=f"ws://127.0.0.1:{port}",
        BINANCE_REST_URL=f"http://127.0.0.1:{port}",
        WS_MAX_RECONNECT_ATTEMPTS="2",
        WS_BACKOFF_CAP="0.1",
    )
    assert code == 3
    assert line


def test_a_recording_with_garbage_in_it_is_served_and_replayed(
    market_of: MarketOf, tmp_path: Path
) -> None:
    """Foreign lines in the middle, and the file cut off within its compression."""
    market = market_of("synthetic")
    lines = gzip.decompress(market.recording.read_bytes()).splitlines(keepends=True)
    lines.insert(40, b"\x00\xff garbage\n")
    lines.insert(90, b"1740787150000000000 <html>502</html>\n")
    lines.insert(95, b"\n")
    whole = gzip.compress(b"".join(lines), 1)
    path = tmp_path / "garbage.ndjson.gz"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    replaying = Program(tmp_path, "replay", path, "--data-dir", tmp_path / "replayed")
    assert replaying.wait() == 0
    kept = (tmp_path / "replayed" / "quarantine").glob("*.jsonl")
    assert sum(len(file.read_bytes().splitlines()) for file in kept) == 2
    replayed = rows_of(tmp_path / "replayed")
    assert 8 < len(replayed) < len(market.truth)
    assert differences(replayed, {k: v for k, v in market.truth.items() if k in replayed}) == []
    with simulating(tmp_path / "sim", recording=path, speed=40) as urls:
        bot = start_bot(tmp_path / "bot", tmp_path / "live", variables=urls)
        assert bot.until(lambda: not differences(replayed, rows_of(tmp_path / "live")))
        assert bot.stop() == 0


@pytest.mark.parametrize("verb", ["replay", "simulate"])
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping: milk\n")
    arguments = ["replay", path] if verb == "replay" else ["simulate", "--recording", path]
    code, line = run_to_the_end(tmp_path, *arguments)
    assert code == 2
    assert "notes.txt" in line


# --- the data folder ----------------------------------------------------------------------


def test_a_second_bot_on_the_folder_and_another_source_are_refused(
    tmp_path: Path, data_dir: Path, urls: dict[str, str]
) -> None:
    first = start_bot(tmp_path / "first", data_dir, variables=urls)
    assert first.until(lambda: has_begun(data_dir))
    second = Program(
        tmp_path / "second", "run", "--headless", "--data-dir", data_dir, variables=FAST | urls
    )
    code, line = second.wait(), error_line(second)
    assert second.stderr.count("\n") == 1, second.stderr
    assert code == 2
    assert f"pid {first.process.pid}" in line
    assert first.stop() == 0
    code, line = run_to_the_end(
        tmp_path / "third", "run", "--source", "demo", "--headless", "--data-dir", data_dir
    )
    assert code == 2
    assert str(data_dir) in line
    assert "source" in line


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, urls: dict[str, str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code, line = run_to_the_end(
        tmp_path, "run", "--headless", "--data-dir", blocked / "data", **urls
    )
    assert code == 2
    assert str(blocked) in line


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; the test is skipped where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does")
def test_a_read_only_folder_is_named(tmp_path: Path, urls: dict[str, str]) -> None:
    with mounted(tmp_path / "readonly", "ro,size=64k") as folder:
        code, line = run_to_the_end(
            tmp_path / "logs", "run", "--headless", "--data-dir", folder / "data", **urls
        )
    assert code == 2
    assert str(folder) in line


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does")
@pytest.mark.parametrize("is_freed", [True, False], ids=["freed in time", "full to the end"])
def test_a_full_disk_costs_nothing_but_the_rows_it_refused(
    market_of: MarketOf, tmp_path: Path, is_freed: bool
) -> None:
    market = market_of("synthetic")
    with (
        mounted(tmp_path / "disk", "size=2m") as disk,
        simulating(tmp_path / "sim", recording=market.recording, speed=20) as urls,
    ):
        data_dir = disk / "data"
        bot = start_bot(tmp_path / "logs", data_dir, variables=urls)
        assert bot.until(lambda: has_rows(data_dir, 4))
        ballast = disk / "ballast"
        fill(ballast)
        assert bot.until(lambda: "storage.flush_failed" in bot.stderr)
        assert bot.is_running
        if is_freed:
            ballast.unlink()
            assert bot.until(lambda: not differences(market.truth, rows_of(data_dir)))
            assert bot.stop() == 0
            check_parity(data_dir, market.truth)
        else:
            assert bot.stop() == 1
            assert "StorageError" not in error_line(bot)
            stored = rows_of(data_dir)
            wanted = {key: row for key, row in market.truth.items() if key in stored}
            assert len(stored) >= 4
            assert differences(wanted, stored) == []
        assert [path for path in whole_files(data_dir) if path.suffix == ".damaged"] == []


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def whole_files(data_dir: Path) -> list[Path]:
    """Every file of the lake; each Parquet file among them can be read."""
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix == ".parquet":
            pq.ParquetFile(path).read()
    return files


# --- stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=LONG)])
def test_a_signal_stops_it_soon_and_everything_is_readable(
    tmp_path: Path, data_dir: Path, urls: dict[str, str], number: signal.Signals
) -> None:
    bot = start_bot(tmp_path, data_dir, variables={**urls, "FEATURE_FLUSH_SECONDS": "3600"})
    journal = data_dir / "events" / "journal.jsonl"
    assert bot.until(lambda: journal.exists() and b'"signal"' in journal.read_bytes())
    assert not rows_of(data_dir)  # windows have closed, and no flush has written them
    asked = time.monotonic()
    assert bot.stop(number) == 0
    assert time.monotonic() - asked < STOP_LIMIT_S
    assert whole_files(data_dir)
    assert rows_of(data_dir)
    assert not [path for path in whole_files(data_dir) if path.name.endswith(".tmp")]
    lines = bot.stderr.splitlines()
    assert lines
    assert all("event" in json.loads(line) for line in lines)


def has_loaded_a_library(program: Program) -> bool:
    """Whether it is past the interpreter's own start, whose traceback nobody can prevent."""
    maps = Path(f"/proc/{program.process.pid}/maps")
    return sys.platform != "linux" or "site-packages" in maps.read_text()


@pytest.mark.parametrize(
    "delay_s",
    [0.0, 0.15, 0.8, *(pytest.param(delay, marks=LONG) for delay in (0.3, 0.5, 1.2, 2.0))],
)
def test_a_signal_during_the_start_stops_it_without_a_word(
    tmp_path: Path, data_dir: Path, urls: dict[str, str], delay_s: float
) -> None:
    """Before the program has loaded, the signal ends it as it ends any other."""
    bot = start_bot(tmp_path, data_dir, variables=urls)
    assert bot.until(lambda: has_loaded_a_library(bot))
    time.sleep(delay_s)
    asked = time.monotonic()
    assert bot.stop(signal.SIGINT) in (0, -signal.SIGINT)
    assert time.monotonic() - asked < STOP_LIMIT_S
    assert "error: " not in bot.stderr


def test_the_demo_shows_windows_features_and_signals_soon(tmp_path: Path, data_dir: Path) -> None:
    """What the README's first command starts, with every setting at its default."""
    demo = Program(tmp_path, "run", "--source", "demo", "--headless", "--data-dir", data_dir)

    def has_both() -> bool:
        return has_rows(data_dir, 2) and bool(list(data_dir.glob("signals/date=*/*.parquet")))

    assert demo.until(has_both, timeout_s=60)
    asked = time.monotonic()
    assert demo.stop(signal.SIGINT) == 0
    assert time.monotonic() - asked < STOP_LIMIT_S
    rows = rows_of(data_dir).values()
    assert all(row.complete for row in rows)
    assert any(row.trade_count and row.depth_frames and row.realized_vol for row in rows)
    signals = [path for path in whole_files(data_dir) if "signals" in path.parts]
    table = pq.ParquetFile(signals[0]).read()
    assert set(table.column("source").to_pylist()) == {"rules"}


# --- secrets ------------------------------------------------------------------------------


def test_a_secret_is_never_printed_nor_stored(
    tmp_path: Path, data_dir: Path, urls: dict[str, str]
) -> None:
    names = ("GROQ_API_KEY", "DASHSCOPE_API_KEY", "OPENAI_API_KEY", "HTTP_TOKEN", "BINANCE_API_KEY")
    secrets = {name: f"{CANARY}-{name}" for name in names}
    variables = {**urls, **secrets, "LOG_LEVEL": "DEBUG"}
    bot = start_bot(tmp_path, data_dir, variables=variables)
    assert bot.until(lambda: has_begun(data_dir))
    assert bot.stop() == 0
    bad = Program(tmp_path, "run", "--whale-notional", CANARY, variables=variables)
    assert bad.wait() == 2
    broken = Program(tmp_path, "run", variables={**variables, "BINANCE_WS_URL": CANARY})
    assert broken.wait() == 2
    for program in (bot, bad, broken):
        assert CANARY not in program.stderr
    for path in data_dir.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()
