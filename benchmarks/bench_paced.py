"""What the live bot costs at 5,000 trades and 5,000 depth20 frames per second over 500 symbols.

A second process sends them at wall time over the two routes; the bot runs as ``main.py run`` builds
it, in its own process on its own core, with REST, recovery, rules analyst and feature store. Shown:
share of one core, memory and its growth, how long after a window's end and lateness (250 ms) the
features of all symbols were out, and the lag of the event loop (a 10 ms timer that fires late; it costs 1 % of a core itself).

``python -m benchmarks.bench_paced [--smoke] [--json FILE] [--minutes M] [--symbols N]``
"""

from __future__ import annotations

import sys

from benchmarks.paced_exchange import running_exchange
from benchmarks.report import arguments, cores, machine, publish, run_json


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, help="measured time after the warm-up (default 1)")
    parser.add_argument("--warm-up", type=float, help="seconds before it (default 30)")
    parser.add_argument("--symbols", type=int, help="default 500")
    parser.add_argument("--trades-per-s", type=float, help="of all symbols (default 5,000)")
    parser.add_argument("--depth-per-s", type=float, help="of all symbols (default 5,000)")
    given = parser.parse_args()
    symbols = given.symbols or (50 if given.smoke else 500)
    trades_per_s = given.trades_per_s or 10.0 * symbols
    depth_per_s = given.depth_per_s or 10.0 * symbols
    seconds = 60 * given.minutes if given.minutes else (8.0 if given.smoke else 60.0)
    warm_up_s = given.warm_up if given.warm_up is not None else (4.0 if given.smoke else 30.0)
    bot_core, exchange_core = cores()
    with running_exchange(symbols, trades_per_s, depth_per_s, exchange_core) as port:
        command = [sys.executable, "-m", "benchmarks.observed_bot", "--port", str(port)]
        command += ["--symbols", str(symbols)]
        command += ["--warm-up", str(warm_up_s), "--seconds", str(seconds)]
        run = run_json(command, bot_core, timeout_s=warm_up_s + seconds + 300)
    result = {
        "benchmark": "paced",
        "symbols": symbols,
        "trades_per_s": trades_per_s,
        "depth_frames_per_s": depth_per_s,
        **run,
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
