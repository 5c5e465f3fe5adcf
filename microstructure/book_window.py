"""The order book of every symbol, gathered into the windows of its trades.

``DepthTop`` → ``BookWindow``. A frame belongs to the window of its ``transact_time_ms``. Order flow is
counted between consecutive frames of an unbroken chain and credited to the later frame's window;
nothing is counted across a break. All levels are read of a window's last frame alone (of the one
before if that is faulty), at its close or ahead of it: those two are kept, so memory is bounded by
symbols × pending windows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from domain.flow import BookWindow
from domain.market import DepthSnapshot, DepthTop
from microstructure.ofi import Quote, ofi_event

MAX_PENDING_WINDOWS = 16


class _OpenWindow:
    __slots__ = ("before", "book", "events", "frames", "is_read", "last", "ofi", "restarts")

    def __init__(self) -> None:
        self.frames = 0
        self.events = 0
        self.ofi = 0.0
        self.restarts = 0
        self.last: DepthTop | None = None
        self.before: DepthTop | None = None  # the frame before the last one
        self.book: DepthSnapshot | None = None  # the last frame's, once it was read
        self.is_read = False


class _SymbolBook:
    __slots__ = ("closed_until_ms", "current", "current_start_ms", "quote", "windows")

    def __init__(self) -> None:
        self.quote: Quote | None = None
        self.windows: dict[int, _OpenWindow] = {}
        self.closed_until_ms = -1
        self.current: _OpenWindow | None = None  # the window of the frame before: the usual case
        self.current_start_ms = -1


class BookAccumulator:
    """Collects depth frames per symbol and window until the trade window closes."""

    def __init__(
        self,
        window_ms: int,
        read_levels: Callable[[DepthTop], DepthSnapshot | None],
        *,
        max_pending_windows: int = MAX_PENDING_WINDOWS,
        keeps_unread: bool = False,
    ) -> None:
        """Prepare for windows of ``window_ms``.

        Args:
            window_ms: Window length in milliseconds.
            read_levels: Gives a frame's book with all its levels, None where one is faulty.
            max_pending_windows: Open windows kept per symbol while trades hold them back (a dead
                trade route beside a healthy depth route); beyond it the oldest is given up and
                later closes without a book.
            keeps_unread: Whether somebody calls ``read_ahead``.
        """
        if window_ms <= 0 or max_pending_windows <= 0:
            raise ValueError("window_ms and max_pending_windows must be positive")
        self._window_ms = window_ms
        self._read_levels = read_levels
        self._max_pending = max_pending_windows
        self._keeps_unread = keeps_unread
        # Windows behind which a later one has begun: all close at one moment, but these beginnings
        # come spread over the time that late trades are waited for.
        self.unread: deque[_OpenWindow] = deque()
        self._books: dict[str, _SymbolBook] = {}
        self._frames = 0
        self._late_frames = 0
        self._evicted_windows = 0
        self._restarts = 0
        self._one_sided_frames = 0

    def add(self, top: DepthTop, *, chain_broken: bool) -> None:
        """Take one frame in the order its chain has.

        Args:
            top: A validated frame.
            chain_broken: Whether frames are missing before it (``pu`` differs from the previous
                ``u``, a new socket, a standby taking over): order flow restarts here.
        """
        self._frames += 1
        book = self._books.get(top.symbol)
        if book is None:
            book = self._books[top.symbol] = _SymbolBook()
        previous = None if chain_broken else book.quote
        if top.bid is not None and top.ask is not None:
            quote: Quote | None = top.bid + top.ask
        else:
            quote = None  # no event here, none from here: the next frame restarts
            self._one_sided_frames += 1
        book.quote = quote
        start_ms = top.transact_time_ms
        start_ms -= start_ms % self._window_ms
        if start_ms < book.closed_until_ms:
            self._late_frames += 1
            return
        window = book.current
        if window is None or start_ms != book.current_start_ms:
            is_later = window is not None and start_ms > book.current_start_ms
            if window is not None and is_later and self._keeps_unread:
                self._note_unread(window)
            window = self._window(book, start_ms)
        window.is_read = False
        window.frames += 1
        window.before = window.last
        window.last = top
        if chain_broken:
            window.restarts += 1
            self._restarts += 1
        elif previous is not None and quote is not None:
            window.ofi += ofi_event(previous, quote)
            window.events += 1

    def read_ahead(self) -> None:
        """Read the oldest of ``unread``."""
        self._read(self.unread.popleft())

    def close(self, symbol: str, window_start_ms: int) -> BookWindow:
        """Hand out one window and forget it; later frames of it are dropped and counted.

        Returns:
            The window's book. Without a frame ``depth_frames`` is 0 and the rest ``None``; ``ofi``
            is ``None`` when no event could be formed.
        """
        end_ms = window_start_ms + self._window_ms
        book = self._books.get(symbol)
        if book is None:
            book = self._books[symbol] = _SymbolBook()
        window = book.windows.pop(window_start_ms, None)
        if end_ms > book.closed_until_ms:
            self._forget_before(book, end_ms)
        return BookWindow(
            symbol=symbol,
            window_start_ms=window_start_ms,
            window_end_ms=end_ms,
            depth_frames=window.frames if window else 0,
            ofi=window.ofi if window and window.events else None,
            ofi_restarts=window.restarts if window else 0,
            last=self._read(window) if window else None,
        )

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start, and what is held now."""
        return {
            "frames": self._frames,
            "late_frames": self._late_frames,
            "one_sided_frames": self._one_sided_frames,
            "chain_breaks": self._restarts,
            "evicted_windows": self._evicted_windows,
            "symbols": len(self._books),
            "pending_windows": sum(len(book.windows) for book in self._books.values()),
        }

    def _note_unread(self, window: _OpenWindow) -> None:
        """Keep it for ``read_ahead``; those closed or given up since need no reading any more."""
        while self.unread and self.unread[0].is_read:
            self.unread.popleft()
        self.unread.append(window)

    def _read(self, window: _OpenWindow) -> DepthSnapshot | None:
        if not window.is_read:
            window.book, window.is_read = self._last_book(window), True
        return window.book

    def _last_book(self, window: _OpenWindow) -> DepthSnapshot | None:
        for top in (window.last, window.before):
            book = self._read_levels(top) if top else None
            if book is not None:
                return book
        return None

    def _window(self, book: _SymbolBook, start_ms: int) -> _OpenWindow:
        window = book.windows.get(start_ms)
        if window is None:
            window = book.windows[start_ms] = _OpenWindow()
            if len(book.windows) > self._max_pending:
                self._give_up(book, min(book.windows))
        book.current, book.current_start_ms = window, start_ms
        return window

    def _give_up(self, book: _SymbolBook, start_ms: int) -> None:
        book.windows.pop(start_ms).is_read = True
        self._evicted_windows += 1

    def _forget_before(self, book: _SymbolBook, end_ms: int) -> None:
        book.closed_until_ms = end_ms
        for start_ms in [start for start in book.windows if start < end_ms]:
            self._give_up(book, start_ms)
        if book.current_start_ms < end_ms:
            book.current = None
