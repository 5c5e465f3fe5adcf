"""A trained network as an ONNX file, and proof that both say the same.

``Network`` → ``model.onnx`` (inputs ``image`` and/or ``features``, output ``probabilities``), checked
against torch on real samples. Import this module lazily.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from domain.errors import OrderFlowError
from domain.model_card import ImageGeometry
from inference.onnx_model import OnnxModel
from lake.atomic import write_atomic
from research.fitting import tensors
from research.models import Network
from research.samples import Batch

TOLERANCE: Final = 1e-4
_OPSET: Final = 17


class ExportFailed(OrderFlowError):
    """The exported model says something else than the trained one."""


class _Named(torch.nn.Module):
    """The network with only the inputs that it takes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        image = inputs[0] if self.network.takes_image else None
        features = inputs[-1] if self.network.takes_features else None
        return self.network(image, features)


def export(
    network: Network, geometry: ImageGeometry | None, feature_count: int, path: Path
) -> None:
    """Write the ONNX file; the batch may have any size."""
    given: dict[str, Any] = {}
    if network.takes_image and geometry is not None:
        given["image"] = torch.zeros(2, *geometry.shape)
    if network.takes_features:
        given["features"] = torch.zeros(2, feature_count)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of shapes that are constants here
        torch.onnx.export(
            _Named(network.cpu().eval()).eval(),
            tuple(given.values()),
            buffer,
            input_names=list(given),
            output_names=["probabilities"],
            dynamic_axes={name: {0: "batch"} for name in (*given, "probabilities")},
            opset_version=_OPSET,
            dynamo=False,
        )
    write_atomic(path, buffer.getvalue(), overwrite=True)


def check_parity(network: Network, path: Path, batch: Batch) -> float:
    """The largest difference of a probability between torch and ONNX.

    Raises:
        ExportFailed: It is above ``TOLERANCE``, or something is no probability.
    """
    with torch.no_grad():
        wanted = network(*tensors(batch, "cpu")).numpy()
    found: npt.NDArray[np.float64] = OnnxModel(path)(batch.images, batch.features)
    worst = float(np.abs(found - wanted).max()) if len(found) else 0.0
    if not (worst <= TOLERANCE and np.allclose(found.sum(axis=1), 1.0, atol=TOLERANCE)):
        raise ExportFailed(f"{path}: probabilities differ from the trained ones by {worst:.2g}")
    return worst
