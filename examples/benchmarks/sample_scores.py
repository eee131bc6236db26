"""Measure prompt fidelity and style distance on samples of the quickstart's model, as a run does on its previews."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from examples.quickstart.tools.measure import sample
from hypernet.stable_diffusion.text_encoding import Embeds
from hypernet.training.preview_scores import STYLE_IMAGES
from hypernet.training.prompt_fidelity import choose_alternatives, prompt_margin
from hypernet.training.style_distance import Features, Place, extract_features, fit_axes, style_distance
from hypernet.utils.sequences import spread

STYLE_SEED = 5000  # unlike those of samples, whose noise would otherwise seem to belong to the base model's style


class SampleScores:
    """Scores images of some prompts, compared with those that the base model generates from the same noise.

    Args:
        pipeline: the base model, without a hypernetwork.
        prompts: of the images.
        training: images in the style; each has its caption in a text file beside it.
        validation: more of them.
        steps: sampling steps of the images.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: Sequence[str],
        training: Sequence[Path],
        validation: Sequence[Path],
        steps: int,
    ) -> None:
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in training]
        choices = [[prompt, *choose_alternatives(prompt, [*prompts, *captions])] for prompt in prompts]
        self._embeds = [[encode_prompt(pipeline, text) for text in choice] for choice in choices]
        self._empty = encode_prompt(pipeline, "")
        plain = sample(pipeline, spread(captions, STYLE_IMAGES), steps=steps, seed=STYLE_SEED)
        styled = [Image.open(path) for path in spread(training, STYLE_IMAGES)]
        self._axes = fit_axes(*map(self._features_of, (styled, plain, [Image.open(path) for path in validation])))
        self._margins, self._places = self._judge(sample(pipeline, prompts, steps=steps))

    def measure(self, images: Sequence[Image.Image]) -> dict[str, float]:
        """Return prompt fidelity and style distance of images of the prompts. No hypernetwork may be attached."""
        margins, places = self._judge(images)
        return {
            "prompt_fidelity": max(0.0, sum(margins) / sum(self._margins)),
            "style_distance": style_distance(self._axes, places, self._places),
        }

    def _judge(self, images: Sequence[Image.Image]) -> tuple[list[float], list[list[Place]]]:
        """Return the prompt margin of each image, and its places on the style's axes."""
        latents = encode_images(self.pipeline, images)
        margins = [
            prompt_margin(self.unet, self.scheduler, each, embeds, None, seed, len(embeds))
            for seed, (each, embeds) in enumerate(zip(latents, self._embeds, strict=True))
        ]
        features = self._features_of(images)
        return margins, [[axis.place(each) for axis, each in zip(self._axes, of_image)] for of_image in features]

    def _features_of(self, images: Sequence[Image.Image]) -> list[Features]:
        conditions = {"encoder_hidden_states": self._empty.tokens[None]}
        return [
            extract_features(self.unet, self.scheduler, latents[None], conditions, seed)
            for seed, latents in enumerate(encode_images(self.pipeline, images))
        ]


@torch.no_grad()
def encode_prompt(pipeline: StableDiffusionPipeline, text: str) -> Embeds:
    """Encode a prompt."""
    return Embeds(pipeline.encode_prompt(text, "cpu", 1, False)[0][0])


@torch.no_grad()
def encode_images(pipeline: StableDiffusionPipeline, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return the scaled latents of images, (images, channels, height, width)."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pipeline.vae.encode(tensor).latent_dist.mean * pipeline.vae.config.scaling_factor
