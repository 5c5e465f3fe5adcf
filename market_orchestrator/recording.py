"""The recorder as the settings want it: beside the bot on the same sockets, or on its own.

Settings → ``Recording`` with its lock, ledger and archive client. Recorder and analysis get the same
frames one after the other and share no queue.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from binance_api.rest import RestClient, RestSettings
from binance_api.vision import VisionClient
from collectors.recorder import RecorderSettings
from collectors.recording import Recording, RecordingSettings, open_folder
from config import Settings


async def open_recording(
    settings: Settings, rest: RestClient, rest_url: str, stack: AsyncExitStack
) -> Recording:
    """Take the recorder's lock and build it; both end with ``stack``.

    Raises:
        DataFolderError: another recorder has the folder, or it cannot be written.
    """
    stack.enter_context(open_folder(settings.paths, settings.source_description))
    archive = await stack.enter_async_context(archive_client(settings, rest_url))
    return Recording(recording_settings(settings), settings.paths, rest, archive)


def archive_client(settings: Settings, rest_url: str) -> VisionClient:
    """The public archive; the demo's exchange serves one as well."""
    base_url = rest_url if settings.source == "demo" else settings.binance_vision_url
    return VisionClient(
        RestSettings(market=settings.market, base_url=base_url, request_timeout_s=30.0)
    )


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
