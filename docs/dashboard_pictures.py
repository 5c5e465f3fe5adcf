"""Draws the README's pictures of the dashboard: a recording's events → SVG files.

``python -m docs.dashboard_pictures RECORDING [FOLDER]``; the same recording gives the same pictures.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from config import Settings
from dashboard.layout import picture
from dashboard.scene import Banner, Scene, View
from dashboard.state import DashboardState, reduce
from domain.events import ConnectionEvent, ConnectionState, Topic
from event_bus import DropOldest, EventBus
from feature_store import FeatureStore
from lake.gap_ledger import GapLedger
from lake.quarantine import Quarantine
from lake.signal_store import signal_store
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.market_orchestrator import flow_settings
from market_orchestrator.outputs import Outputs
from market_orchestrator.replay import MarketClock, Replay, symbols_in
from rules_analyst import RulesAnalyst

SIZES = ((80, 24), (120, 40), (200, 60))
FOLDER = Path(__file__).parent / "screenshots"
_QUEUE_EVENTS = 100_000
_LATER_NS = 1_500_000_000  # the pictures' clock behind the last frame


async def state_after(recording: Path, folder: Path) -> tuple[DashboardState, int]:
    """The dashboard's state when the recording has been replayed, and the clock then, ns."""
    settings = Settings(source=f"replay:{recording}", data_dir=folder)
    clock = MarketClock()
    flow = MarketFlow(
        flow_settings(settings, symbols_in(recording)), monotonic_ns=clock, repairable=False
    )
    bus, paths = EventBus(), settings.paths
    analyst = RulesAnalyst(settings.rules)
    features, signals = FeatureStore(paths.root), signal_store(paths.signals)
    outputs = Outputs(bus, features, signals, analyst, clock)
    run = Replay(
        recording, flow, outputs, Quarantine(paths.quarantine), GapLedger(paths.gaps), clock
    )
    with bus.subscribe(Topic, policy=DropOldest(_QUEUE_EVENTS), name="pictures") as events:
        first_ns = None
        for _ in run.run():
            if first_ns is None:
                first_ns = clock()
                for number, route in enumerate(("trades", "depth"), 1):
                    bus.publish(Topic.CONNECTION, _connected(route, number, first_ns))
        state = DashboardState()
        batch = events.drain_nowait()
        for first in range(0, len(batch), 100):
            state = reduce(state, batch[first : first + 100])
    return state, run.report.last_ns + _LATER_NS


def _connected(route: str, number: int, at_ns: int) -> ConnectionEvent:
    return ConnectionEvent(
        route=route,
        socket_id=number,
        state=ConnectionState.HEALTHY,
        reason="frames of the recording",
        at_ns=at_ns,
    )


def svg_of(scene: Scene, columns: int, rows: int) -> str:
    """One picture, the same for the same scene."""
    console = Console(
        record=True,
        width=columns,
        height=rows,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    console.print(picture(scene, columns, rows), end="")
    return console.export_svg(title="orderflow", unique_id=f"dashboard-{columns}x{rows}")


def main(arguments: Sequence[str]) -> int:
    """Write one picture for each size."""
    if not arguments:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    recording = Path(arguments[0])
    folder = Path(arguments[1]) if len(arguments) > 1 else FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        state, now_ns = asyncio.run(state_after(recording, Path(scratch)))
    scene = Scene(state=state, view=View(), now_ns=now_ns, banner=Banner("replay um"))
    folder.mkdir(parents=True, exist_ok=True)
    for columns, rows in SIZES:
        text = svg_of(scene, columns, rows)
        (folder / f"dashboard-{columns}x{rows}.svg").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
