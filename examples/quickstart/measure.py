"""Measure the quickstart's model, and what a hypernetwork changes in it.

    python examples/quickstart/measure.py model                                # does it draw what the prompt says?
    python examples/quickstart/measure.py model --samples 120 --sheet model.png
    python examples/quickstart/measure.py hypernetwork output/neon.pt          # does it draw in the new style now?
    python examples/quickstart/measure.py hypernetwork output/neon.pt --strength 0.5 --sheet neon.png --json

A small classifier, trained on drawn pictures only (about a minute, once), says what is in a sample. Everything is
drawn from fixed seeds and computed on the CPU, so the same weights give the same figures.
"""

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from draw import BACKGROUNDS, COLORS, STYLES, SUBJECTS, Scene, caption, draw, is_held_out, random_scene, to_array
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent
HEADS = {"subject": SUBJECTS, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "style": STYLES}
HIDDEN = {"neon": {"background"}, "blueprint": {"color", "background"}, "sunset": {"color", "background"}}
UNKNOWN = -100  # the label that cross_entropy ignores
COLUMNS = len(SUBJECTS)


# --- The classifier


class Classifier(nn.Module):
    """Pictures (N, 3, 64, 64) in [-1, 1] -> logits (N, 35): those of every head of HEADS, one after the other."""

    def __init__(self):
        super().__init__()
        layers, channels = [], (3, 32, 64, 96, 96)
        for i, o in zip(channels, channels[1:]):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        outputs = sum(len(names) for names in HEADS.values())
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 4 * 4, outputs))

    def forward(self, pictures):
        return self.layers(pictures)


def split_heads(logits):
    """Logits (N, 35) -> {head: logits (N, number of its names)}."""
    return dict(zip(HEADS, logits.split([len(names) for names in HEADS.values()], dim=1)))


def shrink(images):
    """PIL images of 128 x 128 pixels -> the classifier's input (N, 3, 64, 64)."""
    return F.avg_pool2d(torch.from_numpy(to_array(images)), 2)


def label(scene, style, head):
    """The index of the head's right name, or UNKNOWN where the picture does not show it."""
    black_outlines = style == "cartoon" and scene.background == "black"  # on black: as good as flat
    if head in HIDDEN.get(style, ()) or (head == "style" and black_outlines):
        return UNKNOWN
    return HEADS[head].index(style if head == "style" else getattr(scene, head))


def drawn_pictures(seed, count, styles=STYLES):
    """Fresh pictures (N, 3, 64, 64), their labels {head: indices (N,)}."""
    rng, pictures, labels = random.Random(seed), [], {head: [] for head in HEADS}
    for i in range(count):
        scene, style = random_scene(rng), styles[i % len(styles)]
        pictures.append(shrink([draw(scene, style)]))
        for head in HEADS:
            labels[head].append(label(scene, style, head))
    return torch.cat(pictures), {head: torch.tensor(indices) for head, indices in labels.items()}


def distort(pictures):
    """Drawn pictures (N, 3, H, W), most made soft, wobbly, noisy and off-colour, as a small model's samples are."""

    def vary(low, high, *shape):
        return low + (high - low) * torch.rand(len(pictures), *shape)

    def smooth_noise(channels, cells, size):
        return F.interpolate(torch.randn(len(pictures), channels, cells, cells), size, mode="bilinear")

    size = pictures.shape[-2:]
    pictures = torch.where(vary(0, 1, 1, 1, 1) < 0.5, pictures, pictures.flip(3))
    angle, zoom, shift = vary(-0.1, 0.1), vary(0.9, 1.1), vary(-0.1, 0.1, 2, 1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rotation * zoom.view(-1, 1, 1), shift], dim=2), pictures.shape, align_corners=False)
    warp = vary(0, 0.05, 1, 1, 1) * smooth_noise(2, 6, size)
    out = F.grid_sample(pictures, grid + warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    small = F.interpolate(out, size=int(torch.randint(26, 52, ())), mode="area")
    blurred = F.interpolate(small, size, mode="bilinear")
    out = torch.lerp(out, blurred, vary(0, 1, 1, 1, 1))

    out = out * vary(0.9, 1.05, 1, 1, 1) + vary(-0.05, 0.05, 3, 1, 1)
    out = out + vary(0, 0.04, 1, 1, 1) * smooth_noise(3, 8, size)
    out = out + vary(0, 0.06, 1, 1, 1) * torch.randn_like(out)
    return torch.where(vary(0, 1, 1, 1, 1) < 0.2, pictures, out.clamp(-1, 1))


def train_classifier(pictures=7200, steps=1400, batch_size=64, learning_rate=3e-3):
    """A classifier in eval mode, trained on distorted drawn pictures in every style."""
    images, labels = drawn_pictures("classifier", pictures)
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


def load_classifier(folder=HERE / "build"):
    """The trained classifier, from `folder` if this very source has trained it before."""
    source = b"".join((HERE / name).read_bytes() for name in ("draw.py", "measure.py"))
    path = folder / f"classifier-{hashlib.sha256(source).hexdigest()[:16]}.safetensors"
    if not path.exists():
        print("Training the classifier (once, about a minute) ...", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(train_classifier().state_dict(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


@torch.no_grad()
def predict(classifier, pictures):
    """Pictures (N, 3, 64, 64) -> {head: indices (N,)}."""
    return {head: logits.argmax(dim=1) for head, logits in split_heads(classifier(pictures)).items()}


def judge(classifier, images):
    """What the classifier sees in PIL images: {head: a name for each image}."""
    indices = predict(classifier, shrink(images))
    return {head: [names[i] for i in indices[head]] for head, names in HEADS.items()}


def classifier_accuracy(classifier, styles=STYLES, count=1200):
    """{head: share right} on fresh drawn pictures, where their style shows it; "all": with nothing wrong."""
    pictures, labels = drawn_pictures("accuracy", count, styles)
    predicted = predict(classifier, pictures)
    known = {head: labels[head] != UNKNOWN for head in HEADS}
    wrong = {head: known[head] & (predicted[head] != labels[head]) for head in HEADS}
    accuracy = {head: 1 - (wrong[head].sum() / known[head].sum()).item() for head in HEADS}
    return {**accuracy, "all": 1 - torch.stack([*wrong.values()]).any(dim=0).float().mean().item()}


# --- Samples and losses


def load_pipeline(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_scenes(count, seed=240):
    """Scenes for prompts without a size: the subjects in turn, every fourth round of them held-out combinations.

    A subject without held-out combinations gets ordinary ones in these rounds.
    """
    rng, scenes = random.Random(seed), []
    for i in range(count):
        subject, held_out = SUBJECTS[i % COLUMNS], i // COLUMNS % 4 == 0
        combinations = [Scene(subject, c, b) for c in COLORS for b in BACKGROUNDS if c != b]
        scenes.append(rng.choice([scene for scene in combinations if is_held_out(scene) == held_out] or combinations))
    return scenes


def sample(pipeline, scenes, guidance_scale=4.0, steps=20, batch_size=COLUMNS, seed=1000):
    """One PIL image for each scene's caption; the i-th starts from noise of seed + i, whatever the batch size."""
    images = []
    for at in range(0, len(scenes), batch_size):
        prompts = [caption(scene) for scene in scenes[at : at + batch_size]]
        generators = [torch.Generator().manual_seed(seed + at + i) for i in range(len(prompts))]
        output = pipeline(prompts, guidance_scale=guidance_scale, num_inference_steps=steps, generator=generators)
        images += output.images
    return images


@torch.no_grad()
def held_out_loss(pipeline, style, count=16, draws=4, seed=999):
    """The denoising loss on `count` fresh pictures in a style, each at `draws` timesteps spread over 20 to 980."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    pixels = torch.from_numpy(to_array(draw(scene, style) for scene in scenes))
    clean = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    texts = [caption(scene, style) for scene in scenes]
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = pipeline.text_encoder(tokens)[0]

    scheduler, losses = pipeline.scheduler, []
    for timesteps in torch.linspace(20, 980, draws * count).long().view(draws, count):
        noise = torch.randn(clean.shape, generator=generator)
        prediction = pipeline.unet(scheduler.add_noise(clean, noise, timesteps), timesteps, states).sample
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, timesteps) if is_velocity else noise
        losses.append(F.mse_loss(prediction, target).item())
    return sum(losses) / draws


def save_sheet(images, path, rows=8, border=2):
    """A PNG of the first `rows` x 12 images, a subject in each column."""
    cell = images[0].width + 2 * border
    rows = min(rows, len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * cell), (128, 128, 128))
    for i, image in enumerate(images[: rows * COLUMNS]):
        sheet.paste(image, (i % COLUMNS * cell + border, i // COLUMNS * cell + border))
    sheet.save(path)


# --- The figures


def share(right):
    right = list(right)
    return sum(right) / len(right)


def matches(scenes, judged, *heads):
    """For each scene, whether the classifier saw it so in all these heads."""
    return [all(judged[head][i] == getattr(scene, head) for head in heads) for i, scene in enumerate(scenes)]


def prompt_accuracy(scenes, judged):
    """{what: share of the samples where the classifier saw what the prompt said}."""
    return {
        "subject": share(matches(scenes, judged, "subject")),
        "color": share(matches(scenes, judged, "color")),
        "background": share(matches(scenes, judged, "background")),
        "both colors": share(matches(scenes, judged, "color", "background")),
        "all three": share(matches(scenes, judged, "subject", "color", "background")),
    }


def measure_model(args):
    """How well the model follows its prompts, as a nested dict of shares."""
    classifier, scenes = load_classifier(), prompt_scenes(args.samples)
    images = sample(load_pipeline(args.model), scenes)
    if args.sheet:
        save_sheet(images, args.sheet)
    judged = judge(classifier, images)
    held_out = [i for i, scene in enumerate(scenes) if is_held_out(scene)]
    judged_held_out = {head: [names[i] for i in held_out] for head, names in judged.items()}
    subject_right = matches(scenes, judged, "subject")
    return {
        "samples": {"all": len(scenes), "held-out combinations": len(held_out)},
        "all samples": prompt_accuracy(scenes, judged),
        "held-out combinations": prompt_accuracy([scenes[i] for i in held_out], judged_held_out),
        "subject by subject": {name: share(subject_right[i::COLUMNS]) for i, name in enumerate(SUBJECTS)},
        "classifier on drawn pictures": classifier_accuracy(classifier),
    }


def measure_hypernetwork(args):
    """What a hypernetwork changes in the losses and in the samples, as a nested dict of numbers and shares."""
    import hypernet

    classifier, scenes = load_classifier(), prompt_scenes(args.samples)
    pipeline, network = load_pipeline(args.model), hypernet.load(args.path)

    def measure():
        images = sample(pipeline, scenes)
        judged = judge(classifier, images)
        figures = {
            f"loss on {args.style}": held_out_loss(pipeline, args.style),
            "loss on flat": held_out_loss(pipeline, "flat"),
            f"samples in {args.style}": share(style == args.style for style in judged["style"]),
            "subject right": share(matches(scenes, judged, "subject")),
        }
        return figures, images

    before, images_before = measure()
    hypernet.attach(pipeline.unet, network, strength=args.strength)
    after, images_after = measure()
    hypernet.detach(pipeline.unet)
    if args.sheet:
        rows = range(0, len(scenes), COLUMNS)
        pairs = [images[at : at + COLUMNS] for at in rows for images in (images_before, images_after)]
        save_sheet([image for row in pairs for image in row], args.sheet)
    falls = {name: 1 - after[name] / before[name] for name in before if name.startswith("loss")}
    return {"samples": {"all": len(scenes)}, "without": before, "with": after, "fall": falls}


def report(figures):
    """The figures as text: one line for each group; counts and losses as numbers, shares in percent."""

    def text(name, value):
        number = str(value) if isinstance(value, int) else f"{value:.4f}" if "loss" in name else f"{value:.1%}"
        return f"{name} {number}"

    return "\n".join(
        f"{group}: " + ", ".join(text(name if group != "fall" else name[5:], value) for name, value in values.items())
        for group, values in figures.items()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model", help="how well the model follows its prompts")
    model.set_defaults(measure=measure_model, samples=240)
    hypernetwork = commands.add_parser("hypernetwork", help="what a hypernetwork changes")
    hypernetwork.set_defaults(measure=measure_hypernetwork, samples=120)
    hypernetwork.add_argument("path", type=Path, help="the hypernetwork's file")
    hypernetwork.add_argument("--strength", type=float, default=1.0)
    hypernetwork.add_argument("--style", choices=STYLES, default="neon")
    for command in (model, hypernetwork):
        command.add_argument("--model", type=Path, default=HERE / "model", help="a diffusers folder")
        command.add_argument("--samples", type=int, help="a multiple of 12: every subject equally often")
        command.add_argument("--sheet", type=Path, help="write samples to this PNG, one subject in each column")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args()
    if args.samples < 1 or args.samples % COLUMNS:
        parser.error(f"--samples {args.samples}: it must be a multiple of {COLUMNS}, one for each subject")
    figures = args.measure(args)
    print(json.dumps(figures, indent=2) if args.json else report(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))  # the repository, for hypernet
    main()
