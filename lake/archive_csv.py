"""An archive's zip → Arrow batches, streamed: inflated, cut at line ends, parsed two blocks at a time.

Consumes a zip of one CSV as the exchange publishes it (header or not, ``true`` or ``True``, an extra
column, times in ms or µs) → produces batches of the lake's columns in the order of the file.
Invariant: a caller that reaches the end has read exactly what the zip's own CRC and size promise.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from isal import isal_zlib

from domain.errors import OrderFlowError
from lake.atomic import storage_error
from lake.historical_files import AGG_TRADE_SCHEMA, KLINE_SCHEMA

type BytesRead = Callable[[int, int], None]
"""Called with the bytes of the zip worked off, and those it has."""

PARSERS: Final = 2
_READ_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 22  # of text; what is parsed at once
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_MICROSECONDS_FROM: Final = 10**14  # ms of the year 5138, µs of 1973
_MEMBER_LIMIT: Final = 1 << 20  # a longer line is none of ours

_INFLATE_ERROR: Final = cast("type[Exception]", isal_zlib.error)

_AGG_TRADE_EXTRA: Final = ("is_best_match",)
_KLINE_EXTRA: Final = ("ignore",)


class UnreadableArchive(OrderFlowError):
    """An archive is not a zip of one table of the expected columns, or is damaged inside."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path = path
        self.reason = reason


def agg_trade_batches(zip_path: Path, on_read: BytesRead | None = None) -> Iterator[pa.RecordBatch]:
    """The aggTrades of an archive, in its order, in ``AGG_TRADE_SCHEMA``.

    Args:
        zip_path: Monthly or daily archive of either market.
        on_read: See ``BytesRead``.

    Raises:
        UnreadableArchive: Damaged, or not a table of aggTrades.
        StorageError: The system refused.
    """
    return _batches(zip_path, AGG_TRADE_SCHEMA, _AGG_TRADE_EXTRA, on_read)


def kline_batches(zip_path: Path, on_read: BytesRead | None = None) -> Iterator[pa.RecordBatch]:
    """The klines of an archive, in its order, in ``KLINE_SCHEMA``.

    Args, Raises: as ``agg_trade_batches``.
    """
    return _batches(zip_path, KLINE_SCHEMA, _KLINE_EXTRA, on_read)


def _batches(
    path: Path, schema: pa.Schema, extra: tuple[str, ...], on_read: BytesRead | None
) -> Iterator[pa.RecordBatch]:
    blocks = _blocks(path, on_read or (lambda _done, _all: None))
    try:
        first = next(blocks, b"")
        names = _columns(path, first, schema, extra)
        if names is None:
            return
        if not first[:1].isdigit():  # headers come and go
            first = first[first.find(b"\n") + 1 :]
        parse = _Parser(schema, names)
        for batch in _parsed(parse, itertools.chain((first,), blocks)):
            yield from batch.to_batches()
    except pa.ArrowInvalid as error:
        raise UnreadableArchive(path, f"not a table: {str(error).splitlines()[0]}") from error
    finally:
        blocks.close()


def _columns(
    path: Path, first: bytes, schema: pa.Schema, extra: tuple[str, ...]
) -> list[str] | None:
    """Names by position; ``None`` for an archive without rows."""
    line = next((line for line in first[:4_096].splitlines() if line[:1].isdigit()), None)
    if line is None:
        if first.count(b"\n") > 1 or len(first) > 1_024:
            raise UnreadableArchive(path, "not a table of numbers")
        return None
    width = line.count(b",") + 1
    names = [*schema.names, *extra]
    if not len(schema.names) <= width <= len(names):
        raise UnreadableArchive(path, f"has {width} columns instead of {len(schema.names)}")
    return names[:width]


class _Parser:
    """One block of lines → a table of the wanted columns; times become ms."""

    def __init__(self, schema: pa.Schema, names: list[str]) -> None:
        self._schema = schema
        self._reading = pcsv.ReadOptions(
            use_threads=False, column_names=names, block_size=2 * _BLOCK_BYTES
        )
        self._parsing = pcsv.ParseOptions(quote_char=False)
        self._converting = pcsv.ConvertOptions(
            column_types={field.name: field.type for field in schema},
            include_columns=schema.names,
            null_values=[],
            quoted_strings_can_be_null=False,
        )

    def __call__(self, block: bytes) -> pa.Table:
        source: Any = pa.BufferReader(block)
        table = pcsv.read_csv(source, self._reading, self._parsing, self._converting)
        for index, field in enumerate(self._schema):
            if field.name.endswith("_time_ms") and _are_microseconds(table.column(index)):
                table = table.set_column(index, field, pc.divide(table.column(index), 1_000))
        return table


def _are_microseconds(times: pa.ChunkedArray[Any]) -> bool:
    """Spot archives count µs since 2025-01-01, all others ms: the magnitude tells."""
    return len(times) > 0 and times[0].as_py() >= _MICROSECONDS_FROM


def _parsed(parse: _Parser, blocks: Iterable[bytes]) -> Iterator[pa.Table]:
    """Parse up to ``PARSERS`` blocks at a time while the next ones are inflated; order is kept."""
    with ThreadPoolExecutor(PARSERS, thread_name_prefix="archive") as pool:
        under_way: deque[Future[pa.Table]] = deque()
        try:
            for block in blocks:
                if block:
                    under_way.append(pool.submit(parse, block))
                if len(under_way) > PARSERS:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _blocks(path: Path, on_read: BytesRead) -> Generator[bytes]:
    """The text of the zip's one member in blocks that end with a line."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in _inflated(path, on_read):
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes < _BLOCK_BYTES:
            continue
        cut = piece.rfind(b"\n") + 1
        if not cut and held_bytes > _BLOCK_BYTES + _MEMBER_LIMIT:
            raise UnreadableArchive(path, "has no lines")
        if cut:
            yield b"".join((*held[:-1], piece[:cut]))
            held = [piece[cut:]]
            held_bytes = len(held[0])
    yield b"".join(held)


def _inflated(path: Path, on_read: BytesRead) -> Iterator[bytes]:
    """The member's bytes; at the end its size and CRC have been compared."""
    try:
        member = _member(path)
        with path.open("rb") as file:
            file.seek(member.header_offset)
            mark, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if mark != b"PK\x03\x04":
                raise UnreadableArchive(path, "damaged zip: no member where one should be")
            file.seek(name_bytes + extra_bytes, 1)
            yield from _checked(path, member, file.read, on_read)
    except (zipfile.BadZipFile, struct.error, _INFLATE_ERROR, NotImplementedError) as error:
        raise UnreadableArchive(path, f"damaged zip: {error}") from error
    except OSError as error:
        raise storage_error("cannot read", path, error) from error


def _member(path: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) != 1:
        raise UnreadableArchive(path, f"holds {len(members)} files instead of one")
    if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableArchive(path, "compressed in a way we do not know")
    return members[0]


def _checked(
    path: Path, member: zipfile.ZipInfo, read: Callable[[int], bytes], on_read: BytesRead
) -> Iterator[bytes]:
    is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
    inflate = isal_zlib.decompressobj(-15).decompress if is_deflated else bytes
    left, size, crc = member.compress_size, 0, 0
    while left:
        packed = read(min(_READ_BYTES, left))
        if not packed:
            raise UnreadableArchive(path, "damaged zip: ends too early")
        left -= len(packed)
        piece = inflate(packed)
        size += len(piece)
        crc = isal_zlib.crc32(piece, crc)
        on_read(member.compress_size - left, member.compress_size)
        yield piece
    if size != member.file_size or crc != member.CRC:
        raise UnreadableArchive(path, "damaged zip: not the content it promises")
