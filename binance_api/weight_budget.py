"""The request weight of one exchange host, shared by every process of this user on the machine.

Consumes weights about to be spent, the exchange's own count and its refusals; produces "go" or
seconds to wait. The state is one small file per host under an OS lock, which dies with its holder.
Invariants: never blocks longer than ``_SPIN_S``; an unusable file only costs the sharing.
https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info (Limits)
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog

from binance_api.endpoints import LONGEST_BAN_S

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = structlog.get_logger()

_MINUTE_MS: Final = 60_000
_RECORD_BYTES: Final = 160  # fixed, so that one write replaces all of the old record
_LOCKED_BYTE: Final = 1 << 20  # Windows locks bytes, and locked ones cannot be read: one far behind
_SPIN_S: Final = 0.002  # longest wait for the lock on the caller's thread
_BUSY_WAIT_S: Final = 0.005  # what the caller is told to wait while another process has the lock
_GIVE_UP_S: Final = 1.0  # a lock held this long belongs to a stopped process: go on unshared
_SETTLE_MS: Final = 1_000  # the exchange's minute may begin this much later than ours
_AMBIGUOUS_MS: Final = 1_500  # so early in a minute, the exchange's count may be the last minute's
_MAX_USED: Final = 10_000_000


class WeightBudgetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the budget is kept.

    Attributes:
        folder: Where the files lie; ``None``: a folder of this user in the temporary folder.
        bulk_ratio: Share of the limit that requests which are not urgent may use.
        window_s: The minute's weight is given out in equal parts, one every so many seconds; what is
            left of a part is carried on. A divisor of 60; 60: all at once.
    """

    folder: Path | None = None
    bulk_ratio: float = 0.8
    window_s: int = 60

    def __post_init__(self) -> None:
        if self.window_s < 1 or 60 % self.window_s:
            raise ValueError(f"window_s must divide 60, not {self.window_s}")
        if not 0.0 < self.bulk_ratio <= 1.0:
            raise ValueError(f"bulk_ratio must be above 0 and at most 1, not {self.bulk_ratio}")


class _State(msgspec.Struct):
    """What the file holds."""

    minute: int = 0  # ms since the epoch // 60,000, by the exchange's clock
    used: int = 0
    blocked_until_ms: int = 0
    is_banned: bool = False
    clock_offset_ms: int = 0  # the exchange's clock minus ours


_decoder: Final = msgspec.json.Decoder(_State)


class WeightBudget:
    """One host's budget; several objects, in this and in other processes, are one budget.

    Args:
        base_url: Scheme and host; another host or port is another budget.
        limit: Weight per clock minute.
        settings: See ``WeightBudgetSettings``.
        wall_ms: Local wall clock, ms since the epoch.
    """

    def __init__(
        self,
        base_url: str,
        limit: int,
        settings: WeightBudgetSettings | None = None,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit must be positive, not {limit}")
        self._settings = settings or WeightBudgetSettings()
        self._limit = limit
        self._wall_ms = wall_ms
        self._state = _State()  # the newest we have seen; all there is when the file is unusable
        self._unwritten_used = 0  # weight of this minute that the file does not know
        self._locked_out_since: float | None = None
        self._is_shared = True
        self._counts = dict.fromkeys(
            ("reserved_weight", "waits", "files_replaced", "unshared_reservations"), 0
        )
        self._path = (self._settings.folder or user_folder()) / f"weight-{host_key(base_url)}.json"
        _drop_old(self._path.parent, wall_ms())

    @property
    def path(self) -> Path:
        """The file shared with the other processes."""
        return self._path

    @property
    def is_banned(self) -> bool:
        """Whether the last known block is a ban (418) rather than a 429."""
        return self._state.is_banned

    def lower_limit(self, limit: int) -> None:
        """Respect a limit the exchange states, if it is below ours; never raises the limit."""
        self._limit = max(1, min(self._limit, limit))

    def reserve(self, weight: int, *, urgent: bool = False) -> float:
        """Take ``weight`` from this minute's budget, or say how long to wait before asking again.

        A request heavier than its whole share goes only in an unused minute.

        Args:
            weight: Weight of the request about to be sent.
            urgent: May use all of the limit, not only ``bulk_ratio`` of it.

        Returns:
            0.0 when the request may be sent now, else seconds to wait; nothing is taken then.
        """
        cap = self._limit if urgent else int(self._limit * self._settings.bulk_ratio)
        with self._exclusive() as descriptor:
            if descriptor is None and self._is_lock_awaited():
                return _BUSY_WAIT_S
            now_ms = self._load(descriptor)
            wait_s = self._wait_s(now_ms, weight, cap)
            if wait_s == 0.0:
                self._state.used += weight
                self._unwritten_used += weight
                self._counts["reserved_weight"] += weight
                self._counts["unshared_reservations"] += descriptor is None
                self._store(descriptor)
            else:
                self._counts["waits"] += 1
        return wait_s

    def correct(self, used_weight: int, sent_ms: int) -> None:
        """Raise this minute's count to what the exchange says it is; never lowers it.

        A count that may belong to the minute before is left out.

        Args:
            used_weight: The exchange's count, from the header of a reply.
            sent_ms: Local time the request was sent, ms.
        """
        minute, _ = self._minute_ms(self._wall_ms())
        sent_minute, into_minute_ms = self._minute_ms(sent_ms)
        if sent_minute != minute or into_minute_ms < _AMBIGUOUS_MS:
            return
        if minute == self._state.minute and used_weight <= self._state.used:
            return
        with self._exclusive() as descriptor:
            self._load(descriptor)
            if used_weight > self._state.used:
                self._state.used = min(used_weight, _MAX_USED)
                self._store(descriptor)

    def block(self, seconds: float, *, banned: bool) -> None:
        """Let no request of any process go for ``seconds`` (429 or 418); never shortens a block."""
        with self._exclusive() as descriptor:
            now_ms = self._load(descriptor)
            until_ms = now_ms + int(min(max(seconds, 0.0), LONGEST_BAN_S) * 1_000)
            if until_ms > self._state.blocked_until_ms:
                self._state.blocked_until_ms = until_ms
                self._state.is_banned = banned
                self._store(descriptor)

    def blocked_s(self) -> float:
        """Seconds until the present block ends; 0.0 if there is none."""
        with self._exclusive() as descriptor:
            now_ms = self._load(descriptor)
        return max(0, self._state.blocked_until_ms - now_ms) / 1_000

    def learn_clock(self, date_ms: int, sent_ms: int, received_ms: int) -> None:
        """Correct our idea of the exchange's minute by a ``Date`` header (whole seconds).

        Args:
            date_ms: The header, ms since the epoch.
            sent_ms: Local time the request was sent, ms.
            received_ms: Local time the reply arrived, ms.
        """
        lowest, highest = date_ms - received_ms, date_ms + 999 - sent_ms
        if lowest <= self._state.clock_offset_ms <= highest:
            return
        with self._exclusive() as descriptor:
            self._load(descriptor)
            offset_ms = min(max(self._state.clock_offset_ms, lowest), highest)
            self._state.clock_offset_ms = offset_ms
            self._store(descriptor)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Weight taken by this process, waits, and the state last seen."""
        return {
            **self._counts,
            "used_weight": self._state.used,
            "limit": self._limit,
            "clock_offset_ms": self._state.clock_offset_ms,
            "shared": int(self._is_shared),
        }

    # --- the minute ---------------------------------------------------------------------------

    def _minute_ms(self, local_ms: int) -> tuple[int, int]:
        """The exchange's minute at a local time, and how many ms of it have passed."""
        return divmod(local_ms + self._state.clock_offset_ms, _MINUTE_MS)

    def _wait_s(self, now_ms: int, weight: int, cap: int) -> float:
        blocked_ms = self._state.blocked_until_ms - now_ms
        if blocked_ms > 0:
            return blocked_ms / 1_000
        window_ms = self._settings.window_s * 1_000
        into_minute_ms = now_ms + self._state.clock_offset_ms - self._state.minute * _MINUTE_MS
        given_ms = min(max(into_minute_ms, 0) // window_ms * window_ms + window_ms, _MINUTE_MS)
        if self._state.used == 0 or self._state.used + weight <= cap * given_ms // _MINUTE_MS:
            return 0.0
        settle_ms = _SETTLE_MS if given_ms == _MINUTE_MS else 0
        next_ms = self._state.minute * _MINUTE_MS + given_ms + settle_ms
        return (next_ms - self._state.clock_offset_ms - now_ms) / 1_000

    def _renew(self, now_ms: int) -> None:
        """Begin a new minute if it is time, and drop what cannot be: a clock was turned back."""
        state = self._state
        minute, _ = self._minute_ms(now_ms)
        # One minute ahead: a process whose clock is a little before ours, which we follow.
        if minute > state.minute or state.minute > minute + 1:
            state.minute, state.used = minute, 0
            self._unwritten_used = 0
        if state.blocked_until_ms > now_ms + (LONGEST_BAN_S + 60) * 1_000:
            state.blocked_until_ms = 0
        if state.blocked_until_ms <= now_ms:
            state.is_banned = False

    # --- the file -----------------------------------------------------------------------------

    def _load(self, descriptor: int | None) -> int:
        """Bring ``_state`` up to date; returns the local time, ms."""
        found = self._read(descriptor) if descriptor is not None else None
        if found is not None:
            self._adopt(found)
        now_ms = self._wall_ms()
        self._renew(now_ms)
        return now_ms

    def _adopt(self, found: _State) -> None:
        """Take the file's state, and what we could not write into it."""
        known = self._state
        if found.minute == known.minute:
            found.used += self._unwritten_used
        if known.blocked_until_ms > found.blocked_until_ms:
            found.blocked_until_ms, found.is_banned = known.blocked_until_ms, known.is_banned
        self._state = found

    def _read(self, descriptor: int) -> _State | None:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            raw = os.read(descriptor, _RECORD_BYTES)
        except OSError as error:
            self._unshared(error)
            return None
        if not raw:
            return None
        try:
            state = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            state = None
        if state is None or not 0 <= state.used <= _MAX_USED:
            self._counts["files_replaced"] += 1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            return None
        return state

    def _store(self, descriptor: int | None) -> None:
        if descriptor is None:
            return
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, msgspec.json.encode(self._state).ljust(_RECORD_BYTES))
        except OSError as error:
            self._unshared(error)
            return
        self._unwritten_used = 0
        self._is_shared = True

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[int | None]:
        """The opened and locked file; ``None`` if it cannot be had now."""
        try:
            descriptor = self._open()
        except OSError as error:
            self._unshared(error)
            yield None
            return
        try:
            if self._lock(descriptor):
                try:
                    yield descriptor
                finally:
                    _unlock(descriptor)
            else:
                yield None
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            return os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            _make_private(self._path.parent)
            return os.open(self._path, flags, 0o600)

    def _lock(self, descriptor: int) -> bool:
        started = time.monotonic()
        try:
            while not _try_lock(descriptor):
                if time.monotonic() - started > _SPIN_S:
                    self._locked_out_since = self._locked_out_since or started
                    return False
                time.sleep(0.000_1)
        except OSError as error:  # a file system without locks
            self._unshared(error)
            return False
        self._locked_out_since = None
        return True

    def _is_lock_awaited(self) -> bool:
        """Another process has the lock and may be expected to free it."""
        since = self._locked_out_since
        if since is None:
            return False
        if time.monotonic() - since < _GIVE_UP_S:
            return True
        self._unshared(TimeoutError("locked by a process that does not go on"))
        return False

    def _unshared(self, error: OSError) -> None:
        if self._is_shared:
            self._is_shared = False
            log.warning("rest.budget_not_shared", path=str(self._path), error=str(error))


def user_folder() -> Path:
    """The folder of all budgets of the user who runs this process."""
    name = "orderflow"  # Windows: the temporary folder is already the user's own
    if sys.platform != "win32":
        name = f"orderflow-{os.getuid()}"
    return Path(tempfile.gettempdir()) / name


def host_key(base_url: str) -> str:
    """Host and port of a URL as a file name: ``"https://fapi.binance.com"`` → ``"fapi.binance.com"``."""
    parts = urlsplit(base_url.lower())
    port = f"_{parts.port}" if parts.port else ""
    return re.sub(r"[^a-z0-9.-]", "_", parts.hostname or "unknown") + port


def _make_private(folder: Path) -> None:
    """Create the folder for this user alone; refuse one that another user planted."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")


def _drop_old(folder: Path, now_ms: int) -> None:
    """Remove budgets older than any ban: each run of a local exchange has a port of its own."""
    oldest_s = now_ms / 1_000 - LONGEST_BAN_S
    with contextlib.suppress(OSError):
        for path in folder.glob("weight-*.json"):
            if path.lstat().st_mtime < oldest_s:
                path.unlink()


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
