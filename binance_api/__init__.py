"""Everything that speaks Binance. Re-exports the connector, loaded when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from binance_api.connector import BinanceConnector
    from binance_api.connector_session import close_binance_connection, connect_to_binance

__all__ = ["BinanceConnector", "close_binance_connection", "connect_to_binance"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "connector" if name == "BinanceConnector" else "connector_session"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
