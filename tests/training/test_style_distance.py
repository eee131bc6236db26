"""Style distance against plain computations in NumPy and with the UNet's own layers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from hypernet.training import style_distance as module
from hypernet.training.style_distance import LEAST_SPAN, Place, StyleAxis, extract_features, fit_axes, style_distance
from hypernet.utils.hashing import derive_seed
from tests.helpers.tiny_models import ONE_LEVEL, tiny_scheduler, tiny_unet, unet_inputs


def plain_features(unet, scheduler, latents, text, seed):
    """Return the features of all patches of the first two blocks, from the UNet's own layers."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(derive_seed("style", seed)))
    timestep, found = torch.tensor([20]), []
    with torch.no_grad():
        emb = unet.time_embedding(unet.time_proj(timestep))
        hidden = unet.conv_in(scheduler.add_noise(latents, noise, timestep))
        for block in unet.down_blocks[:2]:
            (resnet,) = block.resnets
            values = resnet(hidden, emb)[0].flatten(1).T.numpy()
            found.append(np.concatenate([values, np.abs(values - values.mean(0))], axis=1))
            hidden, _ = block(hidden, emb, encoder_hidden_states=text)
    return found


def in_order(patches):
    return patches[np.lexsort(patches.T)]


def test_features_are_those_of_the_first_blocks(monkeypatch):
    unet, scheduler = tiny_unet(), DDPMScheduler.from_config(tiny_scheduler("epsilon").config)
    latents, _, text = unet_inputs()
    latents, text = latents[:1], text[:1]
    features = extract_features(unet, scheduler, latents, {"encoder_hidden_states": text}, seed=7)
    expected = plain_features(unet, scheduler, latents, text, 7)
    assert [each.shape for each in features] == [(64, 32), (16, 64)]
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(in_order(ours.numpy()), in_order(theirs), atol=1e-5)
    monkeypatch.setattr(module, "PATCHES", 10)
    some = extract_features(unet, scheduler, latents, {"encoder_hidden_states": text}, seed=7)
    for few, whole in zip(some, features):
        assert len(few) == 10 and all((row == whole).all(1).any() for row in few)
    assert not any(part._forward_hooks for part in unet.modules())
    one = extract_features(tiny_unet(**ONE_LEVEL), scheduler, latents, {"encoder_hidden_states": text}, seed=7)
    assert len(one) == 1


def test_hooks_are_removed_after_a_failure():
    unet, scheduler = tiny_unet(), DDPMScheduler.from_config(tiny_scheduler("epsilon").config)
    with pytest.raises(RuntimeError):
        extract_features(unet, scheduler, torch.zeros(1, 4, 8, 8), {"encoder_hidden_states": torch.zeros(1, 7, 5)}, 0)
    assert not any(part._forward_hooks for part in unet.modules())


def features_of(count, shift, seed, widths=(6, 4)):
    """Return features of images whose patches are correlated and lie around a place that depends on the kind."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(count):
        of_blocks = []
        for width in widths:
            mix = torch.eye(width) + 0.5 * torch.ones(width, width).triu()
            patches = torch.randn(30, width, generator=generator) @ mix + torch.randn(width, generator=generator) / 4
            of_blocks.append(patches + shift * torch.linspace(0, 1, width))
        images.append(of_blocks)
    return images


@pytest.mark.parametrize("validated", [False, True])
def test_axes_are_those_of_fishers_discriminant(validated):
    images, generated = features_of(5, 0, 1), features_of(4, 2, 2)
    validation = features_of(3, 0.1, 3) if validated else []
    axes = fit_axes(images, generated, validation)
    for block, axis in enumerate(axes):
        styled, plain, more = (
            [each[block].double().numpy() for each in kind] for kind in (images, generated, validation)
        )
        difference = np.mean([each.mean(0) for each in plain], 0) - np.mean([each.mean(0) for each in styled], 0)
        within = (np.cov(np.concatenate(styled), rowvar=False) + np.cov(np.concatenate(plain), rowvar=False)) / 2
        within += 0.1 * np.trace(within) / len(within) * np.eye(len(within))
        direction = np.linalg.inv(within) @ difference
        direction /= direction @ difference
        np.testing.assert_allclose(axis.direction.numpy(), direction, rtol=1e-8)
        center = np.mean([each.mean(0) for each in [*styled, *more]], 0)
        np.testing.assert_allclose(axis.center.numpy(), center, rtol=1e-8)
        spread = np.mean([abs((each.mean(0) - center) @ direction) for each in more or styled])
        assert axis.spread == pytest.approx(spread, rel=1e-8)
        offset = styled[0].mean(0) - center
        squared = offset @ np.linalg.inv(within) @ offset  # Mahalanobis
        part = (offset @ direction) ** 2 / (direction @ within @ direction)  # of it, along the axis
        expected = (offset @ direction, (squared - part) ** 0.5)
        assert axis.place(images[0][block]) == pytest.approx(expected, rel=1e-6)


def test_zero_for_the_style_and_one_for_the_base_model():
    images, generated, validation = features_of(5, 0, 1), features_of(4, 2, 2), features_of(3, 0, 3)
    axes = fit_axes(images, generated, validation)

    def places(kind):
        return [[axis.place(each) for axis, each in zip(axes, image)] for image in kind]

    def along(kind):
        return [[place._replace(beside=1.0) for place in image] for image in places(kind)]

    base = places(generated)
    assert style_distance(axes, along(validation), along(generated)) == pytest.approx(0, abs=1e-9)
    assert style_distance(axes, along(generated), along(generated)) == pytest.approx(1)
    shifts = (0, 0.5, 1, 2, 4)
    distances = [style_distance(axes, places(features_of(9, shift, 4)), base) for shift in shifts]
    assert distances == sorted(distances) and distances[0] < 0.5 and distances[-1] > 1.5


def made_axis(spread):
    return StyleAxis(torch.ones(1), torch.ones(1, 1), torch.ones(1), torch.zeros(1), spread)


def test_distances_along_the_axis():
    axes = [made_axis(0.1), made_axis(0.0)]

    def places(*images):
        return [[Place(along, 1.0) for along in image] for image in images]

    base = places([1.1, 0.5], [1.1, -0.5])
    assert style_distance(axes, places([-0.6, 0.25]), base) == pytest.approx(0.5)  # either side of the style counts
    assert style_distance(axes, places([0.0, 0.0]), base) == pytest.approx(-0.05)  # nearer than the validation images
    assert style_distance(axes, places([2.1, 1.0]), base) == pytest.approx(2.0)
    # a base model that is in the style already: the distance stays finite
    assert style_distance(axes[1:], places([LEAST_SPAN]), places([0.0])) == pytest.approx(1.0)


def test_images_far_from_the_axis_are_far_from_the_style():
    axes, base = [made_axis(0.0)], [[Place(1.0, 2.0)], [Place(1.0, 2.0)]]
    for beside, more in ((0.0, 0.0), (2.0, 0.0), (4.0, 1.0), (8.0, 3.0)):
        assert style_distance(axes, [[Place(0.5, beside)]], base) == pytest.approx(0.5 + more)
