"""The training script, run as users run it, against a plain loop in PyTorch."""

import hashlib
import json
import os
import random
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

import hypernet
import train_hypernetwork
from hypernet.cli.training_options import parse_config
from hypernet.data.processes import Processes
from hypernet.training import setup
from hypernet.training.accelerator import set_cpu_threads
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed
from tests.helpers.references import with_hooks
from tests.helpers.scripts import LAUNCH_TWO, REPO, command, read_csv, run, step_of, train, train_here, unexpected
from tests.helpers.tiny_models import TINY_WIDTHS

# Attention ignores a constant in its keys, so some gradients are rounding noise, which AdamW with its usual epsilon would
# amplify to whole steps. For the same reason the tests use mish, an activation without a kink.
ADAM_EPSILON = 1e-4


def plain_loop(model_dir, images_dir, steps, batch_size, seed, learning_rate_at):
    """Train in plain PyTorch and diffusers, without Accelerate and caches; return the hypernetwork and the losses."""
    pipe = StableDiffusionPipeline.from_pretrained(model_dir, dtype=torch.float32)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.float().eval().requires_grad_(False)
    images = sorted(images_dir.glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(image).convert("RGB"), np.float32) for image in images])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    texts = [pipe.encode_prompt(image.with_suffix(".txt").read_text(), "cpu", 1, False)[0][0] for image in images]

    torch.manual_seed(seed)
    hypernetwork = hypernet.Hypernetwork(TINY_WIDTHS, weight_init="kaiming_normal", activation="mish")
    with_hooks(pipe.unet, [(hypernetwork, 1.0)])
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), weight_decay=0.01, eps=ADAM_EPSILON)
    position, losses = 0, []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step)
        for _ in range(2):  # gradient accumulation
            epoch, batch = divmod(position, -(-len(images) // batch_size))
            order = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
            chosen = torch.randperm(len(images), generator=order)[batch * batch_size : (batch + 1) * batch_size]
            noise, timesteps = torch.empty(len(chosen), 4, 8, 8), torch.empty(len(chosen), dtype=torch.long)
            for row, index in enumerate(chosen.tolist()):
                generator = torch.Generator().manual_seed(
                    derive_seed(seed, "item", epoch, hashlib.sha256(images[index].read_bytes()).hexdigest())
                )
                noise[row] = torch.randn(4, 8, 8, generator=generator)
                timesteps[row] = torch.randint(1000, (), generator=generator)
            clean, text = latents[chosen], torch.stack([texts[index] for index in chosen])
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(clean, noise, timesteps)
            prediction = pipe.unet(scheduler.add_noise(clean, noise, timesteps), timesteps, text).sample
            loss = F.mse_loss(prediction, target)
            (loss / 2).backward()
            losses.append(loss.item())
            position += 1
        torch.nn.utils.clip_grad_norm_(hypernetwork.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return hypernetwork, losses


@pytest.mark.parametrize("model", ["epsilon", "v_prediction"])
def test_twenty_steps_equal_a_plain_loop(models_dir, images_dir, tmp_path, model):
    flags = ["--max_train_steps=20", "--learning_rate=1e-3:12, 1e-4", "--train_batch_size=3", "--logging_steps=1"]
    flags += ["--gradient_accumulation_steps=2", "--seed=5", "--activation=mish", "--weight_init=kaiming_normal"]
    flags += [f"--adam_epsilon={ADAM_EPSILON}"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags, model=model)
    expected, losses = plain_loop(models_dir / model, images_dir, 20, 3, 5, lambda step: 1e-3 if step < 12 else 1e-4)
    trained = hypernet.load(tmp_path / "run")
    for (name, ours), theirs in zip(trained.named_parameters(), expected.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-6, name
    assert trained.config.step == 20
    rows = read_csv(tmp_path / "run" / "hypernetwork_loss.csv")
    assert list(rows[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    for i, row in enumerate(rows):
        assert float(row["loss"]) == pytest.approx((losses[2 * i] + losses[2 * i + 1]) / 2, abs=1e-5)
    assert [row["learn_rate"] for row in rows] == ["0.001"] * 12 + ["0.0001"] * 8
    assert [(row["epoch"], row["epoch_step"]) for row in rows[:3]] == [("0", "1"), ("1", "0"), ("1", "2")]


def test_a_missing_model_is_one_line_and_exit_code_2(models_dir, images_dir, tmp_path):
    model = ["--pretrained_model_name_or_path", "somebody/no-model"]
    done = run(REPO / "train_hypernetwork.py", *command(models_dir, images_dir, tmp_path / "run", *model))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    assert done.stderr.startswith("error: ") and " ".join(model) in done.stderr


@pytest.mark.parametrize(
    "given, threads",
    [
        ({}, 1),  # OMP_NUM_THREADS=1 python train_hypernetwork.py
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 8),  # accelerate launch
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_THREAD_LIMIT": ""}, 8),
        ({"ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "3"}, 2),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),  # torchrun
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_THREAD_LIMIT": "5"}, 5),  # compare.py --jobs
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_THREAD_LIMIT": "5", "LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)
def test_the_single_thread_of_launchers_is_replaced_by_a_share_of_the_cores(monkeypatch, given, threads):
    before = torch.get_num_threads()
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    try:
        torch.set_num_threads(1)
        set_cpu_threads()
        assert torch.get_num_threads() == threads
        torch.set_num_threads(2)  # set explicitly
        set_cpu_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_overwrite_keeps_files_that_no_run_wrote(models_dir, images_dir, tmp_path):
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1")
    (tmp_path / "run" / "notes.md").write_text("mine")
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1", "--activation=relu", "--overwrite")
    assert (tmp_path / "run" / "notes.md").read_text() == "mine"
    assert hypernet.load(tmp_path / "run").config.activation == "relu"


@pytest.mark.usefixtures("scored")
def test_two_processes_equal_one_with_the_same_total_batch(models_dir, images_dir, mixed_dir, tmp_path, monkeypatch):
    shutil.copytree(images_dir, tmp_path / "images")
    shutil.copytree(mixed_dir, tmp_path / "images" / "mixed")
    images_dir = tmp_path / "images"
    flags = ["--varsize", "--prior_weight=0.1"]  # batches of four, and of one image, which two processes cannot divide
    flags += ["--learning_rate=auto", "--max_train_steps=20", "--name=x", "--activation=mish", "--seed=2"]
    flags += ["--weight_init=kaiming_normal", "--checkpointing_steps=15", f"--adam_epsilon={ADAM_EPSILON}"]
    flags += ["--validation_split=0.3", "--validation_loss_steps=10", "--validation_inference_steps=2"]
    flags += ["--validation_prompt", "a cat", "a dog", "a fish", "--min_prompt_fidelity=0"]
    flags += ["--validation_sampler=DPM++ 2M", "--validation_resolution=64x96"]
    caches = {name: tmp_path / f"cache of {name}" for name in ("one", "two")}
    two = ["--train_batch_size=2", "--validation_seed=-1", f"--cache_dir={caches['two']}", *flags]
    train(models_dir, images_dir, tmp_path / "two", *two, launch=LAUNCH_TWO)
    seed = json.loads((tmp_path / "two" / "run.json").read_text())["preview_seed"]
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: seed)
    one = ["--train_batch_size=4", "--validation_seed=-1", f"--cache_dir={caches['one']}", *flags]
    said = train_here(models_dir, images_dir, tmp_path / "one", *one)
    sizes = re.findall(r"^ *\d+x\d+ +(\d+) +\d+$", said, re.M)
    assert "1" in sizes and any(int(count) >= 4 for count in sizes)
    for folder in ("", "best", "checkpoints/step-000015"):
        one, two = (hypernet.load(tmp_path / run / folder).state_dict() for run in ("one", "two"))
        assert all((one[key] - two[key]).abs().max() < 1e-6 for key in one), folder
    for table, column in (
        ("hypernetwork_loss.csv", "loss"),
        ("validation_loss.csv", "val_loss"),
        ("scores.csv", "style_distance"),
    ):
        steps, losses = (
            [read_csv(tmp_path / run / table, name) for run in ("one", "two")] for name in ("step", column)
        )
        assert steps[0] == steps[1] and len(steps[0]) in (2, 3)
        assert losses[0] == pytest.approx(losses[1], abs=2e-4 if table == "scores.csv" else 1e-5)
    grids = [
        np.asarray(Image.open(tmp_path / run / "previews" / "before_after.png"), np.int16) for run in ("one", "two")
    ]
    assert np.abs(grids[0] - grids[1]).max() <= 2  # prompts are divided among processes, and come back in order
    for kind in ("pictures", "latents", "prompts"):
        rows = [cached_rows(caches[name], kind) for name in ("one", "two")]
        assert rows[0] == rows[1]


def test_processes_that_find_different_images_end_the_run(models_dir, images_dir, tmp_path, monkeypatch):
    train_here(
        models_dir, images_dir, tmp_path / "run", "--max_train_steps=1"
    )  # so that nothing is missing in the cache

    def exchange(beat):  # with a second process, which answers the same except for its images and captions
        state, steps, value = beat
        is_fingerprint = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict)
        return [beat, (state, steps, "other images" if is_fingerprint else value)]

    monkeypatch.setattr(setup, "connect_processes", lambda accelerator: Processes(0, 2, exchange))
    with pytest.raises(UserError, match="--train_data_dir"):
        train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=2")
    assert step_of(tmp_path / "run") == 1


def cached_rows(cache, kind):
    """Return the rows of a cache by key; no key may occur twice."""
    files = [datasets.Dataset.from_file(str(path)) for path in cache.glob(f"{kind}-*/*.arrow")]
    rows = [(row.pop("key"), row) for row in datasets.concatenate_datasets(files)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_trains_on_a_dataset_and_prints_which_images_are_used(models_dir, images_dir, tmp_path, capsys):
    files = [str(path) for path in sorted(images_dir.glob("*.png"))]
    (tmp_path / "empty.png").write_bytes(b"")
    columns = {"photo": [*files, str(tmp_path / "empty.png")], "words": [["a cat", "one cat"]] * 9}
    table = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    table.save_to_disk(tmp_path / "set")
    flags = ["--pretrained_model_name_or_path", models_dir / "epsilon", "--dataset_name", tmp_path / "set"]
    flags += ["--image_column=photo", "--caption_column=words", "--resolution=64", "--report_to=none"]
    flags += ["--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run", "--train_batch_size=3"]
    flags += ["--max_train_steps=2", "--latent_sampling=once", "--crop=random"]
    AcceleratorState._reset_state(True)
    train_hypernetwork.main(parse_config(list(map(str, flags))))
    printed = capsys.readouterr().out
    assert f"row 8 of --dataset_name {tmp_path / 'set'}" in printed  # the skipped one
    assert re.search(r"64x64 +8 +3\n", printed)  # size, images, batches per epoch
    assert step_of(tmp_path / "run") == 2


def test_a_run_writes_everything_the_readme_lists(models_dir, images_dir, tmp_path):
    output = tmp_path / "my style"
    flags = ["--max_train_steps=4", "--checkpointing_steps=2", "--validation_steps=2", "--validation_inference_steps=2"]
    flags += ["--validation_prompt", "a cat", "a dog", "--num_validation_images=2", "--widths=12,32"]
    flags += ["--gradient_checkpointing", "--mixed_precision=bf16", "--report_to=all"]
    done = train(models_dir, images_dir, output, *flags)
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "my style.pt",
        "README.md",
        "hypernetwork_loss.csv",
        "loss.png",
        "run.html",
        "previews/before_after.png",
        "previews/step-000002.png",
        "checkpoints/step-000002/optimizer.bin",
        "checkpoints/step-000004/config.json",
    } <= found
    assert not any("UNet" in name or name.startswith(".") or "model.safetensors" == name for name in found)
    ours, theirs = hypernet.load(output), hypernet.load(output / "my style.pt")
    assert ours.dtype == torch.float32 and list(ours.config.widths) == [12, 32] and ours.config.name == "my style"
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    card = (output / "README.md").read_text()
    assert all(text in card for text in ("4 steps", "previews/before_after.png", "12, 32", "<hypernet:my style:1>"))
    assert list((output / "logs").rglob("events.out.tfevents*"))
    (sync,) = (line for line in done.stdout.splitlines() if "wandb sync" in line)
    assert list((output / "wandb").glob("offline-run-*/*.wandb")) and "offline-run-" in sync
    assert not unexpected(done.stderr)
    json.loads((output / "run.json").read_text())


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--pretrained_model_name_or_path={images}"], "--pretrained_model_name_or_path .*model_index.json"),
        (["--pretrained_model_name_or_path=somebody/no-model"], "--pretrained_model_name_or_path somebody/no-model"),
        (
            ["--pretrained_model_name_or_path=models/none.safetensors"],
            "--pretrained_model_name_or_path models/none.saf",
        ),
        (["--pretrained_model_name_or_path={models}/none"], "--pretrained_model_name_or_path .*none"),
        (["--pretrained_model_name_or_path={images}/0.png"], "--pretrained_model_name_or_path .*0.png.*.safetensors"),
        (["--train_data_dir={models}/none"], "--train_data_dir .*none"),
        (["--train_data_dir={models}/epsilon/unet"], "--train_data_dir .*unet"),
        (["--train_data_dir={images}/../damaged"], "--train_data_dir .*a.png"),
        (["--train_data_dir={images}/../latin"], r"a\.txt.*UTF-8"),
        (["--widths=12,320"], "--widths 12,320.* 320.*12,16,32"),
        (["--layer_structure=1,0.01,1"], "--layer_structure 1,0.01,1.* 12"),
        (["--resume_from_checkpoint=step-9"], "--resume_from_checkpoint step-9"),
        (["--output_dir={models}/epsilon"], "--output_dir .*epsilon"),
        (["--output_dir={images}/run"], "--output_dir .*--train_data_dir"),
        (["--cache_dir={images}/0.png"], "--cache_dir .*0.png"),
        (["--mixed_precision=fp16"], "--mixed_precision fp16"),
        (["--resolution=60"], "--resolution 60.* 8"),
        (["--resolution=64x60"], "--resolution 64x60.* 8"),
        (["--push_to_hub"], "--push_to_hub"),
        (["--push_to_hub", "--name=my style"], "--hub_model_id my style"),
        (["--optimizer=LBFGS"], "--optimizer LBFGS"),
        (["--optimizer_args", "momentun=0.9"], "--optimizer_args momentun"),
    ],
)
def test_mistakes_are_reported_before_models_load(models_dir, images_dir, tmp_path, monkeypatch, flags, named):
    monkeypatch.setattr(setup, "load_stable_diffusion", lambda *_, **__: pytest.fail("models were loaded"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("damaged", "latin"):
        (images_dir.parent / name).mkdir(exist_ok=True)
        (images_dir.parent / name / "a.png").write_bytes(b"")
    (images_dir.parent / "latin" / "a.txt").write_bytes("grün".encode("latin-1"))
    flags = [flag.format(models=models_dir, images=images_dir) for flag in flags]
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match=named) as error:
        train_hypernetwork.main(parse_config(command(models_dir, images_dir, tmp_path / "run", *flags)))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused_and_untouched(models_dir, images_dir, tmp_path):
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1")
    arguments = command(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1", "--activation=relu")
    before = (tmp_path / "run/config.json").read_text()
    with pytest.raises(UserError, match="--output_dir .*activation.*linear.*relu.*--overwrite") as error:
        train_hypernetwork.main(parse_config(arguments))
    assert "\n" not in str(error.value)
    assert (tmp_path / "run/config.json").read_text() == before


def test_notes_name_probable_mistakes_and_the_last_line_has_the_words(models_dir, images_dir, tmp_path):
    flags = [
        "--max_train_steps=1",
        "--name=ink",
        "--template",
        "{caption}, by [name]",
        "--learning_rate=1e-4:9, 1e-5:20",
    ]
    flags += ["--validation_prompt", "red", "star", "[name]", "--validation_inference_steps=1"]
    said = train_here(models_dir, images_dir, tmp_path / "run", *flags)
    notes = [line for line in said.splitlines() if line.startswith("note: --")]
    for option, word in (("template", "{caption}"), ("learning_rate", "1e-05"), ("validation_prompt", "red star")):
        assert [line for line in notes if line.startswith(f"note: --{option}") and word in line], option
    assert len(notes) == 3 and json.loads((tmp_path / "run" / "run.json").read_text())["validation_prompt"][2] == "ink"
    assert "by ink" in said.splitlines()[-1] and "red" in said.splitlines()[-1]
    assert "by ink" in (tmp_path / "run" / "README.md").read_text()
