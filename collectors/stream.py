"""``python -m collectors.stream``: the same as ``python main.py record``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from main import main

    sys.exit(main(["record", *sys.argv[1:]]))
