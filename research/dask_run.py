"""Days on other machines: a Dask scheduler's workers run the same ``build_day``.

Tasks → reports as they finish. The only place that knows ``dask.distributed`` (an extra). The workers
need this program and must reach the lake and the dataset under the same addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from domain.errors import ConfigError
from research.build import attempt, failure
from research.day_task import DayReport, DayTask

CONNECT_TIMEOUT_S: Final = 20


def run_on_dask(tasks: Sequence[DayTask], scheduler: str) -> Iterator[DayReport]:
    """Build days on the workers of a scheduler, yielding reports as they finish.

    A day whose worker dies is given to another one, as often as the scheduler allows
    (``distributed.scheduler.allowed-failures``).

    Raises:
        ConfigError: ``dask[distributed]`` is not installed, or nobody answers.
    """
    try:
        import dask.distributed  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "--scheduler: needs the package dask[distributed]; install it here and on the workers"
        ) from None
    distributed: Any = dask.distributed
    try:
        client = distributed.Client(
            scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False, name="features-build"
        )
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"--scheduler: {scheduler} does not answer: {reason}") from error
    with client:
        futures = {client.submit(attempt, task, pure=False): task for task in tasks}
        for future in distributed.as_completed(futures, loop=client.loop):
            problem = future.exception()
            if problem is None:
                yield future.result()
            else:
                yield failure(futures[future], f"{type(problem).__name__}: {problem}")
            future.release()
