"""How long after the frame that closes a window its features are published, for one symbol.

BTC at 60 trades and 10 depth frames per second, wall time, from a second process; the bot runs whole.
The frame's stamp is taken when its socket delivers it, the other one when the bus has published.

``python -m benchmarks.bench_latency [--smoke] [--json FILE] [--minutes M]``
"""

from __future__ import annotations

import sys

from benchmarks.paced_exchange import running_exchange
from benchmarks.report import arguments, cores, machine, publish, run_json

TRADES_PER_S = 60.0
DEPTH_PER_S = 10.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, help="measured time (default 5: 60 windows)")
    given = parser.parse_args()
    seconds = 60 * given.minutes if given.minutes else (8.0 if given.smoke else 300.0)
    warm_up_s = 4.0 if given.smoke else 12.0
    bot_core, exchange_core = cores()
    with running_exchange(1, TRADES_PER_S, DEPTH_PER_S, exchange_core) as port:
        command = [sys.executable, "-m", "benchmarks.observed_bot", "--port", str(port)]
        command += ["--symbols", "1", "--warm-up", str(warm_up_s), "--seconds", str(seconds)]
        run = run_json(command, bot_core, timeout_s=warm_up_s + seconds + 300)
    result = {
        "benchmark": "latency",
        "trades_per_s": TRADES_PER_S,
        "depth_frames_per_s": DEPTH_PER_S,
        **run,
        "machine": machine(),
    }
    publish(result, given)


if __name__ == "__main__":
    main()
