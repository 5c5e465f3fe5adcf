"""Where everything lies below the data folder: one place that knows the tree.

Consumes the data folder and the market, produces paths. USDⓈ-M futures live at the root, another
market has the same tree below ``<data folder>/<market>``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from domain.market import Market

DAY_MS: Final = 86_400_000


class LakePaths(msgspec.Struct, frozen=True, kw_only=True):
    """The tree of one market. ``raw`` and ``curated`` may lie elsewhere (their own settings)."""

    root: Path
    raw: Path
    curated: Path

    @classmethod
    def of(
        cls,
        data_folder: Path,
        market: Market = Market.UM,
        *,
        raw: Path | None = None,
        curated: Path | None = None,
    ) -> Self:
        """The tree of ``market``; ``raw`` and ``curated`` replace those subtrees where given."""

        def below(folder: Path) -> Path:
            return folder if market is Market.UM else folder / market.value

        root = below(data_folder)
        return cls(
            root=root,
            raw=root / "raw" if raw is None else below(raw),
            curated=root / "curated" if curated is None else below(curated),
        )

    @property
    def features(self) -> Path:
        """Feature rows: ``date=YYYY-MM-DD/*.parquet``."""
        return self.root / "features"

    @property
    def signals(self) -> Path:
        """Signals: ``date=YYYY-MM-DD/*.parquet``."""
        return self.root / "signals"

    @property
    def quarantine(self) -> Path:
        """Rejected input: ``YYYY-MM-DD.jsonl``."""
        return self.root / "quarantine"

    @property
    def gaps(self) -> Path:
        """The gap ledgers, one journal per role."""
        return self.root / "gaps"

    @property
    def analyst_calls(self) -> Path:
        """One record per provider attempt: ``calls-YYYY-MM-DD.jsonl``."""
        return self.root / "ai"

    def stream(self, kind: Literal["trades", "depth"], date: str) -> Path:
        """Folder of recorded frames of one UTC date (``YYYY-MM-DD``)."""
        return self.raw / "stream" / kind / date

    @property
    def stream_journal(self) -> Path:
        """Recorded frames that are not in Parquet yet."""
        return self.raw / "stream" / "journal"

    def historical(self, symbol: str) -> Path:
        """Folder of the archive's months of one symbol."""
        return self.raw / "historical" / symbol

    def klines(self, interval: str) -> Path:
        """Folder of ingested klines of one interval."""
        return self.raw / interval
