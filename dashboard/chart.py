"""Area charts out of block characters, several on one time axis. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from dashboard.state import Bar

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = 8


class Axis(msgspec.Struct, frozen=True):
    """A time axis: each column covers ``step_ms`` and the last one ends at ``end_ms``."""

    end_ms: int
    step_ms: int
    columns: int

    @property
    def start_ms(self) -> int:
        """Where the first column starts."""
        return self.end_ms - self.step_ms * self.columns

    def sample(
        self, bars: Sequence[Bar], value: Callable[[Bar], float | None]
    ) -> list[float | None]:
        """The last value in each column; None where no window ended."""
        found: list[float | None] = [None] * self.columns
        for bar in bars:
            behind = (self.end_ms - bar.end_ms) // self.step_ms
            if 0 <= behind < self.columns and (number := value(bar)) is not None:
                found[self.columns - 1 - behind] = number
        return found


def area(values: Sequence[float | None], rows: int) -> list[str]:
    """``rows`` lines from top to bottom, the smallest value one eighth high; blank where None."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    scale = (rows * _EIGHTHS - 1) / (high - low) if high > low else 0.0
    base = 1 if scale else (rows * _EIGHTHS + 1) // 2
    heights = [0 if v is None else base + round((v - low) * scale) for v in values]
    return [
        "".join(_BLOCKS[min(_EIGHTHS, max(0, height - floor))] for height in heights)
        for floor in range((rows - 1) * _EIGHTHS, -1, -_EIGHTHS)
    ]
