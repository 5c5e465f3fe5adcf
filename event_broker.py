"""Every event through NATS JetStream, for programs on other machines and for several bots at once.

Consumes the event stream, produces messages ``orderflow.MARKET.TOPIC.SYMBOL`` (JSON as of ``/events``),
one at a time and confirmed, so that each symbol has one order. At least once; the message id lets the
server drop what it has already. While it is away events wait in the stream, within its bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import msgspec
import nats
import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header, StreamConfig
from nats.js.errors import NotFoundError

from domain.errors import OrderFlowError
from domain.events import Topic
from lake.atomic import write_atomic
from monitoring.event_stream import Entry, EventStream

log = structlog.get_logger()

STREAM = "ORDERFLOW"
SUBJECTS = "orderflow.>"
_BATCH = 256
_KEPT_IDS = 10_000
_OUTAGES = (OSError, NatsError, TimeoutError)  # all of these heal: the next connection tries again


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How events reach the server.

    Attributes:
        url: nats:// or tls://.
        market: Part of every subject and message id.
        token: Of the server.
        keep_s: How long a stream created by us keeps messages.
        duplicates_s: How long it knows message ids.
        timeout_s: For a connection and for each confirmation.
        retry_s: First wait after an outage; doubles up to ``retry_cap_s``.
        save_s: Seconds between two notes of how far it came.
    """

    url: str
    market: str
    token: str | None = None
    keep_s: float = 7 * 86_400.0
    duplicates_s: float = 3_600.0
    timeout_s: float = 5.0
    retry_s: float = 0.5
    retry_cap_s: float = 30.0
    save_s: float = 1.0

    def __repr__(self) -> str:
        return f"BrokerSettings(url={self.url!r}, market={self.market!r})"


class Received(msgspec.Struct, frozen=True):
    """One message at a subscriber.

    Attributes:
        sequence: In the server's stream; resume behind it.
        subject: ``orderflow.MARKET.TOPIC.SYMBOL``; symbol ``all``: nobody's.
        message_id: Equal for an event published twice.
        json: The event.
    """

    sequence: int
    subject: str
    message_id: str
    json: bytes


def subject_of(market: str, topic: Topic, symbol: str | None) -> str:
    """Where an event goes."""
    return f"orderflow.{market}.{topic}.{symbol or 'all'}"


def message_id(market: str, entry: Entry) -> str:
    """The same for the same event, whoever publishes it and however often."""
    return f"{market}:{entry.signal_id or f'{entry.symbol or "all"}:{entry.sequence}'}"


class EventBroker:
    """Publishes one stream; ``run`` ends when the stream has and everything is confirmed.

    Args:
        settings: See ``BrokerSettings``.
        stream: Its events.
        position_file: Remembers the last confirmed sequence through restarts.
    """

    def __init__(self, settings: BrokerSettings, stream: EventStream, position_file: Path) -> None:
        self._settings = settings
        self._stream = stream
        self._file = position_file
        self._reader = stream.reader(after=_read_position(position_file))
        self._pending: deque[Entry] = deque()  # taken, not confirmed
        self._saved: int | None = None
        self._confirmed: int | None = None
        self._client: Client | None = None
        self._is_out = False
        self._counts = dict.fromkeys(
            ("published", "duplicates", "failures", "refused", "missed"), 0
        )

    async def run(self) -> None:
        """Publish until the stream ends; an outage is waited out."""
        saving = asyncio.ensure_future(self._keep_saving())
        try:
            await self._publish_through_outages()
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            await asyncio.shield(self._save())

    async def _publish_through_outages(self) -> None:
        settings = self._settings
        wait_s = settings.retry_s
        while True:
            before = self._counts["published"]
            try:
                async with _connected(settings.url, settings.token, settings.timeout_s) as client:
                    self._client = client
                    await self._publish_all(client.jetstream(timeout=settings.timeout_s))
                    return
            except _OUTAGES as error:
                self._counts["failures"] += 1
                if not self._is_out:
                    self._is_out = True
                    log.warning("broker.out_of_reach", url=settings.url, error=_text(error))
            finally:
                self._client = None
            if self._counts["published"] > before:
                wait_s = settings.retry_s
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, settings.retry_cap_s)

    async def _publish_all(self, server: JetStreamContext) -> None:
        await _ensure_stream(server, self._settings)
        if self._is_out:
            self._is_out = False
            log.info("broker.back", url=self._settings.url, waiting_count=self._behind)
        while True:
            if not self._pending:
                self._pending.extend(await self._reader.next(_BATCH))
                self._note_missed()
            if not self._pending:
                return
            while self._pending:
                await self._publish(server, self._pending[0])
                self._confirmed = self._pending.popleft().sequence

    async def _publish(self, server: JetStreamContext, entry: Entry) -> None:
        market = self._settings.market
        try:
            confirmed = await server.publish(
                subject_of(market, entry.topic, entry.symbol),
                entry.json,
                headers={Header.MSG_ID.value: message_id(market, entry)},
            )
        except MaxPayloadError:  # would never be taken
            self._counts["refused"] += 1
            log.error("broker.event_too_large", topic=entry.topic, bytes=len(entry.json))
            return
        self._counts["published"] += 1
        self._counts["duplicates"] += bool(confirmed.duplicate)

    def _note_missed(self) -> None:
        if self._reader.missed:
            missed = self._reader.missed.total()
            self._counts["missed"] += missed
            self._reader.missed.clear()
            log.error("broker.events_lost", count=missed, advice="a larger EVENTS_KEEP holds more")

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(self._settings.save_s)
            await self._save()

    async def _save(self) -> None:
        """Note how far it came; an old note only means that the server drops what it has."""
        if self._confirmed is None or self._confirmed == self._saved:
            return
        confirmed = self._confirmed
        content = msgspec.json.encode({"sequence": confirmed})
        try:
            await asyncio.to_thread(write_atomic, self._file, content, overwrite=True)
        except (OSError, OrderFlowError) as error:
            log.warning("broker.position_not_saved", path=str(self._file), error=str(error))
        else:
            self._saved = confirmed

    @property
    def _behind(self) -> int:
        return self._reader.behind + len(self._pending)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Events confirmed, known already, refused, fallen off, waiting; outages; the connection."""
        is_connected = self._client is not None and self._client.is_connected
        return {**self._counts, "behind": self._behind, "connected": int(is_connected)}


async def follow(
    url: str,
    *,
    subjects: str = SUBJECTS,
    after: int = 0,
    token: str | None = None,
    retry_s: float = 0.5,
    timeout_s: float = 5.0,
) -> AsyncGenerator[Received]:
    """Every message once and in the stream's order, through outages of the server, without end.

    Args:
        url: The server.
        subjects: As ``orderflow.um.signal.BTCUSDT``; ``*`` and ``>`` are wildcards.
        after: The last ``Received.sequence`` already known.
        token: Of the server.
        retry_s: Wait after an outage.
        timeout_s: For a connection and a question.
    """
    known: OrderedDict[str, None] = OrderedDict()
    created: object = None
    while True:
        try:
            async with _connected(url, token, timeout_s) as client:
                server = client.jetstream(timeout=timeout_s)
                info = await server.stream_info(STREAM)
                if info.created != created and info.state.last_seq < after:
                    after = 0  # another stream by that name: its numbers begin anew
                created = info.created
                async for received in _messages(client, server, subjects, after):
                    after = received.sequence
                    if received.message_id in known:
                        continue
                    known[received.message_id] = None
                    if len(known) > _KEPT_IDS:
                        known.popitem(last=False)
                    yield received
        except _OUTAGES as error:
            log.info("broker.follower_waits", url=url, error=_text(error))
        await asyncio.sleep(retry_s)


async def _messages(
    client: Client, server: JetStreamContext, subjects: str, after: int
) -> AsyncIterator[Received]:
    """Messages behind ``after`` through a consumer of its own, until the connection ends."""
    consumer = await server.pull_subscribe(
        subjects,
        stream=STREAM,
        config=ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=60.0,
        ),
    )
    while not client.is_closed:
        try:
            messages = await consumer.fetch(_BATCH, timeout=1.0)
        except TimeoutError:  # nothing new
            await consumer.consumer_info()  # a restarted server may have lost it
            continue
        for message in messages:
            sequence = message.metadata.sequence.stream
            name = (message.headers or {}).get(Header.MSG_ID.value, str(sequence))
            yield Received(sequence, message.subject, name, message.data)


async def _ensure_stream(server: JetStreamContext, settings: BrokerSettings) -> None:
    """Create the stream where it is missing; one that exists is its operator's, as it is."""
    try:
        await server.stream_info(STREAM)
    except NotFoundError:
        await server.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=[SUBJECTS],
                max_age=settings.keep_s,
                duplicate_window=settings.duplicates_s,
            )
        )
        log.info("broker.stream_created", stream=STREAM, keep_s=settings.keep_s)


@contextlib.asynccontextmanager
async def _connected(url: str, token: str | None, timeout_s: float) -> AsyncIterator[Client]:
    """One connection that does not reconnect by itself: who uses it starts over instead."""
    async with asyncio.timeout(timeout_s):
        client = await nats.connect(
            url,
            token=token,
            name="orderflow",
            allow_reconnect=False,
            connect_timeout=timeout_s,
            error_cb=_quiet,
        )
    try:
        yield client
    finally:
        with contextlib.suppress(*_OUTAGES):
            async with asyncio.timeout(1.0):
                await client.close()


async def _quiet(_error: Exception) -> None:
    """Every failure also comes as an exception to whoever asked."""


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _read_position(path: Path) -> int | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("broker.position_unreadable", path=str(path), error=str(error))
        return None
    return found.get("sequence")
