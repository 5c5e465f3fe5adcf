"""The command line: verbs, help, one-line errors, exit codes, signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import main
from command_line import running, verb
from domain.errors import ConnectionLost, DataFolderError, OrderFlowError, StorageError

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
VERBS = tuple(main.VERBS)


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable and no ``.env`` of this machine."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["walk"], "unknown verb 'walk'"),
        (["run", "extra"], "unrecognized arguments: extra"),
        (["--symbols"], "--symbols"),
        (["--symbol", "BTCUSDT"], "--symbol"),  # no abbreviations
        (["--window-duration", "7"], "WINDOW_DURATION (--window-duration): must divide a day"),
        (["--symbols", "BTC/USDT"], "SYMBOLS (--symbols)"),
        (["--market", "cm"], "MARKET (--market)"),
        (["--source", "replay:absent"], "SOURCE (--source): names nothing that exists"),
        (["--source", "replay:."], "SOURCE (--source): names a folder"),
        (["replay"], "PATH"),
        (["replay", "absent.ndjson.gz"], "PATH: absent.ndjson.gz does not exist"),
        (["replay", "."], "PATH: . is a folder, not a recording"),
        (["replay", "x", "--ws-redundancy", "2"], "unrecognized arguments: --ws-redundancy"),
        (["simulate", "--seed", "x"], "--seed"),
        (["simulate", "--market", "cm"], "--market"),
        (["simulate", "--port", "70000"], "port"),
        (["simulate", "--recording", "r.ndjson", "--seed", "3"], "--seed: a recording has its own"),
        (["simulate", "--symbols", "X", "--recording", "r"], "--symbols: a recording has its own"),
        (["doctor", "--duration", "5"], "--duration"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert captured.out == ""


def test_recorded_days_of_another_market_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "raw" / "stream" / "trades").mkdir(parents=True)
    (tmp_path / "mine" / "source.json").write_text('{"market": "um", "host": "x"}')
    for path in ("mine", "mine/raw/stream"):
        assert main.main(["replay", path, "--market", "spot"]) == 2
        assert "MARKET (--market): " in capsys.readouterr().err


def test_a_replay_has_no_duration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "day.ndjson").touch()
    assert main.main(["--source", "replay:day.ndjson", "--duration", "5"]) == 2
    assert "DURATION (--duration): a replay ends" in capsys.readouterr().err


def test_a_bad_variable_is_one_line_without_its_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINANCE_REST_URL", "https://user:canary@host")
    assert main.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "BINANCE_REST_URL" in line
    assert "canary" not in line


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert "exit codes" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main.main([verb, "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert f"python main.py {verb}" in text.split("examples:")[1]


def test_options_without_a_verb_mean_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--symbols", "BTCUSDT", "--help"])
    assert capsys.readouterr().out.startswith("usage: python main.py run ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataFolderError("folder\nis in use"), 2),
        (StorageError("disk full"), 1),
        (ConnectionLost("gone"), 3),
        (OSError(28, "No space left on device"), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ConnectionLost("gone")])]), 3),
        (ExceptionGroup("tasks", [OSError(28, "No space left"), StorageError("full")]), 1),
    ],
)
def test_a_known_failure_is_one_line_with_its_exit_code(
    error: Exception,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", failing)
    assert main.main([]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [KeyError("x"), ExceptionGroup("tasks", [KeyError("x"), OrderFlowError("y")])]
)
def test_a_defect_is_logged_in_full_and_told_in_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: list[str]) -> int:
        with verb.writing_logs("INFO"):
            raise error

    monkeypatch.setattr(main, "_dispatch", failing)
    assert main.main([]) == 1
    logged, told = capsys.readouterr().err.splitlines()
    assert json.loads(logged)["event"] == "program.crashed"
    assert "Traceback" in json.loads(logged)["exception"]
    assert told.startswith("error: unexpected ")


def test_a_missing_package_names_the_way_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")

    monkeypatch.setattr(main, "_dispatch", failing)
    assert main.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "msgspec is not installed" in line
    assert "make setup" in line


def test_what_the_work_returns_is_the_exit_code() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 4

    assert running.run_loop(work()) == 4


@POSIX_ONLY
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_and_is_a_success(number: signal.Signals) -> None:
    steps = []

    async def work() -> int:
        try:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a group's signal and make's copy of it count once
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            steps.append("closed")
        return 1

    before = signal.getsignal(number)
    assert running.run_loop(work()) == 0
    assert steps == ["closed"]
    assert signal.getsignal(number) is before


@POSIX_ONLY
def test_an_ignored_interrupt_still_stops_and_an_ignored_hang_up_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a shell script's background job starts with SIGINT ignored, nohup's with SIGHUP
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert signal.SIGINT in running.stop_signals()
    assert signal.SIGHUP not in running.stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert signal.SIGHUP in running.stop_signals()


@POSIX_ONLY
def test_a_failure_while_stopping_is_not_hidden() -> None:
    async def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            raise StorageError("last rows were not written")
        return 0

    with pytest.raises(StorageError):
        running.run_loop(work())


@contextmanager
def simulate(repository: Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(repository / "main.py"), "simulate", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@POSIX_ONLY
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_simulate_serves_until_a_signal_stops_it(
    number: signal.Signals, repository: Path, tmp_path: Path
) -> None:
    with simulate(repository, tmp_path) as process:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        assert set(urls) == {"ws", "rest", "vision"}
        process.send_signal(number)
        assert process.wait(10) == 0


@POSIX_ONLY
def test_the_second_signal_ends_a_stop_that_hangs(repository: Path, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from command_line import running\n"
        "async def work():\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        await asyncio.sleep(60)\n"
        "    finally:\n"
        "        print('stopping', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "running.SAME_SIGNAL_S = 0\n"
        "sys.exit(running.run_loop(work()))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
        assert "stopped at once" in process.communicate()[1]
    finally:
        process.kill()
        process.communicate()


def test_an_older_python_is_named_in_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (repository / "main.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as raised:
        exec(compile(source, "main.py", "exec"), {"__name__": "old"})  # noqa: S102
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Python 3.12 or later is needed")


def test_a_log_folder_that_cannot_be_made_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main.main(["run", "--source", "demo", "--data-dir", str(tmp_path / "file")]) == 2
    assert "DATA_DIR (--data-dir)" in capsys.readouterr().err
