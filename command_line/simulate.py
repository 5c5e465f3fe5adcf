"""The ``simulate`` verb: a Binance-compatible exchange on loopback, and AI providers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command_line.running import run_loop
from command_line.verb import Parser, Verb, writing_logs
from domain.errors import ConfigError


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--recording", metavar="PATH", type=Path, help="serve this recording")
    add("--seed", type=int, help="seed of the synthetic market, default 1")
    add("--symbols", help="symbols of the synthetic market, default BTCUSDT,ETHUSDT")
    add(
        "--planted-edge",
        metavar="X",
        type=float,
        help="a market for models to be tried on: its price is a random walk that the book foretells "
        "so strongly, 0 (not at all) to 1; default: the usual market",
    )
    add("--market", choices=("um", "spot"), help="um (USDⓈ-M futures, default) or spot")
    add(
        "--klines",
        metavar="FILES",
        help="files of the archive's klines, comma between two (BTCUSDT-1m-2024-07.csv.gz): REST "
        "serves these, at the time of their end",
    )
    add("--speed", type=float, help="market seconds per second, default 1; 0: unpaced")
    add("--faults", metavar="PLAN", help="a fault plan (JSON or TOML), or random:SEED")
    add("--port", type=int, help="TCP port, default 0: any free one")
    add(
        "--ai",
        metavar="SCRIPT",
        nargs="?",
        const="",
        help="also serve the AI providers; SCRIPT says what they do, as in "
        "groq=ok*3,rate_limited:30;dashscope=ok (without one they answer well)",
    )


def _run(given: dict[str, Any]) -> int:
    for name in ("seed", "symbols", "planted_edge"):
        if name in given and "recording" in given:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: a recording has its own; leave out {flag} or --recording")
    with writing_logs("INFO"):
        from domain.market import Market
        from simulator.cli import serve
        from simulator.settings import SimulatorSettings

        if "symbols" in given:
            given["symbols"] = tuple(s for s in given["symbols"].upper().split(",") if s)
        if "market" in given:
            given["market"] = Market(given["market"])
        if "klines" in given:
            given |= _past_candles(given.pop("klines"), given)
        script = given.pop("ai", None)
        return run_loop(serve(SimulatorSettings(**given), script))


def _past_candles(files: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings for a market whose past candles are given."""
    from simulator.candle_table import CandleTable

    table = CandleTable.from_files([Path(name) for name in files.split(",") if name])
    return {"candles": table, "start_ms": table.end_ms, "symbols": table.symbols} | given


VERB = Verb(
    about="Serve a Binance-compatible exchange on loopback; prints its addresses as one JSON line.",
    examples=(
        "python main.py simulate",
        "python main.py simulate --seed 7 --port 0",
        "python main.py simulate --recording recordings/day.ndjson.gz --speed 10",
        "python main.py simulate --klines BTCUSDT-1m-2024-07.csv.gz",
        'python main.py simulate --ai "groq=ok*3,rate_limited:30"',
    ),
    add_arguments=_add_arguments,
    run=_run,
)
