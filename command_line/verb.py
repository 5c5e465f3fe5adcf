"""What a verb of the command line is, and what all of them share: parser, settings, logging.

A verb is a module of this folder with ``VERB = Verb(...)``; ``main`` finds it by its name.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from domain.errors import ConfigError

if TYPE_CHECKING:
    from config import Settings
    from monitoring.logging import LogWriter


class Parser(argparse.ArgumentParser):
    """Bad usage is an error like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


class Verb(msgspec.Struct, frozen=True, kw_only=True):
    """One verb.

    Attributes:
        about: What it does; the first lines of its help.
        examples: Commands, one a line, without indentation.
        add_arguments: Adds its options to the parser.
        run: Given what was set (nothing else: options without a value are absent), does the work
            and returns the exit code.
    """

    about: str
    examples: tuple[str, ...]
    add_arguments: Callable[[Parser], None]
    run: Callable[[dict[str, Any]], int]

    def call(self, name: str, arguments: Sequence[str]) -> int:
        """Parse the arguments and run."""
        parser = Parser(
            prog=f"python main.py {name}",
            description=self.about,
            epilog="\n".join(["examples:", *(f"  {example}" for example in self.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.add_arguments(parser)
        return self.run(vars(parser.parse_args(arguments)))


def add_settings(
    parser: argparse.ArgumentParser,
    *,
    first: Sequence[str],
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> None:
    """One flag per setting.

    Args:
        parser: Gets the flags.
        first: Settings shown as the verb's own, before those usually set as variables.
        only: The others that concern the verb; ``None`` for all.
        without: Settings that make no sense for the verb.
    """
    # Settings are costly to import, and --help of main needs none.
    from config import Settings, flag_of, is_secret
    from config_parts import PARTS

    known = [
        name
        for name, field in Settings.model_fields.items()
        if name not in {*PARTS, *without} and not is_secret(field.annotation)
    ]
    names = [name for name in known if only is None or name in {*first, *only}]
    others = parser.add_argument_group(
        "settings", "also environment variables, as in brackets; more in docs/reference.md"
    )
    for name in sorted(names, key=lambda name: name not in first):
        field = Settings.model_fields[name]
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default is None else f", default {default}"
        text = f"{field.description} [{name.upper()}{shown}]".replace("%", "%%")
        flag = flag_of(name)
        target = parser if name in first else others
        if field.annotation is bool:
            target.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = name.rsplit("_", 1)[-1].upper()
            target.add_argument(flag, dest=name, metavar=metavar, help=text)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings with what was given on the command line.

    Raises:
        ConfigError: a value cannot be used; one line names the field.
    """
    from config import Settings

    return Settings(**given)


def logging_for(settings: Settings, *, to_file: bool = False) -> LogWriter:
    """A context in which logs are written: to stderr, or to a rotated file.

    Args:
        settings: LOG_*; LOG_FILE wins over ``to_file``.
        to_file: below the data folder, since stderr shows something else.
    """
    from monitoring.logging import configure_logging, secrets_in

    path = settings.log_file
    if path is None and to_file:
        path = settings.data_root / "logs" / "orderflow.log"
    try:
        return configure_logging(
            settings.log_level,
            log_file=path,
            file_bytes=settings.log_file_mib * 1_048_576,
            files_kept=settings.log_files_keep,
            secrets=secrets_in(os.environ),
        )
    except OSError as error:
        field = "DATA_DIR (--data-dir)" if settings.log_file is None else "LOG_FILE (--log-file)"
        raise ConfigError(f"{field}: {path} is not writable: {error.strerror}") from None


def writing_logs(level: str) -> LogWriter:
    """Like ``logging_for``, for a verb without settings."""
    from monitoring.logging import configure_logging, secrets_in

    return configure_logging(level, secrets=secrets_in(os.environ))
