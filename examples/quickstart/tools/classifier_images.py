"""The images that the classifier learns from: artists' emoji, blurred and warped the way a small model's samples are."""

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageChops, ImageFilter, ImageOps
from tqdm.auto import tqdm

from examples.quickstart.tools.scenes import BACKGROUNDS, draw, random_scene
from examples.quickstart.tools.sets import HANDS, SUBJECTS, common_icons, find, icon_entry, render, render_icon

VAE_PATH = Path(__file__).resolve().parents[1] / "model" / "vae"
HEADS = {"subject": tuple(SUBJECTS), "hand": HANDS, "background": tuple(BACKGROUNDS)}


def to_pixels(images: Iterable[Image.Image]) -> torch.Tensor:
    """Return PIL images of one size as bytes, (N, 3, H, W)."""
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """Return bytes as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


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


def all_pairs(unseen: bool) -> list[tuple[str, str]]:
    """Return the (subject, hand) pairs that exist and are or are not kept from training."""
    pairs = [(subject, hand) for subject in SUBJECTS for hand in HANDS if find(subject, hand)]
    return [pair for pair in pairs if is_unseen(*pair) == unseen]


def emoji_images(
    pairs: list[tuple[str, str]], per_pair: int, seed: str, restyled: float = 0.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return new images of (subject, hand) pairs as bytes (N, 3, 128, 128), and labels {head: indices (N,)}.

    A share of them is `restyled`: the hand in their labels is then not theirs.
    """
    rng, images, labels = random.Random(seed), [], {head: [] for head in HEADS}
    for subject, hand in pairs:
        for _ in range(per_pair):
            scene = random_scene(rng, subject=subject, hand=hand)
            emoji = restyle(render(subject, hand), rng) if rng.random() < restyled else None
            images.append(to_pixels([draw(scene, emoji=emoji)]))
            for head, names in HEADS.items():
                labels[head].append(names.index(getattr(scene, head)))
    return torch.cat(images), {head: torch.tensor(indices) for head, indices in labels.items()}


def hand_images(per_icon: int, others: int, seed: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return new images as bytes (N, 3, 128, 128), and labels {"hand": indices (N,)}.

    They show, in every hand, the seen subjects and `others` more of the set's common icons.
    """
    rng, images, labels = random.Random(seed), [], []
    for index, hand in enumerate(HANDS):
        subjects = {find(subject, hand): subject for subject in SUBJECTS if find(subject, hand)}
        unseen = {icon_entry(icon, hand)["body"] for icon, subject in subjects.items() if is_unseen(subject, hand)}
        more = [icon for icon in common_icons(hand) if icon not in subjects]
        for icon in [*subjects, *rng.sample(more, min(others, len(more)))]:
            for _ in range(per_icon if icon_entry(icon, hand)["body"] not in unseen else 0):
                images.append(to_pixels([draw(random_scene(rng, hand=hand), emoji=render_icon(icon, hand))]))
                labels.append(index)
    return torch.cat(images), {"hand": torch.tensor(labels)}


def load_vae() -> AutoencoderKL:
    """Return the VAE of the quickstart's model."""
    return AutoencoderKL.from_pretrained(VAE_PATH, torch_dtype=torch.float32).to(memory_format=torch.channels_last)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Return images, bytes (N, 3, H, W), encoded and decoded by a VAE."""
    parts = []
    for part in tqdm(pixels.split(24), desc="Through the VAE", mininterval=5):
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(scale(part).to(memory_format=torch.channels_last)).latent_dist.mode()
            image = vae.decode(latents).sample.float()
        parts.append(((image.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)


def distort(images: torch.Tensor, side: int, strength: float = 1.0) -> torch.Tensor:
    """Blur, warp, tint and add noise to images (N, 3, H, H), as a small model's samples are.

    Return crops of side x side pixels, in channels-last order (faster on a CPU). At less `strength`, warp and noise are
    weaker: they hide how a surface is shaded.
    """

    def vary(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), *shape)

    def smooth_noise(channels: int, cells: int) -> torch.Tensor:
        return F.interpolate(torch.randn(len(images), channels, cells, cells), size, mode="bilinear")

    size, share = (side, side), side / images.shape[-1]
    reach = 0.1 + 0.6 * (1 - share)
    angle, zoom, shift = vary(-0.3, 0.3), vary(0.8, 1.15) * share, vary(-reach, reach, 2, 1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    theta = torch.cat([rotation * zoom.view(-1, 1, 1), shift], dim=2)
    grid = F.affine_grid(theta, [len(images), 3, *size], align_corners=False)
    warp = vary(0, 0.07 * strength, 1, 1, 1) * smooth_noise(2, 6)
    out = F.grid_sample(images, grid + warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    small = F.interpolate(out, size=int(torch.randint(round(0.41 * side), round(0.94 * side), ())), mode="bilinear")
    out = torch.lerp(out, F.interpolate(small, size, mode="bilinear"), vary(0, 1, 1, 1, 1))

    out = out * vary(0.9, 1.05, 1, 1, 1) + vary(-0.05, 0.05, 3, 1, 1)
    out = out + vary(0, 0.04 * strength, 1, 1, 1) * smooth_noise(3, 8)
    out = out + vary(0, 0.06 * strength, 1, 1, 1) * torch.randn_like(out)
    return out.clamp(-1, 1).to(memory_format=torch.channels_last)
