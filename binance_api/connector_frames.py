"""Columns → the DataFrames that the connector promises (docs/connector.md: the global schema)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from binance_api.connector_quality import Checked

if TYPE_CHECKING:
    import pandas as pd

OHLCV_COLUMNS: Final = (
    *("timestamp", "open", "high", "low", "close", "volume", "quote_volume", "trade_count"),
    *("taker_buy_volume", "gap", "outlier"),
)
TICK_COLUMNS: Final = (
    *("timestamp", "agg_trade_id", "price", "quantity", "is_buyer_maker", "gap", "outlier"),
)
_POW10: Final = 10.0 ** np.arange(19)
_EXACT: Final = 2**53  # integers up to here are doubles, and so are powers of ten up to 10**22


def ohlcv_frame(checked: Checked) -> pd.DataFrame:
    """Candles; ``timestamp`` is the open time. ``attrs["gaps"]`` lists the holes."""
    times = checked.columns["open_time_ms"]
    gaps = [
        {"start": _text(gap.start), "end": _text(gap.end), "missing": gap.missing}
        for gap in checked.gaps
    ]
    return _frame(times, checked, OHLCV_COLUMNS, gaps)


def tick_frame(checked: Checked) -> pd.DataFrame:
    """Aggregate trades; ``timestamp`` is the exchange's. ``attrs["gaps"]`` lists missing ids."""
    times = checked.columns["transact_time_ms"]
    gaps = [
        {"first_id": gap.start, "last_id": gap.end - 1, "missing": gap.missing}
        for gap in checked.gaps
    ]
    return _frame(times, checked, TICK_COLUMNS, gaps)


def tick_columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """``TRADE_DTYPE`` rows as columns; prices and quantities are the nearest doubles."""
    return {
        "transact_time_ms": rows["transact_time_ms"],
        "agg_trade_id": rows["agg_trade_id"],
        "price": _nearest(rows["price"], rows["price_decimals"]),
        "quantity": _nearest(rows["quantity"], rows["quantity_decimals"]),
        "is_buyer_maker": rows["is_buyer_maker"],
    }


def _frame(
    times_ms: np.ndarray, checked: Checked, names: tuple[str, ...], gaps: list[dict[str, Any]]
) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - only the connector's users need it

    stamps = pd.DatetimeIndex(times_ms.astype("datetime64[ms]"), tz="UTC")
    columns = {name: checked.columns[name] for name in names if name != "timestamp"}
    frame = pd.DataFrame({"timestamp": stamps, **columns}, columns=list(names))
    frame.attrs["gaps"] = gaps
    return frame


def _nearest(mantissa: np.ndarray, decimals: np.ndarray) -> np.ndarray:
    """float64[n], the nearest doubles of ``mantissa / 10**decimals``."""
    values: np.ndarray = mantissa / _POW10[decimals]
    for i in np.flatnonzero(mantissa > _EXACT).tolist():
        values[i] = float(f"{mantissa[i]}e-{decimals[i]}")
    return values


def _text(time_ms: int) -> str:
    """``"2024-07-18T23:57:00.000Z"``."""
    return f"{np.datetime64(time_ms, 'ms')}Z"
