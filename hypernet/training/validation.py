"""The validation loss: the loss on images never trained on, with fixed noise and timesteps.

The images, noise and timesteps do not depend on the run's seed, so measurements differ only by the weights, within a
run and between runs.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from hypernet.data.dataset import TrainingDataset
from hypernet.modeling.attachment import HypernetworkUNet, switched_off
from hypernet.stable_diffusion.conditioning import cast_conditions, take_first
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.training.loss import diffusion_loss, prediction_target
from hypernet.training.shutdown import Interrupted
from hypernet.utils.hashing import derive_seed

TIMESTEPS = 8  # per image, at the midpoints of equal parts of the noise schedule
BANDS = 4  # of timesteps, each with a loss of its own


class ValidationLoss:
    """The mean loss over the validation images and timesteps. Each process measures its share of the images.

    Attributes:
        fingerprint: changes with the images and their prompts.
    """

    def __init__(self, dataset: TrainingDataset, models: StableDiffusion, accelerator: Accelerator, batch_size: int):
        self.dataset, self.models, self.accelerator = dataset, models, accelerator
        self.batch_size = max(2, batch_size)  # without gradients, two fit into the memory of one in training
        total = models.scheduler.config.num_train_timesteps
        self.timesteps = torch.tensor([int((i + 0.5) * total / TIMESTEPS) for i in range(TIMESTEPS)])
        edges = [round(band * total / BANDS) for band in range(BANDS + 1)]
        self.bands = [f"val_loss/{low}-{high - 1}" for low, high in zip(edges, edges[1:])]
        prompts = [dataset.prompts.sample(0, index) for index in range(len(dataset))]
        self.fingerprint = f"{derive_seed(*dataset.latents.ids, *dataset.latents.grids, *prompts):x}"

    @torch.no_grad()
    def measure(self, model: HypernetworkUNet, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return "val_loss", and "val_loss/LOW-HIGH" for each band of timesteps.

        Args:
            check: called between forward passes; may raise `Interrupted`.

        Raises:
            Interrupted: on all processes, if `check` has raised it on one.
        """
        sums, interrupted = torch.zeros(TIMESTEPS, device=self.accelerator.device), False
        model.hypernetwork.eval()
        try:
            with self.accelerator.autocast():
                for index in range(self.accelerator.process_index, len(self.dataset), self.accelerator.num_processes):
                    sums += self._losses(model.unet, index, check)
        except Interrupted:
            interrupted = True
        model.hypernetwork.train()
        total = self.accelerator.reduce(torch.cat([sums, sums.new_tensor([interrupted])]), "sum")
        if total[-1]:
            raise Interrupted
        losses = total[:-1] / len(self.dataset)
        values = [losses.mean(), *losses.view(BANDS, -1).mean(1)]
        return dict(zip(["val_loss", *self.bands], torch.stack(values).tolist()))

    def measure_base(self, model: HypernetworkUNet) -> float:
        """Return the loss without the hypernetwork."""
        with switched_off(model.unet):
            return self.measure(model)["val_loss"]

    def _losses(self, unet: UNet2DConditionModel, index: int, check: Callable[[], None]) -> torch.Tensor:
        """Return the losses of an image at all timesteps, (TIMESTEPS,)."""
        device, dataset, scheduler = self.accelerator.device, self.dataset, self.models.scheduler
        image = dataset.latents.ids[index]
        generators = [torch.Generator().manual_seed(derive_seed("held out", image, i)) for i in range(TIMESTEPS)]
        latents = dataset.latents.sample(index, 0, 0, generators[0])  # (channels, height, width)
        noise = torch.stack([torch.randn(latents.shape, generator=generator) for generator in generators])
        conditions = cast_conditions(dataset.plain_conditions(index, TIMESTEPS), device, unet.dtype)
        weights = dataset.weights(index)[None].to(device)  # (1, 1, H or 1, W or 1)
        losses = []
        for chunk, timesteps in zip(noise.split(self.batch_size), self.timesteps.split(self.batch_size)):
            check()
            chunk, timesteps = chunk.to(device), timesteps.to(device)
            clean = latents.to(device).expand_as(chunk)
            noisy = scheduler.add_noise(clean, chunk, timesteps).to(unet.dtype)
            predictions = unet(noisy, timesteps, **take_first(conditions, len(chunk))).sample
            targets = prediction_target(scheduler, clean, chunk, timesteps)
            losses += [diffusion_loss(p[None], t[None], weights) for p, t in zip(predictions, targets)]
        return torch.stack(losses)
