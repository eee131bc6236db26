"""A classifier of the emoji images: which subject and background they show, and in whose hand.

    python examples/quickstart/artists/classifier.py         # train it (a quarter of an hour on a CPU core), measure it

It is trained on the artists' emoji only, blurred and warped the way a small model's samples are, and never on samples.
Of each hand, about one subject in twelve is kept from it, to measure it on emoji that it has not seen.
"""

import argparse
import hashlib
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter, ImageOps
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.artists.scenes import BACKGROUNDS, draw, random_scene, to_array
from examples.quickstart.artists.sets import HANDS, SUBJECTS, find, render

PATH = Path(__file__).resolve().parents[1] / "build" / "classifier.safetensors"
UNKNOWN = -100  # a label that cross_entropy ignores
HEADS = {"subject": tuple(SUBJECTS), "hand": HANDS, "background": tuple(BACKGROUNDS)}


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Maps images (N, 3, 64, 64) in [-1, 1] to {head: logits (N, number of its names)}.

    The hand is judged by small patches alone, since it must be told from subjects that nobody has drawn in it.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = _block(3, 32, 2)
        for inputs, outputs in ((32, 64), (64, 128), (128, 192)):
            layers += [*_block(inputs, outputs, 2), *_block(outputs, outputs, 1)]
        self.shapes = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.4))
        self.subject = nn.Linear(192 * 4 * 4, len(SUBJECTS))
        self.background = nn.Linear(192 * 4 * 4, len(BACKGROUNDS))
        strides = ((3, 32, 2), (32, 64, 1), (64, 96, 2))
        self.strokes = nn.Sequential(*(layer for block in strides for layer in _block(*block)))
        self.hand = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * 96, len(HANDS)))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes, strokes = self.shapes(images), self.strokes(images)
        pooled = torch.cat([strokes.mean(dim=(2, 3)), strokes.amax(dim=(2, 3))], dim=1)
        return {"subject": self.subject(shapes), "hand": self.hand(pooled), "background": self.background(shapes)}


def shrink(images: list[Image.Image]) -> torch.Tensor:
    """Return the classifier's input, (N, 3, 64, 64), for PIL images of 128 x 128 pixels."""
    return F.avg_pool2d(torch.from_numpy(to_array(images)), 2)


def is_unseen(subject: str, hand: str) -> bool:
    """Return whether this emoji is kept from the classifier's training (about 1 in 12)."""
    return int(hashlib.sha256(f"{subject}/{hand}".encode()).hexdigest(), 16) % 12 == 0


def restyle(emoji: Image.Image, rng: random.Random) -> Image.Image:
    """Return an RGBA emoji with other colors and perhaps with outlines: the subject in a hand that nobody has."""
    alpha = emoji.getchannel("A")
    hue, saturation, value = emoji.convert("RGB").convert("HSV").split()
    shift, strength, light = rng.choice([0, rng.randrange(256)]), rng.uniform(0, 1.3), rng.uniform(0.7, 1.15)
    hue = hue.point(lambda h: (h + shift) % 256)
    saturation, value = saturation.point(lambda s: min(255, strength * s)), value.point(lambda v: min(255, light * v))
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < 0.3:
        image = ImageOps.posterize(image, rng.choice([1, 2, 3]))
    if rng.random() < 0.5:
        width, ink = rng.choice([3, 5, 7]), (rng.choice([10, 10, 70, 245]),) * 3
        lines = image.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda edge: 255 * (edge > 40))
        image.paste(ink, mask=lines.filter(ImageFilter.MaxFilter(width)))
        border = ImageChops.subtract(alpha.filter(ImageFilter.MaxFilter(width)), alpha)
        image.paste(ink, mask=border)
        alpha = ImageChops.lighter(alpha, border)
        if rng.random() < 0.2:  # line art
            image.paste((255, 255, 255), mask=ImageChops.invert(ImageChops.lighter(lines, border)))
    image.putalpha(alpha)
    return image


def emoji_images(
    pairs: list[tuple[str, str]], per_pair: int, seed: str, restyled: float = 0.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return new images (N, 3, 64, 64) of (subject, hand) pairs in half precision, and labels {head: indices (N,)}.

    A share of them is `restyled`; the label of their hand is `UNKNOWN`.
    """
    rng, images, labels = random.Random(seed), [], {head: [] for head in HEADS}
    for subject, hand in pairs:
        for _ in range(per_pair):
            scene, emoji = random_scene(rng, subject=subject, hand=hand), None
            if rng.random() < restyled:
                emoji = restyle(render(subject, hand), rng)
            images.append(shrink([draw(scene, emoji=emoji)]).half())
            for head, names in HEADS.items():
                known = head != "hand" or emoji is None
                labels[head].append(names.index(getattr(scene, head)) if known else UNKNOWN)
    return torch.cat(images), {head: torch.tensor(indices) for head, indices in labels.items()}


def all_pairs(unseen: bool) -> list[tuple[str, str]]:
    """Return the (subject, hand) pairs that exist and are or are not kept from training."""
    pairs = [(subject, hand) for subject in SUBJECTS for hand in HANDS if find(subject, hand)]
    return [pair for pair in pairs if is_unseen(*pair) == unseen]


def distort(images: torch.Tensor) -> torch.Tensor:
    """Blur, warp, tint and add noise to most of the images (N, 3, H, W), as a small model's samples are."""

    def vary(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), *shape)

    def smooth_noise(channels: int, cells: int) -> torch.Tensor:
        return F.interpolate(torch.randn(len(images), channels, cells, cells), size, mode="bilinear")

    size = images.shape[-2:]
    angle, zoom, shift = vary(-0.3, 0.3), vary(0.8, 1.15), vary(-0.1, 0.1, 2, 1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rotation * zoom.view(-1, 1, 1), shift], dim=2), images.shape, align_corners=False)
    warp = vary(0, 0.07, 1, 1, 1) * smooth_noise(2, 6)
    out = F.grid_sample(images, grid + warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    small = F.interpolate(out, size=int(torch.randint(26, 60, ())), mode="area")
    out = torch.lerp(out, F.interpolate(small, size, mode="bilinear"), vary(0, 1, 1, 1, 1))

    out = out * vary(0.9, 1.05, 1, 1, 1) + vary(-0.05, 0.05, 3, 1, 1)
    out = out + vary(0, 0.04, 1, 1, 1) * smooth_noise(3, 8)
    out = out + vary(0, 0.06, 1, 1, 1) * torch.randn_like(out)
    return torch.where(vary(0, 1, 1, 1, 1) < 0.25, images, out.clamp(-1, 1))


def train_classifier(steps: int = 3500, batch_size: int = 64, learning_rate: float = 3e-3) -> Classifier:
    """Return a classifier in eval mode, trained on distorted emoji of every hand."""
    images, labels = emoji_images(all_pairs(unseen=False), 24, "classifier", restyled=0.5)
    torch.manual_seed(0)
    classifier = Classifier().to(memory_format=torch.channels_last)  # faster on a CPU
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc="Classifier", mininterval=5):
        chosen = torch.randint(len(images), (batch_size,))
        inputs = distort(images[chosen].float()).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = {head: values.float() for head, values in classifier(inputs).items()}
        loss = sum(F.cross_entropy(logits[head], labels[head][chosen], label_smoothing=0.05) for head in HEADS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.to(memory_format=torch.contiguous_format).eval()


def load_classifier() -> Classifier:
    """Return the trained classifier; it is trained first if it is not there."""
    if not PATH.exists():
        PATH.parent.mkdir(parents=True, exist_ok=True)
        save_file(train_classifier().state_dict(), PATH.with_suffix(".tmp"))
        PATH.with_suffix(".tmp").replace(PATH)
    classifier = Classifier()
    classifier.load_state_dict(load_file(PATH))
    return classifier.eval()


@torch.no_grad()
def judge(classifier: Classifier, images: list[Image.Image]) -> dict[str, list[str]]:
    """Return what the classifier sees in images of 128 x 128 pixels: {head: a name for each image}."""
    seen: dict[str, list[str]] = {head: [] for head in HEADS}
    for at in range(0, len(images), 64):
        for head, logits in classifier(shrink(images[at : at + 64])).items():
            seen[head] += [HEADS[head][i] for i in logits.argmax(dim=1)]
    return seen


@torch.no_grad()
def accuracy(classifier: Classifier, unseen: bool = True, per_pair: int = 4) -> dict[str, dict[str, float]]:
    """Return {hand: {head: share right}} on new images of emoji that the classifier has or has not seen."""
    table = {}
    for hand in HANDS:
        pairs = [pair for pair in all_pairs(unseen) if pair[1] == hand]
        images, labels = emoji_images(pairs, per_pair, "accuracy")
        logits = classifier(images.float())
        table[hand] = {head: (logits[head].argmax(dim=1) == labels[head]).float().mean().item() for head in HEADS}
    return table


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    classifier = load_classifier()
    for title, unseen in (("emoji not seen in training", True), ("emoji seen in training", False)):
        print(f"{title}:")
        for hand, shares in accuracy(classifier, unseen).items():
            print(f"  {hand:18}" + ", ".join(f"{head} {share:.1%}" for head, share in shares.items()))


if __name__ == "__main__":
    main()
