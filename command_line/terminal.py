"""The terminal of a verb that shows the dashboard: standard streams → ``dashboard.watch.Terminal``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboard.watch import Terminal


def wants_view() -> bool:
    """Whether standard output is a terminal that can show the dashboard."""
    from dashboard.screen import supports_view

    return supports_view(sys.stdout)


def terminal_of(
    mode: str,
    problems: Callable[[], Sequence[str]],
    trouble: Callable[[], str] = str,
    symbols: tuple[str, ...] = (),
) -> Terminal:
    """Standard output and input; the user's wish to stop becomes the signal that Ctrl-C sends.

    Args:
        mode: what is shown: demo, live, attached.
        problems: the log's last warnings and errors.
        trouble: why nothing arrives; empty where nothing is known to be wrong.
        symbols: what the user named, where that is known.
    """
    from command_line.serving import version
    from dashboard.scene import Banner
    from dashboard.watch import Terminal

    number = version()
    return Terminal(
        stream=sys.stdout,
        keys=sys.stdin,
        banner=lambda: Banner(mode, number, trouble()),
        stop=lambda: signal.raise_signal(signal.SIGINT),
        problems=problems,
        symbols=symbols,
    )
