"""Our own backbones, without pretrained weights."""

from __future__ import annotations

from torch import nn

from crh_tune.hashing.backbones import Shape


class SmallCNN(nn.Sequential):
    """Two 3 x 3 convolution blocks of 32 channels and one hidden layer of 256: for small images, without pretraining.

    Batch normalisation in every block matters: without it, reassigning the centres in the first epochs, while all codes
    are still alike, can leave the network with one code for everything.

    Raises ValueError for inputs that are not images of at least 4 x 4.
    """

    features = 256

    def __init__(self, shape: Shape) -> None:
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(f"backbone small_cnn needs images of at least 4 x 4, got inputs of shape {shape}")
        channels, height, width = shape
        super().__init__(
            *_convolution_block(channels, 32),
            *_convolution_block(32, 32),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), self.features, bias=False),
            nn.BatchNorm1d(self.features),
            nn.ReLU(),
        )


def _convolution_block(channels_in: int, channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]


class MLP(nn.Sequential):
    """One hidden layer of 1024 with batch normalisation, for feature vectors. Raises ValueError for images."""

    features = 1024

    def __init__(self, shape: Shape) -> None:
        super().__init__(
            nn.Linear(_vector_length("mlp", shape), self.features, bias=False),
            nn.BatchNorm1d(self.features),
            nn.ReLU(),
        )


class Linear(nn.Identity):
    """No backbone: the hash layer alone, on feature vectors. Raises ValueError for images."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.features = _vector_length("linear", shape)


def _vector_length(name: str, shape: Shape) -> int:
    if len(shape) != 1:
        raise ValueError(f"backbone {name} needs feature vectors, got inputs of shape {shape}")
    return shape[0]
