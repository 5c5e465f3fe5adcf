"""``python main.py alerts``, and alerts of a real run on the local exchange."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alerts.service import read_state
from alerts.silences import read_silences
from main import main
from tests.alert_receiver import SECRET, Receiver


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """Neither the machine's variables nor a ``.env`` of the repository reach these tests."""


class ServedReceiver:
    """A receiver on a thread of its own, since the verbs have their own event loop."""

    def __init__(self, *script: int | str) -> None:
        self.receiver = Receiver(*script)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Receiver:
        self._thread.start()
        assert self._ready.wait(10)
        return self.receiver

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def _serve(self) -> None:
        async def work() -> None:
            async with self.receiver:
                self._ready.set()
                await self._done.wait()

        self._loop.run_until_complete(work())
        self._loop.close()


def test_test_reports_every_channel_and_fails_if_one_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    with ServedReceiver(204, 500) as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        monkeypatch.setenv("ALERT_WEBHOOK_SECRET", SECRET)
        assert main(["alerts", "test", "--data-dir", str(data_dir)]) == 0
        assert main(["alerts", "test", "--channel", "webhook", "--data-dir", str(data_dir)]) == 1
    said = capsys.readouterr()
    assert "console: delivered\nfile: delivered\nwebhook: delivered\n" in said.out
    assert "webhook: FAILED: the receiver answered 500" in said.out
    assert "a-token-in-the-path" not in said.out + said.err
    assert [body["kind"] for body in receiver.taken.values()] == ["test"]
    assert receiver.bad_signatures == 0


def test_silences_are_made_listed_and_ended(
    capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    where = ["--data-dir", str(data_dir)]
    silence = ["alerts", "silence", "whale_*", "--symbol", "btcusdt", "--for", "2h", *where]
    assert main([*silence, "--comment", "listing"]) == 0
    (made,) = read_silences(data_dir / "alerts")
    assert (made.name, made.symbol, made.comment) == ("whale_*", "BTCUSDT", "listing")
    assert made.until_ms - made.created_ms == 7_200_000
    assert main(["alerts", "list", *where]) == 0
    said = capsys.readouterr().out
    assert f"{made.silence_id}  whale_* BTCUSDT until" in said
    assert "no run has alerted" in said
    assert "symbol_silent" in said
    assert main(["alerts", "silence", "--end", made.silence_id, *where]) == 0
    assert read_silences(data_dir / "alerts") == ()


def test_a_silence_that_no_rule_bears_the_name_of_is_made_and_says_so(
    capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    for name in ("whale_*", "whale_prints"):
        assert main(["alerts", "silence", name, "--data-dir", str(data_dir)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith("note: no rule is called whale_prints") for line in said] == [
        *(False, False),
        True,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["silence"], "which alert?"),
        (["silence", "x", "--for", "soon"], "--for: must look like 30m, 2h or 1d"),
        (["silence", "--end", "nope"], "there is no silence nope"),
        (["list", "--for", "1h"], "--for: not an option of list"),
        (["test", "--channel", "telegram"], "telegram is not set up"),
        (["list", "--alert-rules", "nowhere.toml"], "ALERT_RULES (--alert-rules): nowhere.toml"),
        (["test", "--alert-channels", "pigeon"], "ALERT_CHANNELS"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    assert main(["alerts", *arguments, "--data-dir", str(data_dir)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_webhook_address_that_is_none_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "ftp://host/a-token-in-the-path")
    assert main(["alerts", "list", "--data-dir", str(data_dir)]) == 2
    said = capsys.readouterr().err
    assert "ALERT_WEBHOOK_URL" in said
    assert "a-token-in-the-path" not in said


RULE_THAT_FIRES = """
[[rule]]
name = "trading"
about = "x"
on = "features"
keep_s = 86400
message = "{symbol} trades"
when = [{ field = "trade_count", above = 1 }]
"""


def run_of(data_dir: Path, tmp_path: Path) -> list[str]:
    """Arguments of a demo run whose every symbol alerts once."""
    rules = tmp_path / "own.toml"
    rules.write_text(RULE_THAT_FIRES)
    run = ["run", "--source", "demo", "--headless", "--window-duration", "1", "--http-port", "off"]
    return [*run, "--data-dir", str(data_dir), "--alert-rules", str(rules), "--ai", "off"]


def told(receiver: Receiver) -> list[str]:
    return sorted(message for message in receiver.alerts() if message.endswith("trades"))


def test_a_run_alerts_through_its_channels_and_not_again_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path
) -> None:
    run = run_of(data_dir, tmp_path)
    with ServedReceiver() as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        monkeypatch.setenv("ALERT_WEBHOOK_SECRET", SECRET)
        assert main([*run, "--duration", "4"]) == 0
        assert main([*run, "--duration", "2.5"]) == 0
    assert told(receiver) == ["BTCUSDT trades", "ETHUSDT trades"]
    assert receiver.bad_signatures == 0
    files = (data_dir / "alerts").glob("alerts-*.jsonl")  # two, if midnight lies in between
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert {json.loads(line)["key"] for line in lines} == set(receiver.taken)


@pytest.mark.long
def test_what_was_not_delivered_at_a_kill_is_delivered_by_the_next_run_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path, repository: Path
) -> None:
    command = [sys.executable, str(repository / "main.py"), *run_of(data_dir, tmp_path)]

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def both_wait() -> bool:
        state = read_state(data_dir / "alerts")
        waiting = [e for e in state.outbox if e.channel == "webhook"] if state else []
        return sum(len(e.notification.items) for e in waiting) == 2

    with ServedReceiver(*[503] * 10_000) as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        monkeypatch.setenv("ALERT_WEBHOOK_SECRET", SECRET)
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as bot:
            until(both_wait)
            bot.kill()
        receiver.script.clear()
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as bot:
            until(lambda: len(told(receiver)) == 2)
            time.sleep(3)  # windows of the second run, about which nothing more is to be told
            bot.send_signal(signal.SIGINT)
            assert bot.wait(20) == 0
    assert told(receiver) == ["BTCUSDT trades", "ETHUSDT trades"]
