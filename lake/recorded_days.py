"""Where recorded days lie, and what a recording is called."""

from __future__ import annotations

import re
from pathlib import Path

from domain.market import Market
from lake.paths import LakePaths

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_STREAM_KINDS = ("trades", "depth")  # of recorded frames, each with a folder per day


def recorded_days(folder: Path, market: Market) -> Path | None:
    """Where ``record`` wrote: below a data folder, or the folder itself, or one day of it."""
    for data_folder in dict.fromkeys((LakePaths.of(folder, market).root, folder)):
        if (data_folder / "raw" / "stream").is_dir():
            return data_folder / "raw" / "stream"
    place = folder.resolve()
    is_stream = any((place / kind).is_dir() for kind in _STREAM_KINDS)
    is_day = place.parent.name in _STREAM_KINDS and _DAY.fullmatch(place.name)
    stream = place if is_stream else place.parents[1] if is_day else place.parent
    return folder if (is_stream or is_day) and stream.name == "stream" else None


def recording_name(path: Path) -> str:
    """A recording's name without its extensions: ``x/usdm_20240718.ndjson.gz`` → ``usdm_20240718``.

    Recorded days have that of their data folder, a day alone with its date: ``data-2024-07-18``.
    """
    place = path.resolve()
    if not place.is_dir() or data_folder_of(place) == place:
        return place.name.split(".", 1)[0] or place.name
    folder = data_folder_of(place)
    name = folder.parent.name if folder.name == Market.SPOT.value else folder.name
    return f"{name}-{place.name}" if _DAY.fullmatch(place.name) else name


def data_folder_of(days: Path) -> Path:
    """The data folder, of the market, that recorded days lie in; other folders are their own."""
    place = days.resolve()
    stream = place.parents[1] if _DAY.fullmatch(place.name) else place
    return stream.parent.parent if stream.name == "stream" else place
