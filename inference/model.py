"""A trained model at work: the books and windows of its symbols in, probabilities out. Synchronous.

Model's folder → ``Model``; ``DepthSnapshot``s and window trades → ``Prediction``. Kernels, inputs and their
versions are those of the datasets that it was trained on; what it needs and does not know is a reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError, ModelError
from domain.market import DepthSnapshot
from domain.model_card import ModelCard
from inference.card import MODEL_FILE, check_run, read_card
from inference.drift import DriftWatch
from inference.onnx_model import OnnxModel
from inference.symbol_input import REASONS, ModelInput, SymbolInput
from microstructure.measures import FEATURE_NAMES

type Session = Callable[[npt.NDArray[np.float16], npt.NDArray[np.float32]], npt.NDArray[np.float64]]

_NAMED = 3  # of the inputs that drifted most


class Prediction(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What a model says of the time after one window's end.

    Attributes:
        symbol: Upper case.
        decision_ms: The window's end.
        p_down: Share of the future, as are the two others.
        features: By name, as the model saw them; NaN is undefined.
        input_hash: Of everything that it saw.
    """

    symbol: str
    decision_ms: int
    p_down: float
    p_flat: float
    p_up: float
    features: dict[str, float]
    input_hash: str


class Model:
    """One model and the past of its symbols.

    Args:
        card: Of the model.
        session: Asked for probabilities.
        symbols: Those it speaks of.

    Raises:
        ConfigError: The ONNX file does not take what the card says.
    """

    def __init__(self, card: ModelCard, session: Session, symbols: Sequence[str]) -> None:
        self.card = card
        self._session = session
        self._symbols = {s: SymbolInput(card.window_ms, card.geometry) for s in symbols}
        self._drift = DriftWatch(card.input_histograms, FEATURE_NAMES)
        self._counts = dict.fromkeys(("predictions", *map(_key, REASONS)), 0)
        shape = (1, 0) if card.geometry is None else (1, *card.geometry.shape)
        nothing = np.zeros((1, len(FEATURE_NAMES)), np.float32)
        try:
            self._ask(ModelInput(np.zeros(shape, np.float16), nothing))
        except ModelError as error:
            raise ConfigError(f"--model: {card.name}: {error}") from error

    @classmethod
    def open(cls, folder: Path, market: str, window_ms: int, symbols: Sequence[str]) -> Self:
        """The model of a folder, for a run.

        Args:
            folder: That ``train`` wrote.
            market: Of the run.
            window_ms: Length of its windows.
            symbols: Which it watches; those that the model was not trained on are left out.

        Raises:
            ConfigError: The folder holds no whole model, or none for this run.
        """
        card = read_card(folder)
        known = check_run(card, market, window_ms, symbols)
        return cls(card, OnnxModel(folder / MODEL_FILE), known)

    @property
    def symbols(self) -> tuple[str, ...]:
        """That the model speaks of."""
        return tuple(self._symbols)

    def add_book(self, book: DepthSnapshot, *, chain_broken: bool) -> None:
        """Take the next book of one symbol's chain."""
        self._symbols[book.symbol].add_book(book, chain_broken=chain_broken)

    def add_window(
        self, symbol: str, trades: np.ndarray, start_ms: int, *, is_complete: bool
    ) -> None:
        """Take one symbol's closed window; see ``SymbolInput.add_window``."""
        self._symbols[symbol].add_window(trades, start_ms, is_complete=is_complete)

    def predict(self, symbol: str, start_ms: int) -> Prediction | str:
        """What follows the window that starts at ``start_ms``, or why that cannot be said.

        Raises:
            ModelError: The model refused its input.
        """
        given = self._symbols[symbol].at_end_of(start_ms)
        if isinstance(given, str):
            self._counts[_key(given)] += 1
            return given
        down, flat, up = self._ask(given).tolist()
        self._counts["predictions"] += 1
        decision_ms = start_ms + self.card.window_ms
        features = given.features[0]
        self._drift.add(decision_ms, features)
        seen = hashlib.sha256(given.images.tobytes() + given.features.tobytes())
        return Prediction(
            symbol=symbol,
            decision_ms=decision_ms,
            p_down=down,
            p_flat=flat,
            p_up=up,
            features=dict(zip(FEATURE_NAMES, map(float, features), strict=True)),
            input_hash=seen.hexdigest(),
        )

    def statistics(self) -> dict[str, int | float | str | None]:
        """Predictions, why there were none, and how far the inputs have drifted."""
        worst = sorted(self._drift.psi.items(), key=lambda item: -item[1])[:_NAMED]
        return {
            **self._counts,
            "psi_max": worst[0][1] if worst else None,
            "psi_worst": ", ".join(f"{name} {psi:.2f}" for name, psi in worst) or None,
        }

    def _ask(self, given: ModelInput) -> npt.NDArray[np.float64]:
        """float64[3].

        Raises:
            ModelError: It refused, or what came back are no probabilities.
        """
        found: npt.NDArray[np.float64] = self._session(given.images, given.features)[0]
        if found.shape != (3,) or not (found >= 0.0).all() or abs(found.sum() - 1.0) > 1e-3:
            raise ModelError(f"{found.tolist()} are no probabilities of down, flat and up")
        return found


def _key(reason: str) -> str:
    """As a statistic's name."""
    return reason.replace(" ", "_").replace("'", "")
