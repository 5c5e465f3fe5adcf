"""Signals on disk: ``signals/date=YYYY-MM-DD/*.parquet`` by the date of ``window_end_ms``.

Consumes ``Signal``s, produces the same partitioned Parquet as the feature rows. A signal is written
once; equal ``signal_id``s count once. ``evidence`` is JSON text, ``cost_usd`` a double.
"""

from __future__ import annotations

from pathlib import Path

from domain.events import Signal
from lake.atomic import StepHook, no_hook
from lake.buffered import BufferedStore, BufferSettings
from lake.partitioned import PartitionedStore


def signal_store(
    folder: Path, settings: BufferSettings | None = None, *, hook: StepHook = no_hook
) -> BufferedStore[Signal]:
    """A buffered store of signals below ``folder`` (``LakePaths.signals``)."""
    partitioned = PartitionedStore(
        folder,
        Signal,
        keys=("symbol", "window_end_ms", "signal_id"),
        time_column="window_end_ms",
        revision_column=None,
        hook=hook,
    )
    return BufferedStore(partitioned, settings)
