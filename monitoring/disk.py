"""Watches the free space under a data folder: warns below one bound, asks for a stop below another.

Consumes the folder's file system, produces log lines and one request to stop while there is still room
to write what waits. The owner stops its parts in order and ends with the error it was given.
"""

from __future__ import annotations

import asyncio
import enum
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from domain.errors import StorageError

log = structlog.get_logger()

_MIB: Final = 1_024 * 1_024
_LOOK_TIMEOUT_S: Final = 20.0


class DiskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When the disk counts as nearly full.

    Attributes:
        warn_mib: Less free space than this is warned about, MiB; 0: never.
        stop_mib: Less than this asks for a stop, MiB; 0: never.
        check_s: Seconds between two looks.
        repeat_s: Seconds between two warnings while it stays low.
    """

    warn_mib: int = 2_048
    stop_mib: int = 256
    check_s: float = 10.0
    repeat_s: float = 600.0


class DiskSpace(enum.StrEnum):
    """How much room there is."""

    ENOUGH = "enough"
    LOW = "low"
    FULL = "full"  # by our bound, before the system's


def free_bytes(folder: Path) -> int:
    """Bytes this user may still write below ``folder``, or below its nearest parent that exists.

    Raises:
        OSError: The system refused.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


class DiskWatch:
    """Looks at one folder's file system now and then.

    Args:
        folder: The data folder; several on one file system need one watch.
        settings: See ``DiskSettings``.
        free: Bytes free at a folder.
        monotonic: Seconds that never run back.
    """

    def __init__(
        self,
        folder: Path,
        settings: DiskSettings,
        *,
        free: Callable[[Path], int] = free_bytes,
        monotonic: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._free = free
        self._monotonic = monotonic
        self._space = DiskSpace.ENOUGH
        self._warned_at: float | None = None
        self._free_bytes: int | None = None
        self._failed_looks = 0
        self._looking: asyncio.Future[int] | None = None

    async def run(self) -> None:
        """Look until cancelled.

        Raises:
            StorageError: The disk is nearly full: time to stop.
        """
        while True:
            await self._look()
            if self._space is DiskSpace.FULL:
                raise self._full()
            await asyncio.sleep(self._settings.check_s)

    def judge(self, free: int) -> DiskSpace:
        """Say what so many free bytes mean; warns where due."""
        self._free_bytes = free
        was, self._space = self._space, self._space_for(free)
        if self._space is DiskSpace.LOW:
            self._warn(free)
        elif self._space is DiskSpace.ENOUGH and was is not DiskSpace.ENOUGH:
            log.info("disk.enough_again", folder=str(self._folder), free_mib=free // _MIB)
            self._warned_at = None
        return self._space

    def statistics(self) -> dict[str, int | float | str | None]:
        """Free space at the last look, how that was judged, and looks that failed."""
        return {
            "free_bytes": self._free_bytes,
            "free_mib": None if self._free_bytes is None else self._free_bytes // _MIB,
            "space": self._space.value,
            "failed_looks": self._failed_looks,
        }

    async def _look(self) -> None:
        """A file system that does not answer (a dead network share) must not end the run by itself."""
        loop = asyncio.get_running_loop()
        looking = self._looking or loop.run_in_executor(None, self._free, self._folder)
        await asyncio.wait({looking}, timeout=_LOOK_TIMEOUT_S)
        if not looking.done():
            self._looking = looking  # asked again, each look would hold another thread
            self._failed("no answer")
            return
        self._looking = None
        try:
            free = looking.result()
        except OSError as error:
            self._failed(str(error))
        else:
            self.judge(free)

    def _failed(self, reason: str) -> None:
        self._failed_looks += 1
        if self._failed_looks == 1:
            log.warning("disk.not_readable", folder=str(self._folder), error=reason)

    def _space_for(self, free: int) -> DiskSpace:
        if free < self._settings.stop_mib * _MIB:
            return DiskSpace.FULL
        return DiskSpace.LOW if free < self._settings.warn_mib * _MIB else DiskSpace.ENOUGH

    def _warn(self, free: int) -> None:
        now = self._monotonic()
        if self._warned_at is not None and now - self._warned_at < self._settings.repeat_s:
            return
        self._warned_at = now
        log.warning(
            "disk.low",
            folder=str(self._folder),
            free_mib=free // _MIB,
            stops_below_mib=self._settings.stop_mib,
        )

    def _full(self) -> StorageError:
        free_mib = (self._free_bytes or 0) // _MIB
        log.error("disk.nearly_full", folder=str(self._folder), free_mib=free_mib)
        return StorageError(
            f"only {free_mib} MiB are free at {self._folder} (DISK_STOP_MIB is "
            f"{self._settings.stop_mib}): stopped before the disk is full; free some space "
            "(python main.py prune) or choose another --data-dir"
        )
