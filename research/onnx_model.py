"""An exported model offline: batches → probabilities, through onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError
from research.samples import Batch


class OnnxModel:
    """Called with a batch: float64[k, 3].

    Args:
        path: Of ``model.onnx``.

    Raises:
        ConfigError: onnxruntime is missing, or the file is no such model.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError("models need the package onnxruntime: make setup-research") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base that it exports
            raise ConfigError(f"{path} is no model: {str(error).splitlines()[0]}") from error
        self._inputs = {given.name for given in self._session.get_inputs()}

    def __call__(self, batch: Batch) -> npt.NDArray[np.float64]:
        given = {}
        if "image" in self._inputs:
            given["image"] = batch.images.astype(np.float32)
        if "features" in self._inputs:
            given["features"] = batch.features.astype(np.float32)
        found: npt.NDArray[np.float64] = self._session.run(["probabilities"], given)[0].astype(
            np.float64
        )
        return found
