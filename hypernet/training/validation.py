"""Images that are never trained on: which they are, and the loss on them, with noise and timesteps that never change.

So two measurements of a run differ by the weights alone, and those of two runs by the runs alone: neither the images chosen, nor
noise or timesteps, follow from a run's seed.
"""

import copy

import torch
from accelerate import Accelerator

from hypernet.modeling.attachment import set_strength
from hypernet.stable_diffusion.conditioning import cast, first
from hypernet.data.dataset import TrainingImages, encode_dataset
from hypernet.utils.errors import UserError
from hypernet.data.image_index import Picture, find_pictures
from hypernet.training.loss import diffusion_loss, diffusion_target
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.data.validation_split import find_origins
from hypernet.utils.seeds import derive_seed
from hypernet.data.image_source import Source, open_folder

TIMESTEPS = 8  # for each image, in the middles of as many equal parts of the schedule
BANDS = 4  # of timesteps, whose losses are told apart


def open_held_out(config) -> Source | None:
    """The folder of held-out images, if one is named. Raises: UserError if it cannot be used."""
    return open_folder(config, "validation_data_dir") if config.validation_data_dir else None


def hold_out(source: Source, folder: Source | None, pictures: list[Picture], config, multiple: int, before=()):
    """(source, pictures) to measure on, of the folder or a share of the pictures; and the pictures left to train on.

    A share is chosen by the images' bytes, so that copies stay together; so do the parts and mirrored copies that
    examples/prepare.py has made of one picture. Those that a run has held out `before` (their sha256) stay so, and what
    has been added since is trained on, but for what is made of a picture that is held out: that is left out.

    Raises:
        UserError: if nothing is left on either side.
    """
    if folder is not None:
        return _from_folder(folder, pictures, config, multiple)
    families = _families(source, pictures)
    chosen = {picture.sha256 for picture in pictures} & set(before) or _choose(families, config)
    related = chosen.union(*(family for family in families if family & chosen))
    held = [picture for picture in pictures if picture.sha256 in chosen]
    kept = [picture for picture in pictures if picture.sha256 not in related]
    if left_out := len(pictures) - len(held) - len(kept):
        source.notes.append(f"left out: {left_out} that are made of the same pictures as those that are held out")
    if not kept:
        problem = "all other images are made of the pictures that are held out"
        raise UserError(f"--validation_split {config.validation_split}: {problem}; add images")
    return source, held, kept


def _choose(families: list[set[str]], config) -> set[str]:
    """The sha256 of the share: as many whole families as go into it, and of too large ones the smallest."""
    families = sorted(families, key=lambda family: derive_seed("held out", min(family)))
    total, chosen = sum(map(len, families)), set()
    count = max(1, round(config.validation_split * total))
    for family in families:
        if len(chosen | family) <= count:
            chosen |= family
    chosen = chosen or min(families, key=len)
    if len(chosen) == total:
        problem = f"of {total} different images nothing would be left to train on"
        hint = (
            "they are all made of one picture; add others" if len(families) == 1 < total else "lower it, or add images"
        )
        raise UserError(f"--validation_split {config.validation_split}: {problem}; {hint}")
    return chosen


def _families(source, pictures) -> list[set[str]]:
    """The sha256 of all images, together with those that are made of the same picture."""
    paths = dict(enumerate(image["path"] for image in source.images["image"][:])) if source.is_folder else {}
    origins = find_origins(list(paths.values()))
    families = {}  # of each sha256 and each origin all that belong together, of both kinds
    for picture in pictures:
        keys = {picture.sha256, origins.get(paths.get(picture.row))} - {None}
        together = keys.union(*(families.get(key, ()) for key in keys))
        families |= dict.fromkeys(together, together)
    distinct = {id(family): family for family in families.values()}.values()
    return [{key for key in family if isinstance(key, str)} for family in distinct]


def _from_folder(source, pictures, config, multiple):
    found, problems = find_pictures(source, config, multiple)
    trained_on = {picture.sha256 for picture in pictures}
    held = [picture for picture in found if picture.sha256 not in trained_on]
    if not held:
        raise UserError(f"{source.option}: every image in it is trained on, too; hold out others")
    source.notes += problems
    if len(held) < len(found):
        source.notes.append(f"{len(found) - len(held)} images of {source.option} are trained on, and so not held out")
    return source, held, pictures


def describe_held_out(source: Source, pictures) -> str:
    """What a run says at its start about the images that it holds out."""
    notes = [f"note: {note}" for note in source.notes] if source.option.startswith("--validation") else []
    names = ", ".join(source.label(picture.row) for picture in pictures[:6])
    more = ", ..." if len(pictures) > 6 else ""
    return "\n".join([*notes, f"images held out, never trained on: {len(pictures)} ({names}{more})"])


def encode_held_out(models: StableDiffusion, source: Source, pictures, config, vae_dtype) -> TrainingImages:
    """The images as they are: one crop, not mirrored, the VAE's mean, the whole caption."""
    plain = copy.copy(config)
    plain.crop = "center" if config.crop == "random" else config.crop
    plain.random_flip, plain.latent_sampling = False, "deterministic"
    plain.shuffle_tags, plain.tag_dropout, plain.caption_dropout, plain.caption_variants = False, 0.0, 0.0, None
    plain.seed = 0  # of the draw among several templates or captions
    return encode_dataset(models, source, pictures, plain, vae_dtype)


class HeldOutLoss:
    """The mean loss over the images and timesteps; each process measures its share."""

    def __init__(self, dataset: TrainingImages, models: StableDiffusion, accelerator: Accelerator, batch_size: int):
        self.dataset, self.models, self.accelerator = dataset, models, accelerator
        self.batch_size = max(2, batch_size)  # without gradients two fit where one trains
        total = models.scheduler.config.num_train_timesteps
        self.timesteps = torch.tensor([int((i + 0.5) * total / TIMESTEPS) for i in range(TIMESTEPS)])
        edges = [round(band * total / BANDS) for band in range(BANDS + 1)]
        self.bands = [f"val_loss/{low}-{high - 1}" for low, high in zip(edges, edges[1:])]
        prompts = [dataset.prompts.draw(0, index) for index in range(len(dataset))]
        self.fingerprint = f"{derive_seed(*dataset.latents.ids, *dataset.latents.grids, *prompts):x}"

    @torch.no_grad()
    def measure(self, model) -> dict[str, float]:
        """ "val_loss", and the same of each band of timesteps, of the `HypernetworkUNet` as it is."""
        sums = torch.zeros(TIMESTEPS, device=self.accelerator.device)
        model.hypernetwork.eval()
        with self.accelerator.autocast():
            for index in range(self.accelerator.process_index, len(self.dataset), self.accelerator.num_processes):
                sums += self._losses(model.unet, index)
        model.hypernetwork.train()
        losses = self.accelerator.reduce(sums, "sum") / len(self.dataset)
        values = [losses.mean(), *losses.view(BANDS, -1).mean(1)]
        return dict(zip(["val_loss", *self.bands], torch.stack(values).tolist()))

    def measure_base(self, model) -> float:
        """The loss of the model without the hypernetwork."""
        set_strength(model.unet, 0.0)
        try:
            return self.measure(model)["val_loss"]
        finally:
            set_strength(model.unet, 1.0)

    def _losses(self, unet, index):
        """The losses of an image at all timesteps, (TIMESTEPS,)."""
        device, dataset, scheduler = self.accelerator.device, self.dataset, self.models.scheduler
        image = dataset.latents.ids[index]
        generators = [torch.Generator().manual_seed(derive_seed("held out", image, i)) for i in range(TIMESTEPS)]
        latents = dataset.latents.draw(index, 0, 0, generators[0])  # (channels, height, width)
        noise = torch.stack([torch.randn(latents.shape, generator=generator) for generator in generators])
        given = cast(dataset.plain_conditions(index, TIMESTEPS), device, unet.dtype)
        weights, losses = dataset.weights(index)[None].to(device), []
        for part, timesteps in zip(noise.split(self.batch_size), self.timesteps.split(self.batch_size)):
            part, timesteps = part.to(device), timesteps.to(device)
            clean = latents.to(device).expand_as(part)
            noisy = scheduler.add_noise(clean, part, timesteps).to(unet.dtype)
            predictions = unet(noisy, timesteps, **first(given, len(part))).sample
            targets = diffusion_target(scheduler, clean, part, timesteps)
            losses += [diffusion_loss(p[None], t[None], weights) for p, t in zip(predictions, targets)]
        return torch.stack(losses)
