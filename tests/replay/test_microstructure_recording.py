"""The book kernels on recorded depth: the sanity ranges measured on the same recording."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from domain.market import DepthSnapshot
from microstructure.book_window import BookAccumulator
from tests.pipeline_samples import read_book, top_of

SECOND_MS = 1000
TICKS = {"BTCUSDT": 0.1, "ETHUSDT": 0.01}


def _levels(pairs: list[list[str]]) -> list[tuple[float, float]]:
    return [(float(price), float(size)) for price, size in pairs]


@pytest.fixture(scope="module")
def frames(recordings_dir: Path) -> list[DepthSnapshot]:
    path = recordings_dir / "recordings" / "usdm_20240718.ndjson.gz"
    frames = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            received, _, text = line.partition(" ")
            if "@depth20" not in text[:60]:
                continue
            data = json.loads(text)["data"]
            bids, asks = _levels(data["b"]), _levels(data["a"])
            times = (data["E"], data["T"], int(received))
            ids = (data["U"], data["u"], data["pu"])
            frames.append(DepthSnapshot(data["s"], *times, *ids, bids, asks))
    return frames


@pytest.mark.parametrize("symbol", list(TICKS))
def test_the_spread_is_nearly_always_one_tick(frames: list[DepthSnapshot], symbol: str) -> None:
    spreads = [f.asks[0][0] - f.bids[0][0] for f in frames if f.symbol == symbol]
    share = np.mean([abs(spread - TICKS[symbol]) < TICKS[symbol] / 2 for spread in spreads])
    assert share >= 0.99


@pytest.mark.parametrize("symbol", list(TICKS))
def test_order_flow_explains_the_mid_price_of_its_second(
    frames: list[DepthSnapshot], symbol: str
) -> None:
    books = BookAccumulator(SECOND_MS, read_book, max_pending_windows=1000)
    last_update = None
    for frame in frames:
        if frame.symbol == symbol:
            books.add(top_of(frame), chain_broken=frame.prev_final_update_id != last_update)
            last_update = frame.final_update_id
    own = [f for f in frames if f.symbol == symbol]
    first = own[0].transact_time_ms // SECOND_MS
    seconds = range(first, own[-1].transact_time_ms // SECOND_MS + 1)
    windows = [books.close(symbol, second * SECOND_MS) for second in seconds]
    full = [w for w in windows if w.last is not None and w.ofi is not None]
    mids = np.array([(w.last.bids[0][0] + w.last.asks[0][0]) / 2 for w in full if w.last])
    flow = np.array([w.ofi for w in full])[1:]
    assert len(full) > 400
    assert sum(w.depth_frames for w in windows) == len(own)
    assert 0.3 <= np.corrcoef(flow, np.diff(mids))[0, 1] ** 2 <= 0.6
