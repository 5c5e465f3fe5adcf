"""Depth payloads → the text of their levels, for whoever reads the numbers of many books at once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from binance_api.wire import RawDepthFrame, RawSpotDepthFrame
from domain.market import Market

_um = msgspec.json.Decoder(list[RawDepthFrame], strict=False)
_spot = msgspec.json.Decoder(list[RawSpotDepthFrame], strict=False)


def level_texts(
    payloads: Sequence[bytes], market: Market = Market.UM
) -> tuple[list[bytes], list[bytes]]:
    """Bids and asks of each payload as sent: ``[["price","size"],…]``, best first.

    Args:
        payloads: Combined frames that ``decode_depth`` accepted.
        market: Whose layout they have.
    """
    text = b"[" + b",".join(payloads) + b"]"
    frames = (_spot if market is Market.SPOT else _um).decode(text)
    return (
        [bytes(frame.data.bids) for frame in frames],
        [bytes(frame.data.asks) for frame in frames],
    )
