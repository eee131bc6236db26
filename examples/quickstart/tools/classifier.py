"""A small classifier of the drawn images: which subject, colors and style they show.

It is trained on drawn images only, blurred and warped the way a small model's samples are, and never on samples.
"""

import hashlib
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from examples.quickstart.tools.draw import BACKGROUNDS, COLORS, STYLES, SUBJECTS, draw, random_scene, to_array

HERE = Path(__file__).resolve().parent
HEADS = {"subject": SUBJECTS, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "style": STYLES}
HIDDEN = {"neon": {"background"}, "blueprint": {"color", "background"}, "sunset": {"color", "background"}}
UNKNOWN = -100  # a label that cross_entropy ignores


class Classifier(nn.Module):
    """Maps images (N, 3, 64, 64) in [-1, 1] to logits (N, 35), those of all `HEADS` concatenated."""

    def __init__(self):
        super().__init__()
        layers, channels = [], (3, 32, 64, 96, 96)
        for i, o in zip(channels, channels[1:]):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        outputs = sum(len(names) for names in HEADS.values())
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 4 * 4, outputs))

    def forward(self, images):
        return self.layers(images)


def split_heads(logits):
    """Split logits (N, 35) into {head: logits (N, number of its names)}."""
    return dict(zip(HEADS, logits.split([len(names) for names in HEADS.values()], dim=1)))


def shrink(images):
    """Return the classifier's input, (N, 3, 64, 64), for PIL images of 128 x 128 pixels."""
    return F.avg_pool2d(torch.from_numpy(to_array(images)), 2)


def label(scene, style, head):
    """Return the index of the right name of a head, or `UNKNOWN` where the image does not show it."""
    black_outlines = style == "cartoon" and scene.background == "black"  # on black: looks flat
    if head in HIDDEN.get(style, ()) or (head == "style" and black_outlines):
        return UNKNOWN
    return HEADS[head].index(style if head == "style" else getattr(scene, head))


def drawn_images(seed, count, styles=STYLES):
    """Return new images (N, 3, 64, 64) and their labels {head: indices (N,)}."""
    rng, images, labels = random.Random(seed), [], {head: [] for head in HEADS}
    for i in range(count):
        scene, style = random_scene(rng), styles[i % len(styles)]
        images.append(shrink([draw(scene, style)]))
        for head in HEADS:
            labels[head].append(label(scene, style, head))
    return torch.cat(images), {head: torch.tensor(indices) for head, indices in labels.items()}


def distort(images):
    """Blur, warp, tint and add noise to most of the images (N, 3, H, W), as a small model's samples are."""

    def vary(low, high, *shape):
        return low + (high - low) * torch.rand(len(images), *shape)

    def smooth_noise(channels, cells, size):
        return F.interpolate(torch.randn(len(images), channels, cells, cells), size, mode="bilinear")

    size = images.shape[-2:]
    images = torch.where(vary(0, 1, 1, 1, 1) < 0.5, images, images.flip(3))
    angle, zoom, shift = vary(-0.1, 0.1), vary(0.9, 1.1), vary(-0.1, 0.1, 2, 1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rotation * zoom.view(-1, 1, 1), shift], dim=2), images.shape, align_corners=False)
    warp = vary(0, 0.05, 1, 1, 1) * smooth_noise(2, 6, size)
    out = F.grid_sample(images, grid + warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    small = F.interpolate(out, size=int(torch.randint(26, 52, ())), mode="area")
    blurred = F.interpolate(small, size, mode="bilinear")
    out = torch.lerp(out, blurred, vary(0, 1, 1, 1, 1))

    out = out * vary(0.9, 1.05, 1, 1, 1) + vary(-0.05, 0.05, 3, 1, 1)
    out = out + vary(0, 0.04, 1, 1, 1) * smooth_noise(3, 8, size)
    out = out + vary(0, 0.06, 1, 1, 1) * torch.randn_like(out)
    return torch.where(vary(0, 1, 1, 1, 1) < 0.2, images, out.clamp(-1, 1))


def train_classifier(count=7200, steps=1400, batch_size=64, learning_rate=3e-3):
    """Return a classifier in eval mode, trained on distorted drawn images in every style."""
    images, labels = drawn_images("classifier", count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier().to(memory_format=torch.channels_last)  # faster on a CPU
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch_size,))
            logits = split_heads(classifier(distort(images[chosen])))
            loss = sum(F.cross_entropy(logits[head], labels[head][chosen]) for head in HEADS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.to(memory_format=torch.contiguous_format).eval()


def source_hash() -> str:
    """Return a hash of the code that the classifier is trained by."""
    names = ("draw.py", "shapes.py", "classifier.py")
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in names)).hexdigest()[:16]


def load_classifier(path=HERE / "classifier.safetensors"):
    """Return the trained classifier. It is trained again if the code it was trained by has changed."""
    made_by = None
    if path.exists():
        with safe_open(path, framework="pt") as file:
            made_by = (file.metadata() or {}).get("source")
    if made_by != source_hash():
        print("Training the classifier (once, about a minute) ...", file=sys.stderr)
        save_file(train_classifier().state_dict(), path.with_suffix(".tmp"), {"source": source_hash()})
        path.with_suffix(".tmp").replace(path)
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


@torch.no_grad()
def predict(classifier, images):
    """Pictures (N, 3, 64, 64) -> {head: indices (N,)}."""
    return {head: logits.argmax(dim=1) for head, logits in split_heads(classifier(images)).items()}


def judge(classifier, images):
    """What the classifier sees in PIL images: {head: a name for each image}."""
    indices = predict(classifier, shrink(images))
    return {head: [names[i] for i in indices[head]] for head, names in HEADS.items()}


def classifier_accuracy(classifier, styles=STYLES, count=1200):
    """Return {head: share right} on new drawn images whose style shows it; "all": with nothing wrong."""
    images, labels = drawn_images("accuracy", count, styles)
    predicted = predict(classifier, images)
    known = {head: labels[head] != UNKNOWN for head in HEADS}
    wrong = {head: known[head] & (predicted[head] != labels[head]) for head in HEADS}
    accuracy = {head: 1 - (wrong[head].sum() / known[head].sum()).item() for head in HEADS}
    return {**accuracy, "all": 1 - torch.stack([*wrong.values()]).any(dim=0).float().mean().item()}
