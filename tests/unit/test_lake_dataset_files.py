"""Files of datasets: columns and images as they were, whole or not there."""

from __future__ import annotations

import numpy as np
import pytest

from domain.errors import StorageError
from lake.dataset_files import (
    CONTENT_KEY,
    ImageFile,
    content_sha256,
    read_columns,
    read_metadata,
    write_columns,
    writing_images,
)
from lake.part_files import DamagedFile
from lake.storage import Storage, StoredFile

COLUMNS = {
    "decision_ms": np.arange(5) * 5_000,
    "x": np.array([1, np.nan, 3, -0.0, np.inf], np.float32),
    "y": np.array([0.1, np.nan, 1e300, 2, 3]),
    "is_valid": np.array([True, False, True, True, False]),
}


@pytest.fixture(params=["path", "uri"])
def storage(request, tmp_path) -> Storage:
    return Storage.of(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_columns_come_back_as_they_were(storage):
    sha256 = write_columns(storage, "a/day.parquet", COLUMNS, {"about": "this"})
    found = read_columns(storage, "a/day.parquet")
    assert list(found) == list(COLUMNS)
    for name, values in COLUMNS.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes()
    assert read_metadata(storage, "a/day.parquet") == {"about": "this", CONTENT_KEY: sha256}
    assert sha256 == content_sha256(COLUMNS)
    assert [f.name for f in storage.files()] == ["a/day.parquet"]


def test_a_write_that_fails_leaves_what_was_there(storage):
    storage.write("x.json", b"old")
    with pytest.raises(RuntimeError), storage.new_file("x.json") as handle:
        handle.write(b"ne")
        raise RuntimeError
    assert storage.read("x.json") == b"old"
    assert storage.files() == [StoredFile("x.json", 3)]
    assert not storage.exists("y.json")


def test_a_damaged_file_is_named(storage, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DamagedFile, match=r"bad\.parquet"):
        read_columns(storage, "bad.parquet")
    with pytest.raises(FileNotFoundError):
        read_columns(storage, "none.parquet")
    write_columns(storage, "day.parquet", COLUMNS)
    with pytest.raises(DamagedFile, match="lacks z"):
        read_columns(storage, "day.parquet", ["x", "z"])


def test_images_are_read_by_row_across_chunks(storage):
    images = np.random.default_rng(3).normal(size=(7, 2, 3, 4, 2)).astype(np.float16)
    scale = np.arange(21, dtype=np.float32).reshape(7, 3)
    times = np.arange(7) * 5_000
    with writing_images(storage, "day.parquet", (2, 3, 4, 2)) as writer:
        for first, stop in ((0, 3), (3, 3), (3, 5), (5, 7)):
            rows = slice(first, stop)
            writer.add(times[rows], images[rows], scale[rows])
    file = ImageFile(storage, "day.parquet")
    for rows in ([6, 0, 3, 3], [], [2], list(range(7))):
        assert np.array_equal(file.rows(np.array(rows, np.intp)), images[rows])
    assert np.array_equal(file.scales(), scale)
    with pytest.raises(IndexError, match="images 0 to 6"):
        file.rows(np.array([7]))


def test_a_kind_of_storage_nobody_knows_is_named():
    with pytest.raises(ValueError, match="nowhere://x"):
        Storage.of("nowhere://x/y")


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create folder"):
        Storage.of(tmp_path / "file").write("x/y.json", b"")
