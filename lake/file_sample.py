"""What one Parquet file is: size, rows, columns and its first rows, without reading all of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from lake.part_files import read_failure


class FileSample(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it is. ``columns``: name → Arrow type; ``rows``: the first ones, values as text."""

    path: Path
    size_bytes: int
    row_count: int
    columns: dict[str, str]
    rows: list[dict[str, str]]


def sample_of(path: Path, count: int = 3) -> FileSample:
    """Look at a file.

    Args:
        path: A Parquet file.
        count: Rows of the sample.

    Raises:
        FileNotFoundError: It is gone.
        DamagedFile: Its content cannot be read.
        StorageError: The system refused.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            batches = file.iter_batches(batch_size=count, use_threads=False)
            rows = next((batch.to_pylist() for batch in batches), [])
            return FileSample(
                path=path,
                size_bytes=path.stat().st_size,
                row_count=file.metadata.num_rows,
                columns={field.name: str(field.type) for field in file.schema_arrow},
                rows=[{str(k): str(v) for k, v in row.items()} for row in rows],
            )
    except (FileNotFoundError, pa.ArrowMemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise read_failure(path, error) from error
