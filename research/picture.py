"""Book images as pictures for people: the channels of one decision, and a strip of those around it.

``DayData`` → a PNG with seconds before the decision and distance from the mid in bps as axes. Nothing
after the last decision shown is drawn.
"""

from __future__ import annotations

import datetime as dt
import io
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError
from domain.model_card import ImageGeometry
from microstructure.book_image import CHANNELS
from research.dataset import DayData, Floats

_COLOURS: Final = "RdBu"  # asks, removals and sales red; bids, additions and purchases blue
_SIGNS: Final = ("bids + / asks −", "added + / removed −", "bought + / sold −")
_BPS: Final = 10_000.0
_LIMIT_QUANTILE: Final = 0.995
_DPI: Final = 110


class Shown(msgspec.Struct, frozen=True, eq=False):
    """What is drawn: the images of some rows, the last one large."""

    day: DayData
    geometry: ImageGeometry
    rows: npt.NDArray[np.intp]
    pixels: npt.NDArray[np.float32]  # [k, C, H, slots], oldest slot first
    bin_width: Floats  # [k], quote units


def shown_rows(day: DayData, at_ms: int | None, count: int) -> npt.NDArray[np.intp]:
    """The row decided at or before a time, after the ``count - 1`` before it.

    Raises:
        ConfigError: The day has no such time or no usable image.
    """
    usable = np.flatnonzero(day.is_valid)
    if not len(usable):
        raise ConfigError(f"--at: {day.symbol} of {day.date} has no usable image")
    if at_ms is None:
        last = int(usable[min(count, len(usable)) - 1])
    else:
        last = int(np.searchsorted(day.decision_ms, at_ms, side="right")) - 1
        if last < 0 or not day.is_valid[last]:
            nearest = usable[np.abs(day.decision_ms[usable] - at_ms).argmin()]
            time = moment(int(day.decision_ms[nearest])).isoformat()[:19]
            raise ConfigError(f"--at: no usable image there, the nearest is of {time}")
    return np.arange(max(last - count + 1, 0), last + 1)


def moment(time_ms: int) -> dt.datetime:
    """UTC."""
    return dt.datetime.fromtimestamp(time_ms / 1_000, dt.UTC)


def pixels_of(day: DayData, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """float32[k, C, H, slots]: the frames of each image one after the other."""
    images = day.images(rows).astype(np.float32)
    count, frames, channels, height, width = images.shape
    joined = images.transpose(0, 2, 3, 1, 4)
    return joined.reshape(count, channels, height, frames * width)


def render(shown: Shown) -> bytes:
    """The picture as PNG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise ConfigError("features show needs the package matplotlib; install it") from None
    count = len(shown.rows)
    figure = Figure(figsize=(14.0, 10.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.05, 1.0))
    top, bottom = halves
    large = top.subplots(1, len(CHANNELS), sharey=True)
    strip = bottom.subplots(len(CHANNELS), count, sharex=True, squeeze=False)
    limits = [_limit(shown.pixels[:, channel]) for channel in range(len(CHANNELS))]
    for channel, axes in enumerate(large):
        drawn = _draw(axes, shown, count - 1, channel, limits[channel])
        _draw_quotes(axes, shown, count - 1)
        axes.set_title(f"{_name(shown.day, channel)}\n{_SIGNS[channel]}", fontsize=10)
        axes.set_xlabel("seconds before the decision")
        bar = top.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
        bar.set_label("± log(1 + size / scale)", fontsize=8)
    large[0].set_ylabel("distance from mid, bps")
    for channel, line in enumerate(strip):
        for place, axes in enumerate(line):
            _draw(axes, shown, place, channel, limits[channel])
            axes.tick_params(labelsize=7)
            if place:
                axes.set_yticklabels([])
            if channel == 0:
                time = moment(int(shown.day.decision_ms[shown.rows[place]]))
                mark = "" if shown.day.is_valid[shown.rows[place]] else " (unusable)"
                axes.set_title(f"{time:%H:%M:%S}{mark}", fontsize=8)
        line[0].set_ylabel(f"{_name(shown.day, channel)}\nbps", fontsize=8)
    bottom.supxlabel("seconds before each decision", fontsize=9)
    figure.suptitle(_title(shown), fontsize=12)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "orderflow"})
    return content.getvalue()


def _name(day: DayData, channel: int) -> str:
    if day.has_depth:
        return CHANNELS[channel]
    return ("terrain left (from trades)", "worn off (from trades)", CHANNELS[2])[channel]


def _title(shown: Shown) -> str:
    day, row = shown.day, int(shown.rows[-1])
    time, geometry = moment(int(day.decision_ms[row])), shown.geometry
    width = shown.bin_width[-1]
    return (
        f"{day.symbol}  {time:%Y-%m-%d %H:%M:%S} UTC   mid {day.mid_price[row]:,.10g}   "
        f"bin {width:.6g} = {_BPS * width / day.mid_price[row]:.3g} bps   "
        f"{geometry.frames} frames × {geometry.width} slots of {geometry.slot_ms} ms"
    )


def _limit(pixels: npt.NDArray[np.float32]) -> float:
    """Colours reach from minus to plus this."""
    found = np.abs(pixels[pixels != 0.0])
    return float(np.quantile(found, _LIMIT_QUANTILE)) if len(found) else 1.0


def _draw(axes: Any, shown: Shown, place: int, channel: int, limit: float) -> Any:
    row = int(shown.rows[place])
    half = shown.geometry.height / 2 * shown.bin_width[place]
    reach = _BPS * half / shown.day.mid_price[row]
    if not np.isfinite(reach):
        reach = 1.0
    drawn = axes.imshow(
        shown.pixels[place, channel],
        cmap=_COLOURS,
        vmin=-limit,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(-shown.geometry.span_ms / 1_000, 0.0, -reach, reach),
    )
    axes.axhline(0.0, color="black", linewidth=0.5, linestyle=":")
    return drawn


def _draw_quotes(axes: Any, shown: Shown, place: int) -> None:
    """Best bid and ask up to the decision."""
    day, row = shown.day, int(shown.rows[place])
    decision_ms = int(day.decision_ms[row])
    first, stop = np.searchsorted(
        day.quote_slot_ms, [decision_ms - shown.geometry.span_ms, decision_ms], side="right"
    )
    seconds = (day.quote_slot_ms[first:stop] - decision_ms) / 1_000
    mid = day.mid_price[row]
    for quotes in (day.quote_bid, day.quote_ask):
        distance = _BPS * (quotes[first:stop] / mid - 1.0)
        axes.plot(seconds, distance, color="black", linewidth=0.7, alpha=0.8)
    axes.set_xlim(-shown.geometry.span_ms / 1_000, 0.0)
