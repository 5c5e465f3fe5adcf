"""Every error of the product, in one shallow tree.

OrderFlowError
├── ConfigError            bad flag, bad variable, folder in use or not writable   (exit 2)
├── DataFolderError        the data folder belongs to another source or process    (exit 2)
│   └── FolderInUse            by another process of the same role
├── SourceError            a recording that cannot be read                         (exit 2)
├── StorageError           the disk refused a write for good                       (exit 1)
├── ModelError             a trained model refused its input                       (exit 1)
├── ConnectionLost         every socket of a route failed too often in a row       (exit 3)
└── ExchangeError          a REST call failed; see ``binance_api.errors``
"""


class OrderFlowError(Exception):
    """Root of every error raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ConfigError(OrderFlowError):
    """A setting or flag is wrong; the message names the field and what to do."""

    exit_code = 2


class DataFolderError(ConfigError):
    """The data folder is in use, not writable, or holds data of another source."""


class FolderInUse(DataFolderError):
    """Another process of the same role has the data folder."""


class SourceError(ConfigError):
    """The named recording cannot be read at all."""


class StorageError(OrderFlowError):
    """A write failed and cannot be worked around (disk full, folder removed)."""


class ConnectionLost(OrderFlowError):
    """All sockets of one route failed the allowed number of times in a row."""

    exit_code = 3


class ModelError(OrderFlowError):
    """A trained model could not be asked: its file does not take what its card says."""
