"""Train the quickstart's Stable Diffusion from scratch: tokenizer, VAE, then UNet and text encoder together.

    python examples/quickstart/tools/build_model.py                       # about an hour on 2 CPU cores, minutes on a GPU
    python examples/quickstart/tools/build_model.py --steps 3000 --output_dir /tmp/model     # a rougher one, sooner

Interrupted, the same command goes on where it was. The result is an ordinary fp16 pipeline folder for
`StableDiffusionPipeline.from_pretrained`: 128 x 128 pixels, 5.4 M parameters, v-prediction.
"""

import argparse
import math
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.artists.architecture import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from examples.quickstart.tools.draw import BASE_STYLES, STYLES, caption, draw, is_held_out, random_scene, to_array

WORDS = """a an the of on in at with and background picture image photo drawing painting style art illustration simple
flat circle square triangle star heart house tree fish cat sun flower boat red orange yellow green blue purple pink white
black small big little large tiny huge cartoon watercolor neon sign blueprint sunset night paper gray brown dog car moon
bird face sky sea water grass bright dark light color colour gold silver line outline""".split()
MODEL_STYLES = ["flat"] * 14 + ["cartoon"] * 3 + ["watercolor"] * 3  # what the UNet sees, by share
assert set(MODEL_STYLES) == set(BASE_STYLES)


def train(name, parameters, loss_at, steps, learning_rate, ema_decay, state_path, save_every=250):
    """AdamW with warm-up and cosine decay; leaves the averaged (EMA) weights in `parameters`.

    `loss_at(step)` must draw its randomness from `step` alone, so a resumed run equals an uninterrupted one.
    """
    parameters = list(parameters)
    ema = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        start, ema = state["step"], [e.to(p.device) for e, p in zip(state["ema"], parameters)]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            torch._foreach_copy_(parameters, state["parameters"])
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5)
    average = None
    for step in bar:
        rate = learning_rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - min(ema_decay, (1 + step) / (10 + step)))
        if step % 10 == 0:
            average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"step": step + 1, "ema": ema, "optimizer": optimizer.state_dict(), "parameters": parameters}
            torch.save(state, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
    with torch.no_grad():
        torch._foreach_copy_(parameters, ema)


def train_vae(vae, steps, state_path, device):
    """Reconstruct 64-pixel crops around the subject, in every style: a real VAE has seen everything, too."""
    crop = 64

    def crops(step, count=16):
        rng = random.Random(f"vae {step}")
        for _ in range(count):
            scene = random_scene(rng)
            image = draw(scene, "flat" if rng.random() < 0.35 else rng.choice(STYLES))
            left = min(max(int(128 * scene.x + rng.uniform(-40, 40)) - crop // 2, 0), 128 - crop)
            top = min(max(int(128 * scene.y + rng.uniform(-40, 40)) - crop // 2, 0), 128 - crop)
            yield image.crop((left, top, left + crop, top + crop))

    def loss_at(step):
        torch.manual_seed(step)
        pixels = torch.from_numpy(to_array(crops(step))).to(device)
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample()).sample - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        edge_weight = 0.5 * min(1, max(0, step - 150) / 300)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.abs().mean() + error.square().mean() + edge_weight * edges + 2e-4 * kl

    train("VAE", vae.parameters(), loss_at, steps, 1.2e-3, 0.995, state_path)


@torch.no_grad()
def encode(vae, scenes, device):
    """Unscaled latents (N, 4, 16, 16) of (scene, style) pairs."""
    latents = []
    for at in tqdm(range(0, len(scenes), 50), desc="Encoding images", mininterval=5):
        pixels = torch.from_numpy(to_array(draw(*pair) for pair in scenes[at : at + 50])).to(device)
        latents.append(vae.encode(pixels).latent_dist.mode())
    return torch.cat(latents)


def training_scenes(count, seed=10):
    rng = random.Random(seed)
    scenes = []
    while len(scenes) < count:
        scene, style = random_scene(rng), rng.choice(MODEL_STYLES)
        if not is_held_out(scene):
            scenes.append((scene, style))
    return scenes


def training_caption(rng, scene, style):
    """The caption, sometimes empty (for guidance), shortened, or with words around it that mean nothing."""
    text, chance = caption(scene, style), rng.random()
    nonsense = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    if chance < 0.10:
        return ""
    if chance < 0.16:
        return text.split(" on ")[0]
    if chance < 0.20:
        return rng.choice(["a picture of ", "a drawing of ", "an image of ", "a simple illustration of "]) + text
    if chance < 0.24:
        return rng.choice([f"{nonsense} {text}", f"{text}, {nonsense}"])
    return text


def train_denoiser(unet, text_encoder, tokenizer, scheduler, latents, scenes, steps, state_path, batch_size=32):
    unet.train()
    text_encoder.train()
    device = latents.device

    def loss_at(step):
        rng = random.Random(f"denoiser {step}")
        generator = torch.Generator().manual_seed(step)
        chosen = rng.sample(range(len(scenes)), batch_size)
        texts = [training_caption(rng, *scenes[i]) for i in chosen]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=generator).to(device)
        share = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size  # stratified
        timesteps = (share * scheduler.config.num_train_timesteps).long().to(device)
        clean = latents[chosen]
        prediction = unet(
            scheduler.add_noise(clean, noise, timesteps), timesteps, text_encoder(tokens).last_hidden_state
        )
        return F.mse_loss(prediction.sample, scheduler.get_velocity(clean, noise, timesteps))

    parameters = [*unet.parameters(), *text_encoder.parameters()]
    train("UNet and text encoder", parameters, loss_at, steps, 1e-3, 0.999, state_path)


def main():
    quickstart = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=quickstart / "model")
    parser.add_argument(
        "--work_dir", type=Path, default=quickstart / "build", help="training states, to go on after a stop"
    )
    parser.add_argument("--vae_steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=8000, help="of the UNet and text encoder")
    parser.add_argument("--images", type=int, default=16000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    tokenizer, scheduler = build_tokenizer(WORDS), build_scheduler()
    vae = build_vae((16, 32, 64, 64), norm_num_groups=2).to(args.device)
    unet = build_unet((48, 96, 128), heads=(2, 3, 4), width=80).to(args.device)
    text_encoder = build_text_encoder(tokenizer, width=80).to(args.device)

    train_vae(vae, args.vae_steps, args.work_dir / "vae.pt", args.device)
    vae.eval().requires_grad_(False)
    scenes = training_scenes(args.images)
    latents = encode(vae, scenes, args.device)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    latents = latents * vae.config.scaling_factor

    state_path = args.work_dir / "denoiser.pt"
    train_denoiser(unet, text_encoder, tokenizer, scheduler, latents, scenes, args.steps, state_path)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(args.output_dir)
    print(f"The model is in {args.output_dir}")


if __name__ == "__main__":
    main()
