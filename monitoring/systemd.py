"""Tells systemd that the program is ready, and that it lives only while its feed makes progress.

Consumes ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` (``Type=notify``, ``WatchdogSec=``), produces datagrams
(https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html). Does nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Systemd:
    """The service manager's side of one process.

    Args:
        environment: The process's variables.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract socket
            self._address = "\0" + self._address[1:]
        limit_us = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(limit_us) / 1e6 if limit_us.isdecimal() else None
        self._progress: int | None = None
        self._is_ready = False

    @property
    def is_present(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def on_progress(self, progress: int, status: str) -> None:
        """Call now and then with a count that grows while the feed works; feeds the watchdog if it grew."""
        if progress == self._progress or (progress == 0 and not self._is_ready):
            return
        self._progress = progress
        begin = [] if self._is_ready else ["READY=1"]
        self._is_ready = True
        self._send([*begin, "WATCHDOG=1", f"STATUS={status}"])

    def stopping(self) -> None:
        """The program ends on purpose."""
        self._send(["STOPPING=1"])

    def _send(self, lines: list[str]) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
