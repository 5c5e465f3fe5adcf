"""The Parquet files of datasets: tables of numbers, and images in chunks.

NumPy columns and float16 images ⇄ files of a ``Storage``. What a file says of itself is in its
metadata; its content has a hash that depends on neither compression nor writer.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lake.columns import fixed_array, mask_array, numpy_of
from lake.part_files import DamagedFile, read_failure
from lake.storage import Storage

CONTENT_KEY: Final = "orderflow.content_sha256"
_SHAPE_KEY: Final = "orderflow.image_shape"
_TIME_COLUMN: Final = "decision_ms"
_ROW_GROUP_ROWS: Final = 131_072
_COMPRESSION_LEVEL: Final = 1
_TYPES: Final[dict[Any, pa.DataType]] = {
    np.dtype(np.int64): pa.int64(),
    np.dtype(np.float32): pa.float32(),
    np.dtype(np.float64): pa.float64(),
}

type Columns = Mapping[str, npt.NDArray[Any]]


def content_sha256(columns: Columns) -> str:
    """The hash of names, types and values of columns, in their order."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(f"{name}:{values.dtype.str}:{values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def write_columns(
    storage: Storage, name: str, columns: Columns, metadata: Mapping[str, str] | None = None
) -> str:
    """Write columns of equal length (int64, float32, float64 or bool) as one file.

    Returns:
        The hash of their content, which is also in the file's metadata.

    Raises:
        StorageError: The storage refused.
    """
    sha256 = content_sha256(columns)
    arrays = {column: _arrow(values) for column, values in columns.items()}
    schema = pa.schema([pa.field(column, array.type, False) for column, array in arrays.items()])
    table = pa.Table.from_arrays(list(arrays.values()), schema=schema)
    rising = {f.name: "DELTA_BINARY_PACKED" for f in schema if f.type == pa.int64()}
    with (
        storage.new_file(name) as handle,
        pq.ParquetWriter(
            handle,
            schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding=rising,
            write_page_checksum=True,
            store_schema=False,
        ) as writer,
    ):
        writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
        writer.add_key_value_metadata({**(metadata or {}), CONTENT_KEY: sha256})
    return sha256


def _arrow(values: npt.NDArray[Any]) -> pa.Array[Any]:
    if values.dtype == np.bool_:
        return mask_array(values)
    contiguous = np.ascontiguousarray(values)
    return fixed_array(_TYPES[contiguous.dtype], contiguous, len(contiguous), None)


def read_columns(
    storage: Storage, name: str, columns: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Columns of a file written by ``write_columns``; ``None``: all.

    Raises:
        FileNotFoundError: It is not there.
        DamagedFile: It cannot be read.
        StorageError: The storage refused.
    """
    with _opened(storage, name) as file:
        wanted = file.schema_arrow.names if columns is None else list(columns)
        missing = sorted(set(wanted) - set(file.schema_arrow.names))
        if missing:
            raise DamagedFile(storage.path(name), f"lacks {', '.join(missing)}")
        table = file.read(columns=wanted, use_threads=False)
    return {column: numpy_of(table.column(column)) for column in wanted}


def read_metadata(storage: Storage, name: str) -> dict[str, str]:
    """What a file says of itself.

    Raises:
        FileNotFoundError, DamagedFile, StorageError: As ``read_columns``.
    """
    with _opened(storage, name) as file:
        found: Mapping[bytes, bytes] = file.metadata.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}


@contextlib.contextmanager
def _opened(storage: Storage, name: str) -> Iterator[pq.ParquetFile]:
    with storage.open(name) as source:
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            yield file
        except (FileNotFoundError, pa.ArrowMemoryError):
            raise
        except (pa.ArrowException, OSError) as error:
            raise read_failure(storage.path(name), error) from error


class ImageWriter:
    """Writes the images of a day, one row group per call; use ``writing_images``."""

    def __init__(self, handle: Any, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._width = 2 * int(np.prod(shape))
        self._digest = hashlib.sha256(f"{shape}\n".encode())
        fields: list[pa.Field[Any]] = [
            pa.field(_TIME_COLUMN, pa.int64(), nullable=False),
            pa.field("image", pa.binary(self._width), nullable=False),
        ]
        fields += [pa.field(name, pa.float32(), nullable=False) for name in scale_names(shape[1])]
        self._schema = pa.schema(fields)
        self.sha256 = ""  # of the content, once closed
        self._writer = pq.ParquetWriter(
            handle,
            self._schema,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=False,
            write_statistics=[_TIME_COLUMN],
            write_page_checksum=True,
            store_schema=False,
        )

    def add(
        self,
        decision_ms: npt.NDArray[np.int64],
        images: npt.NDArray[np.float16],
        scale: npt.NDArray[np.float32],
    ) -> None:
        """Append float16[n, T, C, H, W] and float32[n, C] as a chunk."""
        pixels = np.ascontiguousarray(images, dtype="<f2")
        columns = [
            _arrow(decision_ms),
            pa.Array.from_buffers(
                pa.binary(self._width), len(images), [None, pa.py_buffer(pixels.data)]
            ),
            *(_arrow(scale[:, channel]) for channel in range(scale.shape[1])),
        ]
        for part in (decision_ms, pixels, scale):
            self._digest.update(np.ascontiguousarray(part).data)
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(len(images), 1))

    def close(self) -> None:
        """End the file."""
        self.sha256 = self._digest.hexdigest()
        shape = msgspec.json.encode(self._shape).decode()
        self._writer.add_key_value_metadata({CONTENT_KEY: self.sha256, _SHAPE_KEY: shape})
        self._writer.close()


def scale_names(channels: int) -> tuple[str, ...]:
    """The columns of the scales, one per channel."""
    return tuple(f"scale_{channel}" for channel in range(channels))


@contextlib.contextmanager
def writing_images(storage: Storage, name: str, shape: tuple[int, ...]) -> Iterator[ImageWriter]:
    """A writer for images of ``(T, C, H, W)``; the file is there after the block, whole.

    Raises:
        StorageError: The storage refused.
    """
    with storage.new_file(name) as handle:
        writer = ImageWriter(handle, shape)
        try:
            yield writer
        finally:
            writer.close()


class ImageFile:
    """The images of a day, read a chunk at a time; the chunk read last is kept.

    Args:
        storage: Where.
        name: The file.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._stops: npt.NDArray[np.int64] | None = None
        self._shape: tuple[int, ...] = ()
        self._held: tuple[int, npt.NDArray[np.float16]] | None = None

    def rows(self, wanted: npt.NDArray[np.intp]) -> npt.NDArray[np.float16]:
        """float16[k, T, C, H, W] of these rows, in their order.

        Raises:
            IndexError: There is no such row.
            FileNotFoundError, DamagedFile, StorageError: As ``read_columns``.
        """
        stops = self._bounds()
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < int(stops[-1]):
            raise IndexError(f"{self._name} has images 0 to {int(stops[-1]) - 1}")
        group_of = np.searchsorted(stops, wanted, side="right")
        images = np.empty((len(wanted), *self._shape), np.float16)
        for group in np.unique(group_of).tolist():
            of_group = group_of == group
            first = int(stops[group - 1]) if group else 0
            images[of_group] = self._group(group)[wanted[of_group] - first]
        return images

    def scales(self) -> npt.NDArray[np.float32]:
        """float32[n, C]: what sizes were divided by."""
        self._bounds()
        names = scale_names(self._shape[1])
        columns = read_columns(self._storage, self._name, names)
        return np.stack([columns[name] for name in names], axis=1)

    def _bounds(self) -> npt.NDArray[np.int64]:
        if self._stops is None:
            with _opened(self._storage, self._name) as file:
                about = file.metadata
                text = (about.metadata or {}).get(_SHAPE_KEY.encode(), b"[0, 0, 0, 0]")
                self._shape = tuple(msgspec.json.decode(text, type=list[int]))
                counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
            self._stops = np.cumsum(np.array([*counts] or [0], np.int64))
        return self._stops

    def _group(self, group: int) -> npt.NDArray[np.float16]:
        if self._held is None or self._held[0] != group:
            with _opened(self._storage, self._name) as file:
                column = file.read_row_group(group, columns=["image"], use_threads=False).column(0)
            chunks = [_pixels(chunk, self._shape) for chunk in column.chunks]
            self._held = group, np.concatenate(chunks) if len(chunks) > 1 else chunks[0]
        return self._held[1]


def _pixels(chunk: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
    data = np.frombuffer(memoryview(chunk.buffers()[1]), np.dtype("<f2"))
    images = data.reshape(-1, *shape)[chunk.offset : chunk.offset + len(chunk)]
    return images.astype(np.float16, copy=False)
