"""Style distance: how far generated images are from the training images, in the base model's own features.

The first blocks of the UNet, without the hypernetwork, describe small patches of an image. What separates the patches
of training images from those of images that the base model generates from the same captions is the style, since they
show the same things: the axis of Fisher's linear discriminant. 0 is as far as validation images are from the style's
center, and 1 as far as images generated without the hypernetwork are.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from hypernet.utils.hashing import derive_seed

NOISE_LEVEL = 0.02  # timestep as a share of all: low, so that details remain
BLOCKS = 2  # of the UNet, from the input
PATCHES = 256  # at most, per image
SHRINKAGE = 0.1  # of the covariance, towards a multiple of the identity
LEAST_SPAN = 0.1  # of the axis, between the style's center and images without the hypernetwork

Features = list[torch.Tensor]  # of an image, one per block: (patches, 2 * channels) float32 on the CPU


@torch.no_grad()
def extract_features(
    unet: UNet2DConditionModel, scheduler: DDPMScheduler, latents: torch.Tensor, conditions: dict, seed: int
) -> Features:
    """Return what the UNet's first blocks make of the patches of an image: each channel, and its local contrast.

    Args:
        unet: without a hypernetwork, or at strength 0.
        latents: (1, channels, height, width).
        conditions: the UNet's further arguments, for the empty prompt.
        seed: of the noise, and of the choice of patches.
    """
    features: Features = []
    generator = torch.Generator().manual_seed(derive_seed("style", seed))

    def record(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        values = output[0].flatten(1).T.float().cpu()  # (height * width, channels)
        both = torch.cat([values, (values - values.mean(0)).abs()], dim=1)
        features.append(both[torch.randperm(len(both), generator=generator)[:PATCHES]])

    hooks = [block.resnets[-1].register_forward_hook(record) for block in unet.down_blocks[:BLOCKS]]
    try:
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        timestep = torch.tensor([int(NOISE_LEVEL * scheduler.config.num_train_timesteps)], device=latents.device)
        unet(scheduler.add_noise(latents.float(), noise, timestep).to(unet.dtype), timestep, **conditions)
    finally:
        for hook in hooks:
            hook.remove()
    return features


class Place(NamedTuple):
    """Where an image is in a block's features.

    Attributes:
        along: the signed distance from the style's center along the axis; 1 is that of the base model's images.
        beside: the distance from the axis, in units of a whitened feature.
    """

    along: float
    beside: float


@dataclasses.dataclass(frozen=True)
class StyleAxis:
    """The direction in a block's features that separates the style from the base model.

    Attributes:
        direction: (2 * channels,) float64; from the training images to the base model's it grows by 1.
        whitening: (2 * channels, 2 * channels) float64.
        axis: the same direction in whitened features, of norm 1.
        center: the mean features of images in the style, (2 * channels,) float64.
        spread: the mean distance of images in the style from the center, along the axis.
    """

    direction: torch.Tensor
    whitening: torch.Tensor
    axis: torch.Tensor
    center: torch.Tensor
    spread: float

    def place(self, patches: torch.Tensor) -> Place:
        """Return where the mean of an image's patches is."""
        offset = patches.double().mean(0) - self.center
        whitened = offset @ self.whitening
        beside = whitened - (whitened @ self.axis) * self.axis
        return Place((offset @ self.direction).item(), beside.norm().item())


def fit_axes(
    images: Sequence[Features], generated: Sequence[Features], validation: Sequence[Features] = ()
) -> list[StyleAxis]:
    """Return the axis of each block.

    Args:
        images: features of training images.
        generated: features of images that the base model generates from their captions.
        validation: features of more images in the style. Without them, the training images set the zero.
    """
    axes = []
    for block, (styled, plain) in enumerate(zip(zip(*images), zip(*generated))):
        covariance, difference = _covariance(styled, plain), _mean(plain) - _mean(styled)
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors / values.sqrt()
        axis = torch.nn.functional.normalize(difference @ whitening, dim=0)
        direction = whitening @ axis
        center = _mean([*styled, *(each[block] for each in validation)])
        axis = StyleAxis(direction / (difference @ direction), whitening, axis, center, 0.0)
        known = [abs(axis.place(each[block]).along) for each in validation or images]
        axes.append(dataclasses.replace(axis, spread=statistics.fmean(known)))
    return axes


def style_distance(
    axes: Sequence[StyleAxis], places: Sequence[Sequence[Place]], base_places: Sequence[Sequence[Place]]
) -> float:
    """Return the style distance of some images: 0 for images in the style, 1 for those without the hypernetwork.

    It is a little below 0 for images that are nearer to the style's center than its own images are. Images that are
    farther from the axis than those without the hypernetwork, such as noise, count as farther from the style.

    Args:
        places: of each image, its place on each of `axes`.
        base_places: likewise, of the same images generated without the hypernetwork.
    """
    distances = []
    for axis, of_images, of_base in zip(axes, zip(*places), zip(*base_places)):
        beside = statistics.fmean(place.beside for place in of_base)
        far, base = (
            statistics.fmean(abs(each.along) + max(each.beside / beside - 1, 0.0) for each in kind) - axis.spread
            for kind in (of_images, of_base)
        )
        distances.append(far / max(base, LEAST_SPAN))
    return statistics.fmean(distances)


def _mean(kind: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the patches of images, each image counting the same."""
    return torch.stack([patches.double().mean(0) for patches in kind]).mean(0)


def _covariance(*kinds: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean covariance of the patches of each kind, shrunk so that it can be inverted."""
    covariance = torch.stack([torch.cov(torch.cat(list(kind)).double().T) for kind in kinds]).mean(0)
    return covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
