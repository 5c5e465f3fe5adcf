"""Datasets on disk: what ``features build`` wrote, day by day.

``datasets/NAME`` (a path or URI) → ``DayData``: features, quotes, and images that are read a chunk at
a time when they are asked for. Times are UTC ms; a decision is made at the end of its window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError, StorageError
from domain.model_card import ImageGeometry
from lake.dataset_files import CONTENT_KEY, ImageFile, read_columns, read_metadata
from lake.part_files import DamagedFile
from lake.storage import Storage

INFO_FILE: Final = "dataset.json"
FEATURES_SUFFIX: Final = ".features.parquet"
IMAGES_SUFFIX: Final = ".images.parquet"
QUOTES_SUFFIX: Final = ".quotes.parquet"
DATASET_SCHEMA_VERSION: Final = 1

VERSION_KEY: Final = "orderflow.input_version"
SOURCE_KEY: Final = "orderflow.source"
IMAGES_KEY: Final = "orderflow.images_sha256"
QUOTES_KEY: Final = "orderflow.quotes_sha256"
"""Metadata of a day's feature table, which is written last: a day that has one is whole."""

type Floats = npt.NDArray[np.float64]


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What all days of a dataset have in common."""

    input_version: str
    feature_names: tuple[str, ...]
    measure_names: tuple[str, ...] = ()  # columns beside the features, not for the model
    geometry: ImageGeometry | None  # None: no images
    market: str
    window_ms: int
    source: str  # the lake it was built from
    schema_version: int = DATASET_SCHEMA_VERSION


class DayData(msgspec.Struct, frozen=True, eq=False):
    """One symbol's day, one row per window.

    Attributes:
        symbol: Upper case.
        date: UTC, ``YYYY-MM-DD``: that of the windows' starts.
        decision_ms: int64[n], ends of the windows; everything in a row is older.
        features: float32[n, F], NaN where undefined.
        feature_names: F of them.
        mid_price: float64[n], at the decision; NaN where undefined, as bid and ask.
        bid_price: float64[n].
        ask_price: float64[n].
        is_valid: bool[n]; False: touches a long hole or a resync, or has no quotes.
        quote_slot_ms: int64[m], the end of each 100 ms slot: the quote is what was known then.
        quote_bid: float64[m], NaN where undefined.
        quote_ask: float64[m].
        has_depth: False: quotes and images were reconstructed from trades.
        image_file: Where the images are; ``None`` where there are none.
    """

    symbol: str
    date: str
    decision_ms: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    feature_names: tuple[str, ...]
    mid_price: Floats
    bid_price: Floats
    ask_price: Floats
    is_valid: npt.NDArray[np.bool_]
    quote_slot_ms: npt.NDArray[np.int64]
    quote_bid: Floats
    quote_ask: Floats
    has_depth: bool = True
    image_file: ImageFile | None = None

    def __len__(self) -> int:
        return len(self.decision_ms)

    def images(self, rows: npt.NDArray[np.intp] | slice) -> npt.NDArray[np.float16]:
        """float16[k, T, C, H, W] of these rows, in their order; read now.

        Raises:
            ValueError: The dataset has no images.
            StorageError: They cannot be read.
        """
        if self.image_file is None:
            raise ValueError(f"{self.symbol} {self.date}: this dataset has no images")
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        try:
            return self.image_file.rows(wanted)
        except (DamagedFile, FileNotFoundError) as error:
            raise StorageError(f"cannot read images: {error}") from error


class Dataset:
    """A dataset that ``features build`` wrote; see ``open``."""

    def __init__(self, storage: Storage, info: DatasetInfo) -> None:
        self._storage = storage
        self.info = info
        self._dates: dict[str, list[str]] = {}
        for stored in storage.files():
            symbol, _, name = stored.name.partition("/")
            if name.endswith(FEATURES_SUFFIX) and not name.startswith("."):
                self._dates.setdefault(symbol, []).append(name.removesuffix(FEATURES_SUFFIX))

    @classmethod
    def open(cls, uri: str | Path) -> Self:
        """The dataset of a folder: a path, ``file://…`` or ``s3://…``.

        Raises:
            ConfigError: There is none, or its ``dataset.json`` cannot be understood.
            StorageError: The storage refused.
        """
        try:
            storage = Storage.of(uri)
        except ValueError as error:
            raise ConfigError(f"no dataset at {error}") from error
        info = read_info(storage)
        if info is None:
            raise ConfigError(f"no dataset at {uri}: build one with features build")
        return cls(storage, info)

    def symbols(self) -> tuple[str, ...]:
        """Symbols that have days, sorted."""
        return tuple(sorted(self._dates))

    def dates(self, symbol: str) -> tuple[str, ...]:
        """A symbol's days, oldest first."""
        return tuple(sorted(self._dates.get(symbol, ())))

    def day(self, symbol: str, date: str) -> DayData:
        """One day; its images are read later.

        Raises:
            ConfigError: The dataset does not have it.
            StorageError: It cannot be read.
        """
        if date not in self._dates.get(symbol, ()):
            raise ConfigError(f"{self._storage.uri} has no {symbol} of {date}")
        try:
            return self._day(symbol, date)
        except (DamagedFile, FileNotFoundError) as error:
            raise StorageError(f"cannot read {symbol} of {date}: {error}") from error

    def _day(self, symbol: str, date: str) -> DayData:
        stem = f"{symbol}/{date}"
        names = self.info.feature_names
        table = read_columns(self._storage, stem + FEATURES_SUFFIX)
        quotes = read_columns(self._storage, stem + QUOTES_SUFFIX)
        features = np.stack([table[name] for name in names], axis=1) if names else None
        return DayData(
            symbol=symbol,
            date=date,
            decision_ms=table["decision_ms"],
            features=np.empty((len(table["decision_ms"]), 0), np.float32)
            if features is None
            else features,
            feature_names=names,
            mid_price=table["mid_price"],
            bid_price=table["bid_price"],
            ask_price=table["ask_price"],
            is_valid=table["is_valid"],
            quote_slot_ms=quotes["slot_ms"],
            quote_bid=quotes["bid_price"],
            quote_ask=quotes["ask_price"],
            has_depth=bool(table["has_depth"].all()),
            image_file=None
            if self.info.geometry is None
            else ImageFile(self._storage, stem + IMAGES_SUFFIX),
        )

    def columns(
        self, symbol: str, date: str, names: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Columns of a day's table by name, such as ``info.measure_names`` and ``bin_width``.

        Raises:
            StorageError: They cannot be read.
        """
        try:
            return read_columns(self._storage, f"{symbol}/{date}{FEATURES_SUFFIX}", names)
        except (DamagedFile, FileNotFoundError) as error:
            raise StorageError(f"cannot read {symbol} of {date}: {error}") from error

    def sha256(self) -> str:
        """The hash of what the days hold, whatever their encoding.

        Raises:
            StorageError: A day cannot be read.
        """
        digest = hashlib.sha256(self.info.input_version.encode())
        for symbol in self.symbols():
            for date in self.dates(symbol):
                about = day_facts(self._storage, symbol, date) or {}
                hashes = (about.get(key, "") for key in (CONTENT_KEY, IMAGES_KEY, QUOTES_KEY))
                digest.update(" ".join([symbol, date, *hashes, "\n"]).encode())
        return digest.hexdigest()


def read_info(storage: Storage) -> DatasetInfo | None:
    """What ``dataset.json`` says; ``None`` where there is none.

    Raises:
        ConfigError: It cannot be understood.
        StorageError: The storage refused.
    """
    try:
        return msgspec.json.decode(storage.read(INFO_FILE), type=DatasetInfo)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{storage.uri}/{INFO_FILE} cannot be understood: {error}") from error


def write_info(storage: Storage, info: DatasetInfo) -> None:
    """Write ``dataset.json``.

    Raises:
        StorageError: The storage refused.
    """
    content = msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n"
    storage.write(INFO_FILE, content)


def day_facts(storage: Storage, symbol: str, date: str) -> dict[str, str] | None:
    """What a day's feature table says of the day; ``None`` where it is missing or unreadable.

    Raises:
        StorageError: The storage refused.
    """
    try:
        return read_metadata(storage, f"{symbol}/{date}{FEATURES_SUFFIX}")
    except (FileNotFoundError, DamagedFile):
        return None
