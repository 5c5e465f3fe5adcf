"""Writes the table of settings in reference.md from the settings themselves: ``make docs``."""

from __future__ import annotations

from pathlib import Path

from config import variables

BEGIN, END = "<!-- settings: written by make docs -->\n", "<!-- end of settings -->\n"
REFERENCE = Path(__file__).with_name("reference.md")


def table() -> str:
    """One row per variable, as the test of config.py expects it."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, (default, description) in variables().items():
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {description} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Replace what lies between the two marks."""
    text = REFERENCE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    REFERENCE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
