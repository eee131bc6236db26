"""Train a small Stable Diffusion from scratch on five artists' emoji: tokenizer, VAE, then UNet and text encoder.

    pip install resvg-py                                             # and npm, which fetches the emoji
    python examples/quickstart/tools/build_model.py                # hours on 2 CPU cores, minutes on a GPU
    python examples/quickstart/tools/build_model.py --steps 3000   # a rougher one, sooner

Interrupted, the same command resumes. More --steps than before continue from where the learning rate began to fall. The
result is an ordinary fp16 pipeline folder for `StableDiffusionPipeline.from_pretrained`: 128 x 128 pixels, v-prediction.
"""

import argparse
import hashlib
import os
import random
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.tools.architecture import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from examples.quickstart.tools.scenes import BACKGROUNDS, Scene, caption, draw, random_scene, to_array
from examples.quickstart.tools.sets import HANDS, MODEL_HANDS, SETS, SUBJECTS
from hypernet.cli.script import run_script

WORDS = """a an the of on in at with and background picture image photo drawing painting style art illustration simple
color small big little large black gray brown gold silver line outline outlined sketch cartoon ink paper night
day sky sea water grass person man woman city forest flower animal food""".split()
WIDTH = 256  # of the text encoder, and of what the UNet attends to; unlike its own widths, as in SD 1.x
DECAY_SHARE = 0.3  # of the steps: where the learning rate falls to zero; it is constant before


def caption_words() -> list[str]:
    """Return the words that the tokenizer learns: those of the captions, and some that people add."""
    subjects = (word for subject in SUBJECTS for word in subject.split())
    return [*WORDS, *BACKGROUNDS, *subjects, *(SETS[hand].words for hand in MODEL_HANDS)]


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight (outputs, inputs) or (outputs, inputs, height, width) as a matrix with a row per output."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def build_optimizers(
    parameters: list[torch.nn.Parameter], learning_rate: float, muon: Collection[torch.nn.Parameter] = ()
) -> tuple[list[torch.optim.Optimizer], list[tuple[torch.nn.Parameter, torch.nn.Parameter]]]:
    """Return the optimizers, and (parameter, the matrix in the same memory that Muon steps on) of what Muon trains.

    Muon orthogonalizes the update of each matrix (Jordan et al. 2024) and needs less than half of AdamW's steps here;
    all but `muon` stays with AdamW. Kernels have to be in channels-last order.
    """
    matrices = [(p, torch.nn.Parameter(as_matrix(p.data))) for p in muon]
    assert all(p.data_ptr() == matrix.data_ptr() for p, matrix in matrices)
    ids = {id(p) for p in muon}
    rest = [p for p in parameters if id(p) not in ids]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if matrices:
        views = [matrix for _, matrix in matrices]
        optimizers.append(torch.optim.Muon(views, learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers, matrices


def train(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    ema_decay: float,
    state_path: Path,
    save_every: int = 250,
    muon: Collection[torch.nn.Parameter] = (),
) -> None:
    """Train with AdamW or Muon (warm-up, constant, linear decay) and leave the EMA weights in `parameters`.

    `loss_at(step)` must draw its randomness from `step` alone, so that a resumed run equals an uninterrupted one. The
    state before the decay is kept beside `state_path`, and a run that is given more steps later starts from it.
    """
    parameters = list(parameters)
    ema = [p.detach().clone() for p in parameters]
    optimizers, matrices = build_optimizers(parameters, learning_rate, muon)
    before_decay = state_path.with_suffix(".before_decay.pt")
    decay_start, start = round(steps * (1 - DECAY_SHARE)), 0
    paths = [path for path in (state_path, before_decay) if path.exists()]
    for state in (torch.load(path, weights_only=True) for path in paths):
        if state["steps"] == steps or state["step"] <= round(state["steps"] * (1 - DECAY_SHARE)):
            start, ema = state["step"], [e.to(p.device) for e, p in zip(state["ema"], parameters)]
            for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer_state)
            with torch.no_grad():
                torch._foreach_copy_(parameters, state["parameters"])
            break
    average = None
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5)
    for step in bar:
        rate = learning_rate * min(1, (step + 1) / 200, (steps - step) / (steps - decay_start))
        loss = loss_at(step)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for parameter, matrix in matrices:
            matrix.grad = as_matrix(parameter.grad)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - min(ema_decay, (1 + step) / (10 + step)))
        if step % 10 == 0:
            average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        if (step + 1) % save_every == 0 or step + 1 in (steps, decay_start):
            state = {"step": step + 1, "steps": steps, "ema": ema, "parameters": parameters}
            state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            for path in (state_path, before_decay) if step + 1 == decay_start else (state_path,):
                torch.save(state, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
    with torch.no_grad():
        torch._foreach_copy_(parameters, ema)


def train_vae(vae: AutoencoderKL, steps: int, state_path: Path, device: str) -> None:
    """Learn to reconstruct 64-pixel crops around the subject, in every hand: a real VAE has seen everything, too."""
    vae.to(memory_format=torch.channels_last)
    crop = 64

    def crops(step: int, count: int = 16) -> Iterator[Image.Image]:
        rng = random.Random(f"vae {step}")
        for _ in range(count):
            scene = random_scene(rng, HANDS)
            image, reach = draw(scene), 64 * scene.side
            left = min(max(int(128 * scene.x + rng.uniform(-reach, reach)) - crop // 2, 0), 128 - crop)
            top = min(max(int(128 * scene.y + rng.uniform(-reach, reach)) - crop // 2, 0), 128 - crop)
            yield image.crop((left, top, left + crop, top + crop))

    def loss_at(step: int) -> torch.Tensor:
        torch.manual_seed(step)
        pixels = torch.from_numpy(to_array(crops(step))).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        edge_weight = 0.5 * min(1, max(0, step - 150) / 300)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return error.abs().mean() + error.square().mean() + edge_weight * edges + 2e-4 * kl

    train("VAE", vae.parameters(), loss_at, steps, 1.2e-3, 0.995, state_path, save_every=500)


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: list[Scene], device: str) -> torch.Tensor:
    """Return the unscaled latents (N, 4, 16, 16) of scenes."""
    latents = []
    for at in tqdm(range(0, len(scenes), 48), desc="Encoding images", mininterval=5):
        pixels = torch.from_numpy(to_array(draw(scene) for scene in scenes[at : at + 48]))
        with torch.autocast(device, torch.bfloat16):
            latents.append(vae.encode(pixels.to(device, memory_format=torch.channels_last)).latent_dist.mode())
    return torch.cat(latents).float()


def training_caption(rng: random.Random, scene: Scene) -> str:
    """Return the caption; sometimes empty (for guidance), shortened, or with words around it that mean nothing."""
    text, chance = caption(scene, rng.random() < 0.5), rng.random()
    nonsense = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    if chance < 0.10:
        return ""
    if chance < 0.14:
        return text.split(" on ")[0]
    if chance < 0.18:
        return rng.choice(["a picture of ", "a drawing of ", "an image of ", "an illustration of "]) + caption(scene)
    if chance < 0.22:
        return rng.choice([f"{nonsense} {text}", f"{text}, {nonsense}"])
    return text


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    latents: torch.Tensor,
    scenes: list[Scene],
    steps: int,
    state_path: Path,
    batch_size: int = 32,
) -> None:
    """Train the UNet and the text encoder together on scaled latents (N, 4, 16, 16)."""
    unet, text_encoder = pipeline.unet.train(), pipeline.text_encoder.train()
    unet.set_attn_processor(AttnProcessor())  # on a CPU, fused attention has a slow backward pass
    text_encoder.set_attn_implementation("eager")
    scheduler, device = pipeline.scheduler, latents.device

    def loss_at(step: int) -> torch.Tensor:
        rng = random.Random(f"denoiser {step}")
        generator = torch.Generator().manual_seed(step)
        chosen = rng.sample(range(len(scenes)), batch_size)
        texts = [training_caption(rng, scenes[i]) for i in chosen]
        tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=generator).to(device)
        share = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size  # stratified
        share = torch.sigmoid(0.8 * torch.special.ndtri(share) + 0.1)  # most where 16 x 16 latents take shape
        timesteps = (share * scheduler.config.num_train_timesteps).long().to(device)
        clean = latents[chosen]
        noisy = scheduler.add_noise(clean, noise, timesteps).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = unet(noisy, timesteps, text_encoder(tokens.to(device)).last_hidden_state).sample
        return F.mse_loss(prediction.float(), scheduler.get_velocity(clean, noise, timesteps))

    parameters = [*unet.parameters(), *text_encoder.parameters()]
    named = [*unet.named_parameters(), *text_encoder.named_parameters()]
    muon = [p for name, p in named if p.ndim > 1 and not re.search("conv_in|conv_out|embeddings", name)]
    train("UNet and text encoder", parameters, loss_at, steps, 2e-3, 0.999, state_path, muon=muon)


def main() -> None:
    quickstart = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=quickstart / "build" / "model")
    parser.add_argument("--work_dir", type=Path, default=quickstart / "build", help="states, to resume from")
    parser.add_argument("--vae_steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=15000, help="of the UNet and text encoder")
    parser.add_argument("--images", type=int, default=24000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    vae = build_vae((24, 48, 96, 96), norm_num_groups=4).to(args.device)
    train_vae(vae, args.vae_steps, args.work_dir / "vae.pt", args.device)
    vae.eval().requires_grad_(False)
    rng = random.Random(10)
    scenes = [random_scene(rng) for _ in range(args.images)]
    digest = hashlib.sha256(repr(scenes).encode()).hexdigest()[:8]
    latents_path = args.work_dir / f"latents.{digest}.pt"  # encoding takes minutes
    if not latents_path.exists():
        torch.save(encode(vae, scenes, args.device), latents_path)
    latents = torch.load(latents_path, map_location=args.device, weights_only=True)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))

    torch.manual_seed(1)
    tokenizer = build_tokenizer(caption_words())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=tokenizer,
        unet=build_unet((64, 128, 192), heads=(2, 4, 6), width=WIDTH).to(
            args.device, memory_format=torch.channels_last
        ),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.register_modules(text_encoder=build_text_encoder(tokenizer, WIDTH).to(args.device))
    latents = latents * vae.config.scaling_factor
    train_denoiser(pipeline, latents, scenes, args.steps, args.work_dir / "denoiser.pt")
    pipeline.unet.eval().to(memory_format=torch.contiguous_format)
    pipeline.text_encoder.eval()
    pipeline.vae.to(memory_format=torch.contiguous_format)
    pipeline.to(dtype=torch.float16).save_pretrained(args.output_dir)
    print(f"The model is in {args.output_dir}")


if __name__ == "__main__":
    run_script(main)
