"""Are the symbols listed? Asked once at the start of a run, which goes on without an answer.

Consumes symbols and the REST client → produces what the exchange says of them, or one clear refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from binance_api.errors import ExchangeError
from binance_api.rest import RestClient
from binance_api.rest_replies import SymbolInfo
from domain.errors import ConfigError
from domain.market import Market

log = structlog.get_logger()

ANSWER_TIMEOUT_S: Final = 5.0


async def listed(
    rest: RestClient, symbols: Sequence[str], market: Market
) -> Mapping[str, SymbolInfo]:
    """What ``exchangeInfo`` says of the symbols; empty if it does not answer or lists nothing.

    Raises:
        ConfigError: The exchange answers and does not know one of them.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            known = (await rest.exchange_info()).value
    except (ExchangeError, TimeoutError) as error:
        log.warning("exchange.info_unavailable", error=str(error) or "no answer in time")
        return {}
    if not known:
        return {}
    for symbol in symbols:
        if symbol not in known:
            raise ConfigError(
                f"SYMBOLS (--symbols): {symbol} is not known to the exchange "
                f"({market.value} market)"
            )
    return {symbol: known[symbol] for symbol in symbols}
