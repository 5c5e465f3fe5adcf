"""An exported model: inputs → probabilities, through onnxruntime on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError, ModelError


class OnnxModel:
    """Called with images and features: float64[k, 3], in the order down, flat, up.

    Args:
        path: Of ``model.onnx``.

    Raises:
        ConfigError: onnxruntime is missing, or the file is no such model.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError("models need the package onnxruntime: run make setup") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base that it exports
            raise ConfigError(f"{path} is no model: {str(error).splitlines()[0]}") from error
        self._inputs = {given.name for given in self._session.get_inputs()}

    def __call__(
        self, images: npt.NDArray[Any], features: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Probabilities of k samples.

        Args:
            images: [k, T, C, H, W]; anything where the model takes none.
            features: [k, F]; anything where the model takes none.

        Raises:
            ModelError: The model refused them.
        """
        given = {"image": images, "features": features}
        try:
            (found,) = self._session.run(
                ["probabilities"],
                {name: given[name].astype(np.float32) for name in self._inputs},
            )
        except Exception as error:
            raise ModelError(
                f"the model refused its input: {str(error).splitlines()[0]}"
            ) from error
        probabilities: npt.NDArray[np.float64] = found.astype(np.float64)
        return probabilities
