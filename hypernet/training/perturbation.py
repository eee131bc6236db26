"""Measure how strongly a hypernetwork changes the contexts: one number per width, which grows before a run diverges."""

import torch
from diffusers import UNet2DConditionModel

from hypernet.data.batch_sampler import Batch
from hypernet.data.dataset import TrainingDataset
from hypernet.modeling.attachment import attention_layers, switched_off
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.conditioning import cast_conditions
from hypernet.stable_diffusion.model import StableDiffusion

CONTEXTS_PER_LAYER = 16  # spread evenly over the tokens


class Perturbation:
    """Contexts recorded from one forward pass of the UNet without the hypernetwork, to measure changes on.

    Args:
        unet: with a hypernetwork attached.
        latents: of one image, noisy, (1, channels, height, width).
        timesteps: (1,).
        conditions: the UNet's further arguments.
    """

    @torch.no_grad()
    def __init__(
        self, unet: UNet2DConditionModel, latents: torch.Tensor, timesteps: torch.Tensor, conditions: dict
    ) -> None:
        recorded: dict[int, list[torch.Tensor]] = {}

        def record(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            contexts = args[0].flatten(0, -2)  # (B * tokens, width)
            spread = torch.linspace(0, len(contexts) - 1, min(CONTEXTS_PER_LAYER, len(contexts))).long()
            recorded.setdefault(contexts.shape[-1], []).append(contexts[spread.to(contexts.device)].float())

        hooks = [layer.to_k.register_forward_pre_hook(record) for layer in attention_layers(unet).values()]
        try:
            with switched_off(unet):
                unet(latents, timesteps, **conditions)
        finally:
            for hook in hooks:
                hook.remove()
        contexts = {width: torch.cat(parts)[None] for width, parts in sorted(recorded.items())}
        # SDXL embeds an empty prompt as zeros, relative to which nothing can be measured
        self.contexts = {width: context for width, context in contexts.items() if context.any()}  # (1, n, width) each
        self._start: dict[int, torch.Tensor] | None = None

    def measure(self, hypernetwork: Hypernetwork) -> dict[str, float]:
        """Return "effect/WIDTH" -> the norm of what is added to the contexts, of K and V, relative to their own norm."""
        ratios = {f"effect/{width}": self._ratio(width, added) for width, added in self._added(hypernetwork).items()}
        return dict(zip(ratios, torch.stack(list(ratios.values())).tolist())) if ratios else {}

    def start(self, hypernetwork: Hypernetwork) -> None:
        """Remember what the untrained hypernetwork adds."""
        self._start = self._added(hypernetwork)

    def change(self, hypernetwork: Hypernetwork) -> float | None:
        """Return how much training has changed what is added: the norm of the difference, relative to the norm of the
        contexts, for the width where it is largest. None if the start is not known.
        """
        if not self._start:
            return None
        added = self._added(hypernetwork)
        return max(self._ratio(width, added[width] - before).item() for width, before in self._start.items())

    @torch.no_grad()
    def _added(self, hypernetwork: Hypernetwork) -> dict[int, torch.Tensor]:
        """Return what is added to the contexts of each width, to those of K and of V, (2, 1, n, width) each."""
        training = hypernetwork.training
        hypernetwork.eval()
        added = {
            width: torch.stack([transformed - contexts for transformed in hypernetwork(contexts)])
            for width, contexts in self.contexts.items()
            if hypernetwork.parameters_of_width(width)
        }
        hypernetwork.train(training)
        return added

    def _ratio(self, width: int, added: torch.Tensor) -> torch.Tensor:
        return added.norm() / (2**0.5 * self.contexts[width].norm())


def perturbation_of_first_image(
    models: StableDiffusion, dataset: TrainingDataset, dtype: torch.dtype, device: torch.device
) -> Perturbation:
    """Return the `Perturbation` for the first image, in the first epoch that does not drop its prompt.

    It is the same on every process and after every resume.
    """
    epochs = (epoch for epoch in range(100) if dataset.prompts.sample(epoch, 0))
    batch = dataset.__getitems__(Batch(next(epochs, 0), 0, [0], [1.0]))
    timesteps = batch["timesteps"].to(device)
    noisy = models.scheduler.add_noise(batch["latents"].to(device), batch["noise"].to(device), timesteps)
    conditions = cast_conditions(dataset.conditions(batch), device, dtype)
    return Perturbation(models.unet, noisy.to(dtype), timesteps, conditions)
