"""The data lake: everything on disk, and how it gets there whole. ``read`` and ``gaps`` are its door."""

from lake.reading import gaps, read

__all__ = ["gaps", "read"]
