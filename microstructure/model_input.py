"""The version of everything a model takes in.

Stored with datasets and model cards; a model of another version is refused.
"""

from __future__ import annotations

from typing import Final

INPUT_VERSION: Final = "1"
"""Changes whenever a kernel behind a feature or a book image changes its values."""
