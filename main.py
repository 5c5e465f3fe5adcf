"""The command line: ``python main.py [VERB] [options]``; no logic.

Consumes arguments, produces an exit code: 0 success · 1 a failure that cannot be worked around ·
2 bad usage or configuration · 3 exchange out of reach · 4 an audit found holes. Errors are one line on stderr, naming the field.
Each verb is a module of ``command_line``, imported only when it is asked for.
"""

from __future__ import annotations

if __name__ == "__main__":  # a Ctrl-C while the imports below run ends it without a traceback
    import _signal  # type: ignore[import-not-found]  # built in: takes no time

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import cast

if sys.version_info < (3, 12):  # noqa: UP036 - before anything that only parses there
    print(
        f"error: Python 3.12 or later is needed, this is {sys.version.split()[0]}", file=sys.stderr
    )
    sys.exit(2)

from domain.errors import ConfigError, OrderFlowError

# Before pyarrow is imported: the system's allocator gives freed pages back, Arrow's own pool keeps them.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
VERBS = {
    "run": "the live bot (also without a verb)",
    "record": "depth and trades to Parquet, with a journal; what is missing is named and repaired",
    "replay": "a recording through the same code, as fast as it goes",
    "dashboard": "the terminal dashboard of a bot that runs elsewhere",
    "simulate": "serve a local exchange that speaks Binance's WebSocket and REST",
    "history": "months of aggTrades and 1m klines from the public archive",
    "ingest": "closed klines by timeframe, into daily files",
    "curate": "ingested klines with VWAP, ATR, volatility, returns and levels",
    "signals": "past signals against what the market then did: hits, money, calibration",
    "features": "days of the lake into datasets for models; book images as pictures",
    "train": "a dataset into a calibrated model with its card (needs make setup-research)",
    "evaluate": "a model on its test days: classes, probabilities, money, against baselines",
    "audit": "is what is stored whole? a certificate for every hour",
    "repair": "fill the recorder's holes from REST and the archive, once",
    "prune": "delete days older than you want to keep; --dry-run says what would go",
    "alerts": "test the channels, list rules and alerts, silence some",
    "doctor": "check Python, settings, disk, clock and the exchange; say what to do",
}
_OVERVIEW = """\
Order flow of Binance markets, live: exact 5-second windows, features, signals.

usage: python main.py [VERB] [options]

{verbs}

examples:
  python main.py run --source demo          no network, no keys: a local exchange
  python main.py --symbols BTCUSDT,SOLUSDT  the real exchange
  python main.py VERB --help                options of one verb, with examples

exit codes: 0 success, 1 failure, 2 bad usage or configuration, 3 exchange out of reach,
            4 an audit found holes
"""


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
    if given and given[0] in {"-h", "--help"}:
        verbs = "\n".join(f"  {name:<10} {about}" for name, about in VERBS.items())
        print(_OVERVIEW.format(verbs=verbs), end="")
        return 0
    name = "run"
    if given and not given[0].startswith("-"):
        name = given.pop(0)
    if name not in VERBS:
        raise ConfigError(f"unknown verb {name!r}; there are {', '.join(VERBS)}")
    module = importlib.import_module(f"command_line.{name}")
    return cast("int", module.VERB.call(name, given))


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

    if structlog.is_configured():
        structlog.get_logger().critical("program.crashed", exc_info=error)
    else:  # its default shows local variables, and those may be secrets
        traceback.print_exception(error)
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
