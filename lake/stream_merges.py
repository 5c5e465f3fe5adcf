"""Which files of a folder count: those that no merged file beside them took over.

Names of stream files are given again, so each file carries a token of its own and a merged one lists
the tokens it replaces. Consumes a folder, produces the files to read, exact at every moment of a
merge, whether it goes on, ended or died.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from domain.errors import StorageError
from lake.atomic import storage_error
from lake.part_files import FILE_SUFFIX, REPLACES_KEY

FILE_KEY: Final = b"orderflow.file"
"""Metadata key of a file's token: unlike its name it is never given again."""

_LISTING_ATTEMPTS: Final = 20
_texts: Final = msgspec.json.Decoder(list[str])


class Footer(msgspec.Struct, frozen=True):
    """A file and what its footer says of merges; a footer nobody can read says nothing."""

    path: Path
    token: str | None
    replaces: frozenset[str]

    @property
    def is_merged(self) -> bool:
        """Whether it took over the rows of other files."""
        return bool(self.replaces)


def new_token() -> str:
    """The value of ``FILE_KEY`` for a file to be written."""
    return secrets.token_hex(8)


def footer_of(path: Path) -> Footer:
    """Read what a file says of merges.

    Raises:
        FileNotFoundError: It is gone.
    """
    try:
        found: Mapping[bytes, bytes] = pq.read_metadata(path).metadata or {}
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError):  # whoever reads it says what is wrong with it
        found = {}
    return Footer(path, found.get(FILE_KEY, b"").decode() or None, _listed(found))


def _listed(metadata: Mapping[bytes, bytes]) -> frozenset[str]:
    try:
        return frozenset(_texts.decode(metadata.get(REPLACES_KEY, b"[]")))
    except msgspec.DecodeError:
        return frozenset()


def split_replaced(footers: Iterable[Footer]) -> tuple[list[Footer], list[Footer]]:
    """The files that count, and those whose rows another one of them has."""
    footers = list(footers)
    gone = {token for footer in footers for token in footer.replaces}
    return (
        [footer for footer in footers if footer.token not in gone],
        [footer for footer in footers if footer.token in gone],
    )


def footers_in(folder: Path, is_ours: Callable[[str], bool]) -> list[Footer]:
    """All files of a folder at one moment, in order of their names; none where there is no folder.

    A listing can miss a merged file that appears and the parts that vanish while it runs; one that
    equals the next listing did not, because the merged file appears before its parts vanish.

    Args:
        folder: Of one kind and date.
        is_ours: Which names count.

    Raises:
        StorageError: The system refused, or the files keep changing.
    """
    names = _names_in(folder, is_ours)
    for _ in range(_LISTING_ATTEMPTS):
        try:
            footers = [footer_of(folder / name) for name in names]
        except FileNotFoundError:
            footers = None
        again = _names_in(folder, is_ours)
        if footers is not None and again == names:
            return footers
        names = again
    raise StorageError(f"cannot read {folder}: its files keep changing")


def current_files(folder: Path, is_ours: Callable[[str], bool]) -> list[Path]:
    """The files to read, in order of their names.

    A file listed may be gone when it is opened, merged into another one: list again then.

    Raises:
        StorageError: As ``footers_in``.
    """
    names = _names_in(folder, is_ours)
    if len(names) < 2 and names == _names_in(folder, is_ours):
        return [folder / name for name in names]
    return [footer.path for footer in split_replaced(footers_in(folder, is_ours))[0]]


def _names_in(folder: Path, is_ours: Callable[[str], bool]) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error("cannot read", folder, error) from error
    return sorted(
        name
        for name in names
        if name.endswith(FILE_SUFFIX) and not name.startswith(".") and is_ours(name)
    )
