"""What the quickstart's classifier sees in samples of a hypernetwork or a LoRA."""

from pathlib import Path
from typing import NamedTuple

from diffusers import StableDiffusionPipeline
from PIL import Image

import hypernet
from examples.quickstart.tools.classifier import judge, load_classifier
from examples.quickstart.tools.measure import MODEL, load_pipeline, prompt_scenes, sample, share_right
from examples.quickstart.tools.scenes import caption
from examples.quickstart.tools.sets import HANDS

SAMPLING_STEPS = 12


class SeenSamples(NamedTuple):
    """Samples, and the shares of them with the subject and the background of the prompt, in the style, and with both.

    `both` is style and subject. It and `style` are None for a style that the classifier does not know.
    """

    images: list[Image.Image]
    subject: float
    background: float
    style: float | None
    both: float | None


def pipeline_with(trained: Path, strength: float = 1.0) -> StableDiffusionPipeline:
    """Return the quickstart's model with what was trained: the folder of a run, a checkpoint or a LoRA."""
    pipeline = load_pipeline(MODEL)
    if (trained / "pytorch_lora_weights.safetensors").exists():
        pipeline.load_lora_weights(str(trained))
    else:
        hypernet.attach(pipeline.unet, hypernet.load(trained), strength=strength)
    return pipeline


def judge_samples(pipeline: StableDiffusionPipeline, style: str, count: int, suffix: str = "") -> SeenSamples:
    """Sample the quickstart's prompts, each with this suffix, and judge the images."""
    scenes = prompt_scenes(count)
    images = sample(pipeline, [caption(scene) + suffix for scene in scenes], steps=SAMPLING_STEPS)
    seen = judge(load_classifier(), images)
    subjects = [wanted.subject == each for wanted, each in zip(scenes, seen["subject"], strict=True)]
    shares = sum(subjects) / count, share_right(seen["background"], [scene.background for scene in scenes])
    if style not in HANDS:
        return SeenSamples(images, *shares, None, None)
    styles = [each == style for each in seen["hand"]]
    both = [is_subject and is_style for is_subject, is_style in zip(subjects, styles)]
    return SeenSamples(images, *shares, sum(styles) / count, sum(both) / count)
