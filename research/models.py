"""The networks, in torch: raw images and features → probabilities, scaling and calibration included.

What training fitted of the inputs' scale, and the calibration, are buffers: they are exported with
the weights, and nothing outside the graph has to be repeated live. Import this module lazily.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from domain.model_card import CLASSES, ImageGeometry
from research.calibration import Calibration
from research.presets import Preset
from research.scaling import InputScale

_CLIP = 8.0  # standard deviations: a feature beyond it says no more than one at it


class Network(nn.Module):
    """A preset's network.

    Args:
        preset: Kind and size.
        geometry: Of the images; ``None`` where it takes none.
        feature_count: Of the features; 0 where it takes none.
    """

    def __init__(self, preset: Preset, geometry: ImageGeometry | None, feature_count: int) -> None:
        super().__init__()
        self.takes_image, self.takes_features = preset.takes_image, preset.takes_features
        width = 0
        if preset.takes_image and geometry is not None:
            self.register_buffer("image_scale", torch.ones(geometry.channels))
            self.image_part = _image_part(preset, geometry)
            width += preset.hidden
        if preset.takes_features:
            self.register_buffer("feature_mean", torch.zeros(feature_count))
            self.register_buffer("feature_scale", torch.ones(feature_count))
            self.feature_part, size = _feature_part(preset, feature_count)
            width += size
        self.head = nn.Linear(width, len(CLASSES))
        self.register_buffer("temperature_inverse", torch.ones(()))
        self.register_buffer("bias", torch.zeros(len(CLASSES)))

    def set_scale(self, scale: InputScale) -> None:
        """What training days said of the inputs."""
        if self.takes_image:
            self.image_scale.copy_(torch.from_numpy(scale.image_scale))
        if self.takes_features:
            self.feature_mean.copy_(torch.from_numpy(scale.feature_mean))
            self.feature_scale.copy_(torch.from_numpy(scale.feature_scale))

    def set_calibration(self, calibration: Calibration) -> None:
        """What validation days said of the logits."""
        self.temperature_inverse.fill_(calibration.temperature_inverse)
        self.bias.copy_(torch.tensor(calibration.bias))

    def logits(self, image: Any, features: Any) -> Any:
        """float[B, 3], not calibrated. An input that the network does not take is ignored."""
        parts = []
        if self.takes_image:
            known = torch.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
            parts.append(self.image_part(known / self.image_scale[:, None, None]))
        if self.takes_features:
            scaled = (features - self.feature_mean) / self.feature_scale
            known = torch.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)
            parts.append(self.feature_part(known.clamp(-_CLIP, _CLIP)))
        return self.head(torch.cat(parts, dim=1))

    def forward(self, image: Any, features: Any) -> Any:
        """float[B, 3]: calibrated probabilities of down, flat and up."""
        logits = self.logits(image, features)
        return torch.softmax(logits * self.temperature_inverse + self.bias, dim=1)


class ImageVivit(nn.Module):
    """A ViViT's token of the whole: [B, T, C, H, W] → [B, hidden]."""

    def __init__(self, preset: Preset, geometry: ImageGeometry) -> None:
        super().__init__()
        from transformers import VivitConfig, VivitModel

        config = VivitConfig(
            image_size=(geometry.height, geometry.width),
            num_frames=geometry.frames,
            tubelet_size=list(preset.tubelet),
            num_channels=geometry.channels,
            hidden_size=preset.hidden,
            num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads,
            intermediate_size=2 * preset.hidden,
            hidden_dropout_prob=preset.dropout,
            attention_probs_dropout_prob=0.0,
        )
        self.vivit = VivitModel(config, add_pooling_layer=False)

    def forward(self, image: Any) -> Any:
        return self.vivit(pixel_values=image).last_hidden_state[:, 0]


class ImageCnnLstm(nn.Module):
    """Convolutions within each frame, an LSTM over the frames: [B, T, C, H, W] → [B, hidden]."""

    def __init__(self, preset: Preset, geometry: ImageGeometry) -> None:
        super().__init__()
        hidden, self.frame_count = preset.hidden, geometry.frames
        self.convolutions = nn.Sequential(
            nn.Conv2d(geometry.channels, 16, (4, 1), stride=(2, 1), padding=(1, 0)),
            nn.LeakyReLU(),
            nn.Conv2d(16, 16, (4, 3), stride=(2, 2), padding=(1, 1)),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.LazyLinear(hidden),
            nn.LeakyReLU(),
        )
        with torch.no_grad():
            self.convolutions(torch.zeros(1, geometry.channels, geometry.height, geometry.width))
        self.lstm = nn.LSTM(hidden, hidden, num_layers=preset.layers, batch_first=True)
        self.dropout = nn.Dropout(preset.dropout)

    def forward(self, image: Any) -> Any:
        frames = self.convolutions(image.flatten(0, 1))
        frames = frames.reshape(-1, self.frame_count, frames.shape[-1])
        zero = (0.0 * frames[:, 0])[None].repeat(self.lstm.num_layers, 1, 1)
        states, _ = self.lstm(frames, (zero, zero))  # its own zeros would fix the batch in ONNX
        return self.dropout(states[:, -1])


def _image_part(preset: Preset, geometry: ImageGeometry) -> nn.Module:
    kinds = {"vivit": ImageVivit, "cnn_lstm": ImageCnnLstm}
    return kinds[preset.kind](preset, geometry)


def _feature_part(preset: Preset, count: int) -> tuple[nn.Module, int]:
    """A linear model sees the features as they are, the others through hidden layers."""
    if preset.kind == "logistic":
        return nn.Identity(), count
    sizes = [count, *([preset.hidden] * (preset.layers if preset.kind == "mlp" else 1))]
    parts: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        parts += [nn.Linear(size, following), nn.GELU(), nn.Dropout(preset.dropout)]
    return nn.Sequential(*parts), preset.hidden


def parameter_count(network: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
