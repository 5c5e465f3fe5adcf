"""Small datasets for the tests of training: hours of a market with or without a pattern to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domain.model_card import ImageGeometry
from lake.dataset_files import write_columns, writing_images
from lake.storage import Storage
from microstructure.model_input import INPUT_VERSION
from research.dataset import (
    FEATURES_SUFFIX,
    IMAGES_SUFFIX,
    QUOTES_SUFFIX,
    Dataset,
    DatasetInfo,
    write_info,
)
from research.presets import Preset
from research.splits import Split

FEATURES = ("ofi_1", "mid_return_bps_12", "noise")
GEOMETRY = ImageGeometry(frames=4, height=8, width=4)
DATES = tuple(f"2024-07-{day:02}" for day in range(1, 6))
SPLIT = Split(DATES[:3], DATES[3:4], DATES[4:])
SMALL = Preset(
    name="small",
    kind="vivit",
    about="for tests",
    takes_image=True,
    takes_features=True,
    hidden=16,
    layers=1,
    heads=2,
    tubelet=(2, 4, 4),
    epochs=3,
    batch=64,
    learning_rate=3e-3,
)
_WINDOW_MS = 5_000


def write_dataset(
    folder: Path, *, pattern: float = 1.0, windows: int = 720, images: bool = True, seed: int = 1
) -> Dataset:
    """Days of BTCUSDT from midnight on; a hidden drift, seen in ``ofi_1`` times ``pattern``."""
    storage = Storage.of(folder)
    geometry = GEOMETRY if images else None
    write_info(
        storage,
        DatasetInfo(
            input_version=INPUT_VERSION,
            feature_names=FEATURES,
            geometry=geometry,
            market="um",
            window_ms=_WINDOW_MS,
            source="made by hand",
        ),
    )
    for number, date in enumerate(DATES):
        _write_day(storage, date, np.random.default_rng((seed, number)), pattern, windows, geometry)
    return Dataset.open(folder)


def _write_day(storage, date, random, pattern, windows, geometry):
    start = int(np.datetime64(date, "ms").astype(np.int64))
    drift = np.zeros(windows)
    for k in range(1, windows):
        drift[k] = 0.97 * drift[k - 1] + 0.24 * random.normal()
    slots = windows * 50
    steps = np.repeat(drift, 50) / 50.0 + random.normal(size=slots) * 0.25
    mid = 60_000.0 * np.exp(np.cumsum(steps) * 1e-4)
    slot_ms = start + 100 * (1 + np.arange(slots, dtype=np.int64))
    decision_ms = start + _WINDOW_MS * (1 + np.arange(windows, dtype=np.int64))
    close = mid[49::50]
    past = np.full(windows, np.nan)
    past[12:] = (close[12:] / close[:-12] - 1.0) * 1e4
    shown = pattern * drift + 0.3 * random.normal(size=windows)
    features = np.stack([shown, past, random.normal(size=windows)], axis=1).astype(np.float32)
    stem = f"BTCUSDT/{date}"
    if geometry is not None:
        pixels = random.normal(size=(windows, *geometry.shape)).astype(np.float16)
        pixels[:, :, 2] += (pattern * drift)[:, None, None, None].astype(np.float16)
        with writing_images(storage, stem + IMAGES_SUFFIX, geometry.shape) as writer:
            for first in range(0, windows, 256):
                rows = slice(first, first + 256)
                scale = np.ones((len(decision_ms[rows]), geometry.channels), np.float32)
                writer.add(decision_ms[rows], pixels[rows], scale)
    quotes = {"slot_ms": slot_ms, "bid_price": mid - 0.05, "ask_price": mid + 0.05}
    write_columns(storage, stem + QUOTES_SUFFIX, quotes)
    columns = {
        "decision_ms": decision_ms,
        **{name: features[:, k] for k, name in enumerate(FEATURES)},
        "mid_price": close,
        "bid_price": close - 0.05,
        "ask_price": close + 0.05,
        "is_valid": np.ones(windows, np.bool_),
        "has_depth": np.ones(windows, np.bool_),
    }
    write_columns(storage, stem + FEATURES_SUFFIX, columns)
