"""The log lines of gaps and outliers: every gap found, outliers summed up; never a line per row."""

from __future__ import annotations

import time
from typing import Final

import structlog

from binance_api.connector_quality import Checked

log = structlog.get_logger()

_OUTLIERS_S: Final = 60.0  # between two lines about the outliers of one series
_GAP_LINES: Final = 10  # of one piece; the rest is summed up


class MarkLog:
    """Tells of the marks of one series.

    Args:
        symbol: Whose.
        interval: Of the candles; ``None``: ticks.
    """

    def __init__(self, symbol: str, interval: str | None) -> None:
        self._symbol = symbol
        self._series = interval or "tick"
        self._outliers = 0
        self._told_s: float | None = None

    def add(self, checked: Checked) -> None:
        """Log what a piece has in marks."""
        for gap in checked.gaps[:_GAP_LINES]:
            log.warning(
                "connector.gap",
                symbol=self._symbol,
                series=self._series,
                first=gap.start,
                until=gap.end,
                missing=gap.missing,
            )
        if len(checked.gaps) > _GAP_LINES:
            missing = sum(gap.missing for gap in checked.gaps)
            log.warning(
                "connector.gaps",
                symbol=self._symbol,
                series=self._series,
                count=len(checked.gaps),
                missing=missing,
            )
        self._outliers += int(checked.columns["outlier"].sum())
        now_s = time.monotonic()
        if self._outliers and (self._told_s is None or now_s - self._told_s >= _OUTLIERS_S):
            log.warning(
                "connector.outliers",
                symbol=self._symbol,
                series=self._series,
                count=self._outliers,
            )
            self._outliers, self._told_s = 0, now_s
