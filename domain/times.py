"""Times as people write them → UTC milliseconds, the unit everything inside counts in. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import numpy as np

type When = int | np.integer[Any] | str | dt.datetime | dt.date | None
"""UTC: milliseconds since the epoch, ISO 8601 text, or a datetime; without a zone it is UTC."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_MONTH: Final = re.compile(r"\d{4}-\d{2}")


def time_ms(when: When) -> int | None:
    """A time in UTC ms; ``None`` stays ``None``.

    Raises:
        ValueError: Text that is no ISO 8601 time.
        TypeError: Neither a number, nor text, nor a date.
    """
    if when is None or (isinstance(when, int | np.integer) and not isinstance(when, bool)):
        return None if when is None else int(when)
    if isinstance(when, str):
        text = when.strip()
        try:
            when = dt.datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text)
        except ValueError:
            raise ValueError(f"{when!r} is no time, write it as 2024-07-18T23:57:00") from None
    if isinstance(when, dt.date) and not isinstance(when, dt.datetime):
        when = dt.datetime(when.year, when.month, when.day, tzinfo=dt.UTC)
    if not isinstance(when, dt.datetime):
        raise TypeError(f"a time is ms, ISO text or a datetime, not {type(when).__name__}")
    moment = when if when.tzinfo is not None else when.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MILLISECOND
