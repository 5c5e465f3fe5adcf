"""The order of depth snapshots, read from the raw message without decoding it. Pure.

Used only around a change of the primary socket: snapshots of one book are ordered by their last
update id, whichever socket brought them (``u`` on futures, ``lastUpdateId`` on spot).
https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams/Partial-Book-Depth-Streams
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_STREAM = re.compile(rb'"stream"\s*:\s*"([^"]+)"')
_UPDATE_ID = re.compile(rb'"(?:u|lastUpdateId)"\s*:\s*(\d{1,19})')


def depth_order(payload: bytes) -> tuple[bytes, int] | None:
    """Stream name and last update id of a depth message; ``None`` if it has none."""
    stream, update_id = _STREAM.search(payload), _UPDATE_ID.search(payload)
    if stream is None or update_id is None:
        return None
    return stream[1], int(update_id[1])


def newest(payloads: Iterable[bytes]) -> dict[bytes, int]:
    """The highest update id of each stream in ``payloads``."""
    found: dict[bytes, int] = {}
    for payload in payloads:
        order = depth_order(payload)
        if order is not None and order[1] > found.get(order[0], -1):
            found[order[0]] = order[1]
    return found


def is_newer(payload: bytes, floor: dict[bytes, int]) -> bool:
    """Whether ``payload`` is newer than ``floor`` (from ``newest``), or cannot be ordered."""
    order = depth_order(payload)
    return order is None or order[1] > floor.get(order[0], -1)
