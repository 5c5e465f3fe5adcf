"""Folders of datasets, here or far away: a path, ``file://…`` or ``s3://…`` → whole files.

A new file appears when all of it is written: here by renaming, in an object store because an upload
counts only when it ends. Files of a lake that is far away are fetched before they are read.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs

from domain.errors import StorageError
from lake.atomic import atomic_file, storage_error


class StoredFile(msgspec.Struct, frozen=True, order=True):
    """A file below a folder: its path in there, with slashes, and its size."""

    name: str
    size_bytes: int


class Storage(msgspec.Struct, frozen=True):
    """One folder. ``name`` is everywhere a path below it, with slashes.

    Attributes:
        uri: As it was given.
        root: The folder as its filesystem calls it.
        filesystem: ``None`` on this machine.
    """

    uri: str
    root: str
    filesystem: Any

    @classmethod
    def of(cls, uri: str | Path) -> Self:
        """The folder of a path or URI; nothing is created or asked for.

        Raises:
            ValueError: There is no such kind of storage.
        """
        text = str(uri)
        if "://" not in text:
            return cls(text, str(Path(text)), None)
        try:
            filesystem, root = pafs.FileSystem.from_uri(text)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{text}: {str(error).splitlines()[0]}") from error
        if isinstance(filesystem, pafs.LocalFileSystem):
            return cls(text, root, None)
        return cls(text, root, filesystem)

    @property
    def is_local(self) -> bool:
        """Whether the folder is one of this machine's."""
        return self.filesystem is None

    def below(self, name: str) -> Storage:
        """A folder in this one."""
        head, mark, query = self.uri.partition("?")
        return Storage(f"{head.rstrip('/')}/{name}{mark}{query}", self._full(name), self.filesystem)

    def path(self, name: str) -> Path:
        """Where a file of a local folder lies."""
        return Path(self.root) / name

    def exists(self, name: str) -> bool:
        """Whether the file is there.

        Raises:
            StorageError: The storage refused.
        """
        if self.is_local:
            return self.path(name).is_file()
        with self._asking("look for", name):
            found = self.filesystem.get_file_info(self._full(name))
        return bool(found.type == pafs.FileType.File)

    def files(self, folder: str = "") -> list[StoredFile]:
        """All files in a folder and below it, sorted by name; none where there is no folder.

        Raises:
            StorageError: The storage refused.
        """
        if self.is_local:
            return self._local_files(folder)
        selector = pafs.FileSelector(self._full(folder), allow_not_found=True, recursive=True)
        with self._asking("list", folder):
            found = self.filesystem.get_file_info(selector)
        return sorted(
            StoredFile(str(PurePosixPath(info.path).relative_to(self.root)), info.size or 0)
            for info in found
            if info.type == pafs.FileType.File
        )

    def _local_files(self, folder: str) -> list[StoredFile]:
        root = Path(self.root)
        try:
            return sorted(
                StoredFile(path.relative_to(root).as_posix(), path.stat().st_size)
                for path in self.path(folder).rglob("*")
                if path.is_file()
            )
        except OSError as error:
            raise storage_error("cannot list", self.path(folder), error) from error

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: It is not there.
            StorageError: The storage refused.
        """
        if self.is_local:
            try:
                return self.path(name).read_bytes()
            except FileNotFoundError:
                raise
            except OSError as error:
                raise storage_error("cannot read", self.path(name), error) from error
        with (
            self._asking("read", name),
            self.filesystem.open_input_stream(self._full(name)) as file,
        ):
            content: bytes = file.read()
        return content

    def open(self, name: str) -> Any:
        """A file for Arrow to read from.

        Raises:
            FileNotFoundError: It is not there.
            StorageError: The storage refused.
        """
        filesystem = self.filesystem or pafs.LocalFileSystem()
        with self._asking("read", name):
            return filesystem.open_input_file(self._full(name))

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[BinaryIO]:
        """A handle to write to; the file is there after the block, whole, or stays as it was.

        Raises:
            StorageError: The storage refused.
        """
        if self.is_local:
            with atomic_file(self.path(name), overwrite=True) as handle:
                yield handle
            return
        with tempfile.TemporaryFile() as handle:
            yield handle
            handle.seek(0)
            with (
                self._asking("write", name),
                self.filesystem.open_output_stream(self._full(name)) as target,
            ):
                shutil.copyfileobj(handle, target, 1 << 20)

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file.

        Raises:
            StorageError: The storage refused.
        """
        with self.new_file(name) as handle:
            handle.write(content)

    def fetch(self, names: list[str], folder: Path) -> None:
        """Copy files to the same places below a local folder; those that have gone are left out.

        Raises:
            StorageError: The storage or the disk refused.
        """
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.suppress(FileNotFoundError),
                self._asking("read", name),
                self.open(name) as source,
                target.open("wb") as handle,
            ):
                shutil.copyfileobj(source, handle, 1 << 20)

    def _full(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    @contextlib.contextmanager
    def _asking(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StorageError(f"cannot {action} {self._full(name)}: {reason}") from error
