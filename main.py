"""The command line: ``python main.py [run|replay|simulate|doctor] [options]``; no logic.

Consumes arguments, produces an exit code: 0 success · 1 a failure that cannot be worked around ·
2 bad usage or configuration · 3 exchange out of reach. Errors are one line on stderr, naming the field.
Every part is imported only by the verb that needs it.
"""

from __future__ import annotations

if __name__ == "__main__":  # a Ctrl-C while the imports below run ends it without a traceback
    import _signal  # type: ignore[import-not-found]  # built in: takes no time

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import argparse
import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, cast

if sys.version_info < (3, 12):  # noqa: UP036 - before anything that only parses there
    print(
        f"error: Python 3.12 or later is needed, this is {sys.version.split()[0]}", file=sys.stderr
    )
    sys.exit(2)

from domain.errors import ConfigError, OrderFlowError

if TYPE_CHECKING:
    from config import Settings
    from monitoring.logging import LogWriter

# Before pyarrow is imported: the system's allocator gives freed pages back, Arrow's own pool keeps them.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
STOP_TIMEOUT_S = 10.0
SAME_SIGNAL_S = 0.5  # a process group's signal and make's copy of it are one request to stop
RUN_OPTIONS = ("symbols", "market", "source", "duration", "headless", "data_dir")
LIVE_ONLY = (
    *("ws_ping_interval", "ws_max_reconnect_attempts", "ws_backoff_cap", "ws_redundancy"),
    *("ws_rotation_minute", "health_check_interval", "binance_rate_limit_weight"),
    *("binance_ws_url", "binance_rest_url", "binance_spot_ws_url", "binance_spot_rest_url"),
)
_OVERVIEW = """\
Order flow of Binance markets, live: exact 5-second windows, features, signals.

usage: python main.py [VERB] [options]

  run        the live bot (also without a verb)
  replay     a recording through the same code, as fast as it goes
  simulate   serve a local exchange that speaks Binance's WebSocket and REST
  doctor     check Python, settings, disk, clock and the exchange; say what to do

examples:
  python main.py run --source demo          no network, no keys: a local exchange
  python main.py --symbols BTCUSDT,SOLUSDT  the real exchange
  python main.py VERB --help                options of one verb, with examples

exit codes: 0 success, 1 failure, 2 bad usage or configuration, 3 exchange out of reach
"""
_EXAMPLES = {
    "run": """\
examples:
  python main.py run --source demo --duration 60
  python main.py run --symbols BTCUSDT,ETHUSDT --data-dir data
  python main.py run --market spot --symbols SOLUSDT --headless
  python main.py run --source replay:recordings/day.ndjson.gz""",
    "replay": """\
examples:
  python main.py replay recordings/day.ndjson.gz
  python main.py replay recordings/day.ndjson.gz --symbols BTCUSDT --data-dir replayed""",
    "simulate": """\
examples:
  python main.py simulate
  python main.py simulate --seed 7 --port 0
  python main.py simulate --recording recordings/day.ndjson.gz --speed 10""",
    "doctor": """\
examples:
  python main.py doctor
  python main.py doctor --market spot --symbols SOLUSDT""",
}
_ABOUT = {
    "run": "The live bot: connect, close exact windows, store features, publish signals.",
    "replay": "Put a recording through the same code as live data; deterministic.",
    "simulate": "Serve a Binance-compatible exchange on loopback; prints its addresses as one JSON line.",
    "doctor": "Check everything a run needs and say what to do about each failure.",
}


class _Parser(argparse.ArgumentParser):
    """Bad usage is an error like any other: one line, exit code 2."""

    def __init__(self, verb: str) -> None:
        super().__init__(
            prog=f"python main.py {verb}",
            description=_ABOUT[verb],
            epilog=_EXAMPLES[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except OrderFlowError as error:
        return _report(error)
    except BaseExceptionGroup as group:
        leaves = _leaves(group)
        unexpected = [e for e in leaves if not isinstance(e, OrderFlowError | OSError)]
        if unexpected:
            _log_crash(group)  # names the first of them
            return 1
        ours = [e for e in leaves if isinstance(e, OrderFlowError)]
        return _report(ours[0] if ours else cast("OSError", leaves[0]))
    except OSError as error:
        return _report(error)
    except ModuleNotFoundError as error:
        return _missing(error)
    except Exception as error:  # noqa: BLE001 - a defect: all of it to the log, one line to the user
        _log_crash(error)
        return 1
    except KeyboardInterrupt:  # while still starting: nothing to stop
        return 0


def _dispatch(given: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "replay": _replay,
        "simulate": _simulate,
        "doctor": _doctor,
    }
    if given and given[0] in {"-h", "--help"}:
        print(_OVERVIEW, end="")
        return 0
    if given and not given[0].startswith("-"):
        if given[0] not in verbs:
            raise ConfigError(f"unknown verb {given[0]!r}; there are {', '.join(verbs)}")
        return verbs[given[0]](given[1:])
    return _run(given)


def _run(arguments: list[str]) -> int:
    parser = _Parser("run")
    _add_settings(parser, first=RUN_OPTIONS)
    settings = _settings(parser.parse_args(arguments))
    if settings.replay_path is not None:
        if settings.duration is not None:
            raise ConfigError("DURATION (--duration): a replay ends where its recording ends")
        return _replay_with(settings, settings.replay_path)
    from dashboard import plain

    with_view = not settings.headless and plain.supports_view(sys.stdout)
    with _logging(settings, to_file=with_view and sys.stderr.isatty()) as writer:
        from market_orchestrator.market_orchestrator import EnhancedMarketBot

        bot = EnhancedMarketBot(settings)
        watching = plain.watch(
            bot.bus, with_view=with_view, stream=sys.stdout, problems=lambda: list(writer.recent)
        )
        return _run_loop(_both(bot.run(), watching))


def _replay(arguments: list[str]) -> int:
    parser = _Parser("replay")
    parser.add_argument("path", metavar="PATH", help="a recording (.ndjson or .ndjson.gz)")
    _add_settings(parser, first=RUN_OPTIONS, without=("source", "duration", *LIVE_ONLY))
    given = vars(parser.parse_args(arguments))
    path = given.pop("path")
    try:
        settings = _settings(argparse.Namespace(**given, source=f"replay:{path}"))
    except ConfigError as error:
        if not str(error).startswith("SOURCE "):
            raise
        reason = "is a folder, not a recording" if Path(path).exists() else "does not exist"
        raise ConfigError(f"PATH: {path} {reason}") from None
    return _replay_with(settings, Path(path))


def _replay_with(settings: Settings, path: Path) -> int:
    with _logging(settings, to_file=False):
        from market_orchestrator.market_orchestrator import replay

        return _run_loop(replay(settings, path))


def _simulate(arguments: list[str]) -> int:
    parser = _Parser("simulate")
    add = parser.add_argument
    add("--recording", metavar="PATH", type=Path, help="serve this recording")
    add("--seed", type=int, help="seed of the synthetic market, default 1")
    add("--symbols", help="symbols of the synthetic market, default BTCUSDT,ETHUSDT")
    add("--market", choices=("um", "spot"), help="um (USDⓈ-M futures, default) or spot")
    add("--speed", type=float, help="market seconds per second, default 1; 0: unpaced")
    add("--faults", metavar="PLAN", help="a fault plan (JSON or TOML), or random:SEED")
    add("--port", type=int, help="TCP port, default 0: any free one")
    given = vars(parser.parse_args(arguments))
    for name in ("seed", "symbols"):
        if name in given and "recording" in given:
            raise ConfigError(
                f"--{name}: a recording has its own; leave out --{name} or --recording"
            )
    with _writing_logs("INFO", None):
        from domain.market import Market
        from simulator.cli import serve
        from simulator.settings import SimulatorSettings

        if "symbols" in given:
            given["symbols"] = tuple(s for s in given["symbols"].upper().split(",") if s)
        if "market" in given:
            given["market"] = Market(given["market"])
        return _run_loop(serve(SimulatorSettings(**given)))


def _doctor(arguments: list[str]) -> int:
    parser = _Parser("doctor")
    _add_settings(parser, first=RUN_OPTIONS, without=("duration", "headless"))
    settings = _settings(parser.parse_args(arguments))
    with _logging(settings, to_file=False):
        return _run_loop(_examine(settings))


async def _examine(settings: Settings) -> int:
    from market_orchestrator.market_orchestrator import hosts
    from monitoring.doctor import Examined, examine

    async with contextlib.AsyncExitStack() as stack:
        ws_url, rest_url = await hosts(settings, stack)
        examined = Examined(
            market=settings.market,
            symbols=settings.symbols,
            data_root=settings.data_root,
            source=settings.source_description,
            ws_url=ws_url,
            rest_url=rest_url,
            uses_exchange=settings.replay_path is None,
        )
        return await examine(examined, functools.partial(print, flush=True))


def _add_settings(
    parser: argparse.ArgumentParser, *, first: Sequence[str], without: Sequence[str] = ()
) -> None:
    """One flag per setting; the verb's own ones before those usually set as variables."""
    from config import PARTS, Settings

    names = [name for name in Settings.model_fields if name not in {*PARTS, *without}]
    others = parser.add_argument_group(
        "settings", "also environment variables, as in brackets; more in docs/reference.md"
    )
    for name in sorted(names, key=lambda name: name not in first):
        field = Settings.model_fields[name]
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default is None else f", default {default}"
        text = f"{field.description} [{name.upper()}{shown}]".replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        target = parser if name in first else others
        if field.annotation is bool:
            target.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            target.add_argument(flag, metavar=name.rsplit("_", 1)[-1].upper(), help=text)


def _settings(given: argparse.Namespace) -> Settings:
    from config import Settings

    return Settings(**vars(given))


def _logging(settings: Settings, *, to_file: bool) -> LogWriter:
    path = settings.data_root / "logs" / "orderflow.log" if to_file else None
    return _writing_logs(settings.log_level, path)


def _writing_logs(level: str, path: Path | None) -> LogWriter:
    from monitoring.logging import configure_logging, secrets_in

    try:
        return configure_logging(level, log_file=path, secrets=secrets_in(os.environ))
    except OSError as error:
        raise ConfigError(
            f"DATA_DIR (--data-dir): {path} is not writable: {error.strerror}"
        ) from None


async def _both(work: Coroutine[Any, Any, int], watching: Coroutine[Any, Any, None]) -> int:
    """Run the bot, and the view beside it for as long as the bot runs."""
    async with asyncio.TaskGroup() as tasks:
        view = tasks.create_task(watching, name="view")
        try:
            return await work
        finally:
            view.cancel()


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run ``work`` on uvloop where it exists, until it ends or a signal stops it."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_until_signalled(work))


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """First signal: cancel ``work`` and allow it ``STOP_TIMEOUT_S``. Second signal: leave at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    too_late = f"stopping took longer than {STOP_TIMEOUT_S:.0f} s"
    watchdog = threading.Timer(STOP_TIMEOUT_S, _leave, (1, too_late))
    watchdog.daemon = True
    stopping_since = None

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping_since
        if stopping_since is None:
            stopping_since = time.monotonic()
            watchdog.start()
            loop.call_soon_threadsafe(task.cancel)
        elif time.monotonic() - stopping_since > SAME_SIGNAL_S:
            _leave(128 + number, "stopped at once")

    previous = {number: signal.signal(number, on_signal) for number in _stop_signals()}
    try:
        return await work
    except asyncio.CancelledError:
        if stopping_since is None:
            raise
        return 0
    finally:
        watchdog.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop here; a hang-up only if the parent does not ignore it (nohup)."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    found = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


def _leave(code: int, reason: str) -> NoReturn:
    """End the process without waiting for anything; the terminal is put back to normal first."""
    if any(thread.name == "view" for thread in threading.enumerate()):
        os.write(1, b"\x1b[?1049l\x1b[?25h")
    os.write(2, f"\n{reason}\n".encode())
    os._exit(code)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _missing(error: ModuleNotFoundError) -> int:
    name = (error.name or "").partition(".")[0]
    here = Path(__file__).parent
    if (here / name).exists() or (here / f"{name}.py").exists():
        _log_crash(error)
        return 1
    print(
        f"error: the package {name} is not installed here; run make setup, then start with the "
        "Python in .venv",
        file=sys.stderr,
    )
    return 2


def _log_crash(error: BaseException) -> None:
    import structlog

    structlog.get_logger().critical("program.crashed", exc_info=error)
    first = _leaves(error)[0] if isinstance(error, BaseExceptionGroup) else error
    text = " ".join(str(first).split())
    print(f"error: unexpected {type(first).__name__}: {text} (see the log)", file=sys.stderr)


def _report(error: OrderFlowError | OSError) -> int:
    text = " ".join(str(error).split())
    print(f"error: {text}", file=sys.stderr)
    return error.exit_code if isinstance(error, OrderFlowError) else 1


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the event loop takes over
    exit_code = main()
    if any(thread.name in {"log-writer", "view"} for thread in threading.enumerate()):
        os._exit(exit_code)  # their terminal takes nothing: the interpreter's own exit would hang
    sys.exit(exit_code)
