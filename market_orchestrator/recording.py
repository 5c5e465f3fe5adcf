"""The recorder as the settings want it: beside the bot on the same sockets, or on its own.

Settings → ``Recording`` with its lock, ledger and archive client. Recorder and analysis get the same
frames one after the other and share no queue.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from collectors.recorder import RecorderSettings
from collectors.recording import Recording, RecordingSettings, open_folder
from config import Settings
from market_orchestrator.exchange import Exchange, archive_client


async def open_recording(
    settings: Settings, exchange: Exchange, stack: AsyncExitStack
) -> Recording:
    """Take the recorder's lock and build it; both end with ``stack``.

    Raises:
        DataFolderError: another recorder has the folder, or it cannot be written.
    """
    stack.enter_context(open_folder(settings.paths, settings.source_description))
    archive = await stack.enter_async_context(archive_client(settings, exchange.rest_url))
    return Recording(recording_settings(settings), settings.paths, exchange.rest, archive)


def recording_settings(settings: Settings) -> RecordingSettings:
    """The settings of the recorder and of what keeps its lake whole."""
    return RecordingSettings(
        recorder=RecorderSettings(
            symbols=settings.symbols,
            market=settings.market,
            flush_interval_s=settings.stream_flush_interval_seconds,
            flush_max_items=settings.stream_flush_max_items,
            flush_max_bytes=settings.stream_flush_max_bytes,
            journal_sync_s=settings.stream_journal_sync_ms / 1_000,
        )
    )
