"""A classifier of the emoji images: which subject and background they show, and in whose hand.

    python examples/quickstart/tools/classifier.py         # measure it; train it first if its weights are not there

It is trained on the artists' emoji only, blurred and warped the way a small model's samples are, and never on samples.
Of each hand, about one subject in twelve is kept from it, to measure it on emoji that it has not seen. The hand is
learned from hundreds of emoji more, of other subjects, half of them passed through the quickstart model's VAE.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.tools.classifier_images import (
    HEADS,
    all_pairs,
    distort,
    emoji_images,
    hand_images,
    load_vae,
    reconstruct,
    scale,
    to_pixels,
)
from examples.quickstart.tools.scenes import BACKGROUNDS
from examples.quickstart.tools.sets import HANDS, SUBJECTS
from hypernet.cli.script import run_script

PATH = Path(__file__).with_suffix(".safetensors")


def _block(inputs: int, outputs: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Maps images (N, 3, 128, 128) in [-1, 1] to {head: logits (N, number of its names)}.

    The hand is judged by what patches of 15 and 55 pixels look like over the whole image (mean, maximum and standard
    deviation), since it must be told from subjects that nobody has drawn in it. Subject and background are judged by
    the whole image at half its size.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = _block(3, 32, 2)
        for inputs, outputs in ((32, 64), (64, 128), (128, 192)):
            layers += [*_block(inputs, outputs, 2), *_block(outputs, outputs, 1)]
        self.shapes = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.4))
        self.subject = nn.Linear(192 * 4 * 4, len(SUBJECTS))
        self.background = nn.Linear(192 * 4 * 4, len(BACKGROUNDS))
        self.fine = nn.Sequential(*_block(3, 32, 2), *_block(32, 48, 2), *_block(48, 64, 1))
        self.coarse = nn.Sequential(*_block(64, 96, 2), *_block(96, 96, 1, dilation=2))
        self.hand = nn.Sequential(nn.Linear(3 * (64 + 96), 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, len(HANDS)))

    def judge_shapes(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images of half the size, (N, 3, 64, 64), to the logits of subject and background."""
        shapes = self.shapes(images)
        return {"subject": self.subject(shapes), "background": self.background(shapes)}

    def judge_strokes(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images of 128 pixels, or crops of them, to the logits of the hand."""
        fine = self.fine(images)
        patches = [features.flatten(2) for features in (fine, self.coarse(fine))]  # (N, channels, patches)
        pooled = [value for each in patches for value in (each.mean(dim=2), each.amax(dim=2), each.float().std(dim=2))]
        return {"hand": self.hand(torch.cat(pooled, dim=1))}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**self.judge_shapes(F.avg_pool2d(images, 2)), **self.judge_strokes(images)}


def fit(
    classifier: Classifier,
    logits_of: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    pixels: torch.Tensor,
    labels: dict[str, torch.Tensor],
    steps: int,
) -> None:
    """Train the parameters that `logits_of` uses on images, bytes (N, 3, H, W), and labels {head: indices (N,)}."""
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc="Classifier", mininterval=5):
        chosen = torch.randint(len(pixels), (64,))
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_of(scale(pixels[chosen]))
        losses = (
            F.cross_entropy(values.float(), labels[head][chosen], label_smoothing=0.05)
            for head, values in logits.items()
        )
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()  # no gradients: another `fit` leaves these parameters alone


def train_classifier(steps: int = 3500, per_pair: int = 24, others: int = 330) -> Classifier:
    """Return a classifier in eval mode, trained on distorted emoji of every hand: first the shapes, then the strokes."""

    def shapes(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return classifier.judge_shapes(distort(F.avg_pool2d(images, 2), 64))

    def strokes(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return classifier.judge_strokes(distort(images, random.choice((64, 80, 112)), strength=0.4))

    torch.manual_seed(0)
    random.seed(0)
    classifier = Classifier().to(memory_format=torch.channels_last)
    pixels, labels = emoji_images(all_pairs(unseen=False), per_pair, "classifier", restyled=0.5)
    fit(classifier, shapes, pixels, labels, steps)
    pixels, labels = hand_images(4, others, "strokes")
    pixels[::2] = reconstruct(load_vae(), pixels[::2])
    fit(classifier, strokes, pixels, labels, steps)
    return classifier.to(memory_format=torch.contiguous_format).eval()


def load_classifier() -> Classifier:
    """Return the trained classifier, in float32; it is trained first if its weights, in half precision, are not there."""
    if not PATH.exists():
        state = {name: value.half() for name, value in train_classifier().state_dict().items()}
        save_file(state, PATH.with_suffix(".tmp"))
        PATH.with_suffix(".tmp").replace(PATH)
    classifier = Classifier()
    classifier.load_state_dict(load_file(PATH))
    return classifier.eval()


@torch.no_grad()
def classify(classifier: Classifier, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return {head: indices (N,) of the likeliest names} for images of 128 x 128 pixels, bytes (N, 3, 128, 128)."""
    parts = [classifier(scale(part)) for part in pixels.split(64)]
    return {head: torch.cat([part[head] for part in parts]).argmax(dim=1) for head in HEADS}


def judge(classifier: Classifier, images: list[Image.Image]) -> dict[str, list[str]]:
    """Return what the classifier sees in images of 128 x 128 pixels: {head: a name for each image}."""
    seen = classify(classifier, to_pixels(images))
    return {head: [names[i] for i in seen[head]] for head, names in HEADS.items()}


def accuracy(
    classifier: Classifier, unseen: bool = True, per_pair: int = 4, vae: AutoencoderKL | None = None
) -> dict[str, dict[str, float]]:
    """Return {hand: {head: share right}} on new images of emoji that the classifier has or has not seen.

    With a VAE, the images pass through it first.
    """
    table = {}
    for hand in HANDS:
        pairs = [pair for pair in all_pairs(unseen) if pair[1] == hand]
        pixels, labels = emoji_images(pairs, per_pair, "accuracy")
        seen = classify(classifier, reconstruct(vae, pixels) if vae else pixels)
        table[hand] = {head: (seen[head] == labels[head]).float().mean().item() for head in HEADS}
    return table


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    classifier, vae = load_classifier(), load_vae()
    for title, unseen in (("emoji not seen in training", True), ("emoji seen in training", False)):
        for through, per_pair, passed in (("", 4, None), (", through the VAE", 4 if unseen else 1, vae)):
            print(f"{title}{through}:")
            for hand, shares in accuracy(classifier, unseen, per_pair, passed).items():
                print(f"  {hand:18}" + ", ".join(f"{head} {share:.1%}" for head, share in shares.items()))


if __name__ == "__main__":
    run_script(main)
