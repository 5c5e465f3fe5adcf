"""What a data folder holds data of: ``source.json`` names the market and host, seed or recording.

Consumes a folder and a description, produces the right to write there: the first run writes the
file, later ones must match it, so that two sources never mix in one store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from domain.errors import DataFolderError, StorageError
from lake.atomic import StepHook, no_hook, write_atomic
from lake.lock import not_writable

SOURCE_FILE: Final = "source.json"

type Description = Mapping[str, str | int]


def claim_source(folder: Path, description: Description, *, hook: StepHook = no_hook) -> None:
    """Make sure ``folder`` holds data of this source and no other.

    Args:
        folder: Root of one market's tree; created if missing.
        description: What the data are of, as ``{"market": "um", "host": "fstream.binance.com"}``.
        hook: See ``lake.atomic.StepHook``.

    Raises:
        DataFolderError: The folder holds data of another source, or cannot be written or read.
    """
    wanted = dict(description)
    if not is_claimed(folder, wanted):
        content = msgspec.json.format(msgspec.json.encode(wanted), indent=2) + b"\n"
        try:
            write_atomic(folder / SOURCE_FILE, content, hook=hook)
        except FileExistsError:  # another process was first: compare with what it wrote
            is_claimed(folder, wanted)
        except StorageError as error:
            raise DataFolderError(f"data folder {folder} cannot be used: {error}") from error


def is_claimed(folder: Path, description: Description) -> bool:
    """Whether ``folder`` holds data of this source already; False if of none.

    Raises:
        DataFolderError: The folder holds data of another source, or cannot be read.
    """
    found = read_source(folder)
    if found and found != dict(description):
        raise DataFolderError(
            f"data folder {folder} holds data of {_words(found)}, this run's source is "
            f"{_words(description)}; choose another --data-dir"
        )
    return bool(found)


def read_source(folder: Path) -> dict[str, str | int]:
    """The description in ``folder``; empty if there is none.

    Raises:
        DataFolderError: The file is there and cannot be read.
    """
    path = folder / SOURCE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str | int])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise not_writable(folder, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataFolderError(
            f"data folder {folder}: {SOURCE_FILE} is damaged ({error}); "
            "restore it or choose another --data-dir"
        ) from error


def _words(description: Description) -> str:
    return ", ".join(f"{key} {value}" for key, value in description.items()) or "an unnamed source"
