"""A sender of pre-framed WebSocket bytes in a process of its own.

``python -m benchmarks.loopback FILE`` prints its port and sends FILE to every client that
connects, one after the other, as fast as the client reads; nothing is computed while it sends.
``write_trades`` makes FILE: aggTrade frames of a busy BTC market, ids consecutive, none twice.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import process
from simulator.frames import decimal_text, text_frame
from simulator.synthetic import SyntheticMarket

SYMBOL = "BTCUSDT"
START_MS = 1_786_171_800_000  # a whole window, in the time of the layout below
_FIRST_ID, _FIRST_FILL = 3_404_749_954, 7_960_913_511  # of a real frame: ids as long as they are
_BASE_TRADES_PER_S = 10.0  # of the synthetic market with multiplier 1, roughly
_SLICE_MS = 60_000
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_COLUMNS = (
    "event_time_ms", "agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id",
    "transact_time_ms", "is_buyer_maker",
)  # fmt: skip


def write_trades(path: Path, count: int, *, trades_per_s: float, seed: int = 7) -> None:
    """Write ``count`` framed aggTrade messages whose market time advances at ``trades_per_s``."""
    with path.open("wb") as out:
        for payload in trade_payloads(count, trades_per_s=trades_per_s, seed=seed):
            out.write(text_frame(payload))


def trade_payloads(count: int, *, trades_per_s: float, seed: int = 7) -> Iterator[bytes]:
    """Combined aggTrade frames in the layout of 2026 (``nq``, ``st``), all different."""
    multiplier = trades_per_s / _BASE_TRADES_PER_S
    market = SyntheticMarket(seed, (SYMBOL,), start_ms=START_MS, rate_multiplier=multiplier)
    spec = market.spec(SYMBOL)
    written, id_shift, fill_shift, start_ms = 0, None, 0, START_MS
    while written < count:
        rows = market.between(SYMBOL, start_ms, start_ms + _SLICE_MS).rows[: count - written]
        start_ms += _SLICE_MS
        for event, number, price, size, first, last, at, maker in zip(
            *(rows[name].tolist() for name in _COLUMNS), strict=True
        ):
            if id_shift is None:
                id_shift, fill_shift = _FIRST_ID - number, _FIRST_FILL - first
            quantity = decimal_text(size, spec.quantity_decimals)
            yield (
                f'{{"stream":"btcusdt@aggTrade","data":{{"e":"aggTrade","E":{event},'
                f'"a":{number + id_shift},"s":"{SYMBOL}",'
                f'"p":"{decimal_text(price, spec.price_decimals)}","q":"{quantity}",'
                f'"nq":"{quantity}","f":{first + fill_shift},"l":{last + fill_shift},"T":{at},'
                f'"m":{"true" if maker else "false"},"st":1}}}}'
            ).encode()
        written += len(rows)


def accept_key(request: bytes) -> bytes:
    """The answer to a handshake (RFC 6455, section 4.2.2)."""
    for line in request.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            return base64.b64encode(hashlib.sha1(value.strip() + _GUID).digest())
    raise ValueError("no WebSocket handshake")


def shake_hands(client: socket.socket) -> str:
    """Answer a client's handshake; returns the path it asked for."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        received = client.recv(65_536)
        if not received:
            raise ConnectionError("the client left during the handshake")
        request += received
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(request) + b"\r\n\r\n"
    )
    return request.split(b" ", 2)[1].decode()


def serve(path: Path) -> None:
    """Send the file to each client in turn until this process is ended."""
    with socket.create_server(("127.0.0.1", 0)) as server, path.open("rb") as frames:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                shake_hands(client)
                frames.seek(0)
                client.sendfile(frames)
                while client.recv(65_536):  # until the client has what it wanted and leaves
                    pass


@contextlib.contextmanager
def running_sender(path: Path, core: int | None) -> Iterator[int]:
    """A sender process for the duration of a ``with``; gives its port."""
    command = [sys.executable, "-m", "benchmarks.loopback", str(path)]
    with process(command, core) as sender:
        assert sender.stdout is not None
        yield json.loads(sender.stdout.readline())["port"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    serve(given.file)


if __name__ == "__main__":
    main()
