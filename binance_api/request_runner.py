"""One request to the exchange, with everything that bounds it: slots, weight, deadline, retries.

Consumes a ``Request`` and a decoder, produces a ``Reply`` or a typed ``ExchangeError``; HTTP itself
is the ``Sender``'s. Invariants: every wait has a bound, urgent requests go first, a refusal stops
every process on the machine, and nothing of a query is ever logged.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import msgspec
import structlog

from binance_api.endpoints import (
    USED_WEIGHT_HEADER,
    WEIGHT_LIMIT_PER_MINUTE,
)
from binance_api.errors import (
    BadReply,
    Banned,
    ExchangeError,
    RateLimited,
    Unreachable,
    error_from_reply,
    parse_error_body,
)
from binance_api.http_reply import HttpReply, HttpStream, Sender
from binance_api.request_gate import RequestGate
from binance_api.signing import ApiKey
from binance_api.weight_budget import WeightBudget, WeightBudgetSettings
from domain.market import Market

log = structlog.get_logger()

_OFF_THREAD_BYTES: Final = 128 * 1_024  # larger bodies would hold the event loop for over 5 ms


class RestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the exchange is asked.

    Attributes:
        market: Which market's endpoints.
        base_url: Scheme and host; ``None``: the market's own.
        weight_limit: Request weight per minute this machine may use; ``None``: the market's limit.
        concurrency: Requests under way at once.
        urgent_slots: How many of them only urgent calls may take.
        connect_timeout_s: Longest wait for a connection.
        request_timeout_s: Longest wait for one whole answer.
        deadline_s: Bound of a call with all its waits and retries, unless the call says otherwise.
        urgent_deadline_s: The same for urgent calls.
        max_attempts: Attempts of one call before its error is passed on.
        max_bad_replies: The same for answers that are none (HTML with status 200).
        backoff_base_s: Ceiling of the first random wait; doubles with each failure.
        backoff_cap_s: Highest ceiling.
        max_reply_bytes: Longest body, after decompression.
        budget: Where and how the weight is shared with other processes.
        api_key: For signed calls; ``None``: there are none.
    """

    market: Market = Market.UM
    base_url: str | None = None
    weight_limit: int | None = None
    concurrency: int = 8
    urgent_slots: int = 2
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 10.0
    deadline_s: float = 300.0
    urgent_deadline_s: float = 10.0
    max_attempts: int = 5
    max_bad_replies: int = 3
    backoff_base_s: float = 0.25
    backoff_cap_s: float = 10.0
    max_reply_bytes: int = 64 * 1_024 * 1_024
    budget: WeightBudgetSettings = WeightBudgetSettings()
    api_key: ApiKey | None = None


class Reply[T](msgspec.Struct, frozen=True):
    """What the exchange said and how long it took.

    Attributes:
        value: The decoded answer.
        latency_ms: From sending the request to having the whole body, last attempt only.
        fetched_at_ms: Local wall clock when the body was there, ms since the epoch.
        endpoint: Path without query.
        rejected_count: Entries of the answer left out because they were no valid trades; a page
            with ``limit`` entries may therefore hold fewer values.
    """

    value: T
    latency_ms: float
    fetched_at_ms: int
    endpoint: str
    rejected_count: int = 0


class Random(Protocol):
    """Where jitter comes from; ``random.Random`` fits."""

    def uniform(self, a: float, b: float, /) -> float: ...


type Query = Mapping[str, str | int]
type Sign = Callable[[Query], tuple[Query, Mapping[str, str]]]


class Request(msgspec.Struct, frozen=True):
    """A GET to send.

    Attributes:
        path: Without query.
        params: The query.
        weight: What it costs.
        is_urgent: Goes ahead of requests that are not.
        bound_s: Seconds for the whole call, waits and retries included.
        sign: Query → signed query and headers; asked before every attempt, as a signature ages.
    """

    path: str
    params: Query
    weight: int
    is_urgent: bool
    bound_s: float
    sign: Sign | None = None


class Answer(msgspec.Struct, frozen=True):
    """A body with status 200, not yet decoded."""

    body: bytes
    latency_ms: float
    received_ns: int


class _Wait(msgspec.Struct, frozen=True):
    """Nothing was sent: the weight budget allows it after so many seconds."""

    seconds: float


class RequestRunner:
    """Runs requests for one host.

    Args:
        settings: See ``RestSettings``.
        base_url: The host, whose weight budget is shared.
        sender: Speaks HTTP with that host.
        monotonic: Seconds that never run back.
        wall_ns: Wall clock, ns since the epoch.
        sleep: Waits that many seconds.
        jitter: Random source of the backoff.
    """

    def __init__(
        self,
        settings: RestSettings,
        base_url: str,
        sender: Sender,
        *,
        monotonic: Callable[[], float],
        wall_ns: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
        jitter: Random,
    ) -> None:
        self._settings = settings
        self._base_url = base_url
        self._sender = sender
        self._monotonic, self._wall_ns, self._sleep = monotonic, wall_ns, sleep
        self._jitter = jitter
        self._gate = RequestGate(settings.concurrency, settings.urgent_slots)
        limit = settings.weight_limit or WEIGHT_LIMIT_PER_MINUTE[settings.market]
        self._budget = WeightBudget(base_url, limit, settings.budget, wall_ms=self._now_ms)
        counted = ("requests", "retries", "failures", "limited", "bad_replies", "received_bytes")
        self._counts = dict.fromkeys(counted, 0)
        self._replies: Counter[str] = Counter()  # by endpoint and status; status 0: none came
        self._reply_s: defaultdict[str, float] = defaultdict(float)
        self._last_latency_ms: float | None = None

    def lower_weight_limit(self, limit: int) -> None:
        """Keep to a lower limit that the exchange states."""
        self._budget.lower_limit(limit)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests, retries, refusals, bytes, and the state of the weight budget."""
        return {
            **self._counts,
            "waiting": self._gate.waiting_count,
            "last_latency_ms": self._last_latency_ms,
            **{f"replies.{name}": count for name, count in self._replies.items()},
            **{f"reply_s.{name}": round(taken, 6) for name, taken in self._reply_s.items()},
            **self._budget.statistics(),
        }

    # --- one call: attempts and waits ---------------------------------------------------------

    async def call[T](self, request: Request, decode: Callable[[Answer], T]) -> Reply[T]:
        """Try until there is a reply, the error is final, or the deadline would pass.

        Args:
            request: What to send.
            decode: Body → value; a ``ValueError`` means the body is not what was asked for.
        """

        async def whole() -> Reply[T]:
            return await self._decoded(request, await self._send(request), decode)

        return await self._until_done(request, whole)

    async def receive[T](
        self,
        request: Request,
        headers: Callable[[], Mapping[str, str]],
        take: Callable[[HttpStream], Awaitable[T]],
    ) -> T:
        """Like ``call``, for a body that is taken piece by piece.

        Args:
            request: What to send; its ``params`` are not sent.
            headers: Asked before every attempt, as the last one may have left something behind.
            take: Given an answer with a status below 300; works its pieces off.
        """

        async def streamed() -> T:
            self._counts["requests"] += 1
            async with self._sender.stream(request.path, headers()) as stream:
                if stream.status >= 300:
                    reply = HttpReply(stream.status, stream.headers, b"")
                    raise self._refusal(reply, request.path)
                return await take(stream)

        return await self._until_done(request, streamed)

    async def _until_done[T](self, request: Request, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat ``attempt`` until it succeeds, its error is final, or the deadline would pass."""
        deadline = self._monotonic() + request.bound_s
        failures = 0
        while True:
            try:
                outcome = await self._attempt(request, attempt, deadline)
            except ExchangeError as error:
                failures += 1
                self._counts["failures"] += 1
                self._counts["bad_replies"] += isinstance(error, BadReply)
                delay_s, cause = self._retry_delay_s(error, failures), error
            else:
                if not isinstance(outcome, _Wait):
                    return outcome
                delay_s, cause = outcome.seconds, self._spent(request, outcome.seconds)
            if delay_s is None or delay_s >= deadline - self._monotonic():
                raise cause
            if isinstance(cause, Unreachable | BadReply):
                self._counts["retries"] += 1
                log.info("rest.retry", endpoint=request.path, error=cause.msg, failures=failures)
            await self._sleep(delay_s)

    async def _attempt[T](
        self, request: Request, attempt: Callable[[], Awaitable[T]], deadline: float
    ) -> T | _Wait:
        """One request, within what is left of the deadline; its outcome or a wait for the budget."""
        remaining_s = deadline - self._monotonic()
        try:
            async with asyncio.timeout(max(remaining_s, 0.0)):
                async with self._gate.slot(urgent=request.is_urgent):
                    wait_s = self._budget.reserve(request.weight, urgent=request.is_urgent)
                    if wait_s > 0:
                        return _Wait(wait_s)
                    return await attempt()
        except TimeoutError as error:
            message = "no answer before the deadline of the call"
            raise Unreachable(message, endpoint=request.path) from error

    def _retry_delay_s(self, error: ExchangeError, failures: int) -> float | None:
        """Seconds before the next attempt; ``None``: the error is final.

        All calls are reads, so repeating one whose outcome is unknown does no harm.
        """
        settings = self._settings
        ceiling_s = min(settings.backoff_cap_s, settings.backoff_base_s * 2.0 ** (failures - 1))
        backoff_s = self._jitter.uniform(0.0, ceiling_s)
        match error:
            case Banned():
                return None
            case RateLimited() if failures < settings.max_attempts:
                return error.retry_after_s + backoff_s
            case Unreachable() if failures < settings.max_attempts:
                return backoff_s
            case BadReply() if failures < min(settings.max_bad_replies, settings.max_attempts):
                return backoff_s
        return None

    def _spent(self, request: Request, wait_s: float) -> RateLimited:
        """Why the budget does not let a request go."""
        if self._budget.is_banned:
            return Banned(
                f"this address is banned for another {wait_s:.0f} s",
                retry_after_s=wait_s,
                until_ms=self._now_ms() + int(wait_s * 1_000),
                endpoint=request.path,
            )
        message = f"the request weight is spent, free again in {wait_s:.1f} s"
        return RateLimited(message, retry_after_s=wait_s, endpoint=request.path)

    # --- one request --------------------------------------------------------------------------

    async def _send(self, request: Request) -> Answer:
        """Send once and judge by status."""
        self._counts["requests"] += 1
        sent_ms, started = self._now_ms(), self._monotonic()
        params, headers = request.sign(request.params) if request.sign else (request.params, {})
        status = 0
        try:
            reply = await self._sender.get(request.path, params, headers)
            status = reply.status
        finally:
            self._count_reply(request.path, status, self._monotonic() - started)
        received_ns = self._wall_ns()
        latency_ms = (self._monotonic() - started) * 1_000
        self._counts["received_bytes"] += len(reply.body)
        self._last_latency_ms = latency_ms
        self._heed(reply.headers, sent_ms, received_ns // 1_000_000)
        if reply.status != 200:
            raise self._refusal(reply, request.path)
        return Answer(body=reply.body, latency_ms=latency_ms, received_ns=received_ns)

    def _count_reply(self, path: str, status: int, taken_s: float) -> None:
        endpoint = "archive" if path.lstrip("/").startswith("data/") else path  # one per file there
        self._replies[f"{endpoint}.{status}"] += 1
        self._reply_s[endpoint] += taken_s

    def _refusal(self, reply: HttpReply, path: str) -> ExchangeError:
        error = error_from_reply(
            reply.status,
            reply.body,
            endpoint=path,
            retry_after=reply.headers.get("Retry-After"),
            now_ms=self._now_ms(),
        )
        if isinstance(error, RateLimited):
            self._obey(error)
        return error

    def _obey(self, error: RateLimited) -> None:
        """Stop every call of every process until the exchange allows the next one."""
        self._counts["limited"] += 1
        banned = isinstance(error, Banned)
        self._budget.block(error.retry_after_s, banned=banned)
        log.warning(
            "rest.blocked", host=self._base_url, banned=banned, retry_after_s=error.retry_after_s
        )

    async def _decoded[T](
        self, request: Request, answer: Answer, decode: Callable[[Answer], T]
    ) -> Reply[T]:
        try:
            if len(answer.body) > _OFF_THREAD_BYTES:
                value = await asyncio.to_thread(decode, answer)
            else:
                value = decode(answer)
        except (ValueError, RecursionError) as error:
            raise self._unreadable(request.path, answer, error) from error
        return Reply(
            value=value,
            latency_ms=answer.latency_ms,
            fetched_at_ms=answer.received_ns // 1_000_000,
            endpoint=request.path,
        )

    def _unreadable(self, path: str, answer: Answer, cause: Exception) -> ExchangeError:
        """Name an answer with status 200 that is not the value asked for."""
        if parse_error_body(answer.body) is not None:
            error = error_from_reply(200, answer.body, endpoint=path, now_ms=self._now_ms())
            if isinstance(error, RateLimited):
                self._obey(error)
            return error
        is_html = answer.body.lstrip()[:1] == b"<"
        message = "HTML instead of data" if is_html else f"not what was asked for: {cause}"
        return BadReply(message, endpoint=path, status=200)

    def _heed(self, headers: Mapping[str, str], sent_ms: int, received_ms: int) -> None:
        """Learn the exchange's clock and count from the headers of a reply."""
        try:
            date_ms = int(parsedate_to_datetime(headers.get("Date", "")).timestamp() * 1_000)
        except (ValueError, TypeError, OverflowError):
            date_ms = None
        if date_ms is not None:
            self._budget.learn_clock(date_ms, sent_ms, received_ms)
        used = headers.get(USED_WEIGHT_HEADER, "")
        if used.isascii() and used.isdigit() and len(used) < 10:
            self._budget.correct(int(used), sent_ms)

    def _now_ms(self) -> int:
        return self._wall_ns() // 1_000_000
