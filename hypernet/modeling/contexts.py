"""What a hypernetwork's modules really get while pictures are drawn."""

import torch

from hypernet.modeling.attachment import attach, detach
from hypernet.modeling.hypernetwork import Hypernetwork

PER_CALL = 256  # contexts kept of a call of the hypernetwork
MOST = 32768  # of one width


@torch.no_grad()
def gather_contexts(pipe, hypernetwork: Hypernetwork, prompts: list[str], strength=1.0, seed=0, **options):
    """Draw the prompts with the hypernetwork on, and keep some of the contexts that it is given.

    Args:
        pipe: a diffusers pipeline; `options` (steps, size, guidance) go to its call.
        strength: at which pictures are drawn, because it shapes what deeper layers get.

    Returns:
        Width -> contexts (N, width), float32 on the CPU, of all layers, steps and prompts.
    """
    generator, kept, calls = torch.Generator().manual_seed(seed), {}, {}

    def some(contexts, count):
        return contexts[torch.randperm(len(contexts), generator=generator)[:count].to(contexts.device)]

    def keep(module, args):
        context = args[0].flatten(0, -2)  # (B * tokens, width)
        if str(context.shape[-1]) in hypernetwork.pairs:
            calls.setdefault(context.shape[-1], []).append(some(context, PER_CALL).float().cpu())

    hook = hypernetwork.register_forward_pre_hook(keep)
    attach(pipe.unet, hypernetwork, strength)
    pipe.unet._hypernetworks.folding = False  # or contexts go by it
    try:
        for i, prompt in enumerate(prompts):
            pipe(prompt, generator=torch.Generator().manual_seed(seed + i), output_type="latent", **options)
            for width, contexts in calls.items():
                kept.setdefault(width, []).append(some(torch.cat(contexts), MOST // len(prompts)))
            calls.clear()
    finally:
        detach(pipe.unet)
        hook.remove()
    return {width: torch.cat(contexts) for width, contexts in kept.items()}


def normal_contexts(hypernetwork: Hypernetwork, count=4096, seed=0) -> dict[int, torch.Tensor]:
    """Unit normal contexts in their place, for what attention layers get is normalised before."""
    generator = torch.Generator().manual_seed(seed)
    return {int(width): torch.randn(count, int(width), generator=generator) for width in hypernetwork.pairs}
