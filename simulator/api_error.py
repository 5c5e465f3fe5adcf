"""How the venue refuses a request."""

from __future__ import annotations


class ApiError(Exception):
    """An error body of the venue: HTTP status, ``code`` and ``msg``."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
