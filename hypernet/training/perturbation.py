"""How far a hypernetwork moves what it is given: a number per width that grows before a run dies."""

import torch

from hypernet.data.batch_sampler import Batch
from hypernet.modeling.attachment import attention_layers, set_strength
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.conditioning import cast_conditions

PER_LAYER = 16  # contexts, evenly spread over the tokens


class Perturbation:
    """The contexts of one forward of the UNet without the hypernetwork, and what it changes in them.

    Args:
        unet: with a hypernetwork attached.
        latents, timesteps, given: of one image, as the UNet takes them.
    """

    @torch.no_grad()
    def __init__(self, unet, latents, timesteps, given: dict):
        found, hooks = {}, []

        def keep(module, args):
            contexts = args[0].flatten(0, -2)  # (B * tokens, width)
            spread = torch.linspace(0, len(contexts) - 1, min(PER_LAYER, len(contexts))).long()
            found.setdefault(contexts.shape[-1], []).append(contexts[spread.to(contexts.device)].float())

        for layer in attention_layers(unet).values():
            hooks.append(layer.to_k.register_forward_pre_hook(keep))
        set_strength(unet, 0.0)
        try:
            unet(latents, timesteps, **given)
        finally:
            set_strength(unet, 1.0)
            for hook in hooks:
                hook.remove()
        contexts = {width: torch.cat(parts)[None] for width, parts in sorted(found.items())}
        # (an SDXL's empty prompt is zeros, of which no part can be told)
        self.contexts = {width: context for width, context in contexts.items() if context.any()}

    @torch.no_grad()
    def measure(self, hypernetwork: Hypernetwork) -> dict[str, float]:
        """ "effect/WIDTH" -> the norm of what is added to K's and V's contexts, over the norm of the contexts."""
        sizes, training = {}, hypernetwork.training
        hypernetwork.eval()
        for width, contexts in self.contexts.items():
            if hypernetwork.parameters_of_width(width):
                added = [part - contexts for part in hypernetwork(contexts)]
                sizes[f"effect/{width}"] = torch.stack(added).norm() / (2**0.5 * contexts.norm())
        hypernetwork.train(training)
        return dict(zip(sizes, torch.stack(list(sizes.values())).tolist())) if sizes else {}


def perturbation_of_first_image(models, dataset, dtype: torch.dtype, device: torch.device) -> Perturbation:
    """The `Effect` on the first image's contexts, in the first epoch that has not dropped its prompt.

    They are the same whenever a run goes on, and on every process.
    """
    epochs = (epoch for epoch in range(100) if dataset.prompts.sample(epoch, 0))
    drawn = dataset.__getitems__(Batch(next(epochs, 0), 0, [0], [1.0]))
    timesteps = drawn["timesteps"].to(device)
    noisy = models.scheduler.add_noise(drawn["latents"].to(device), drawn["noise"].to(device), timesteps)
    given = cast_conditions(dataset.conditions(drawn), device, dtype)
    return Perturbation(models.unet, noisy.to(dtype), timesteps, given)
