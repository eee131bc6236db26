"""The training script, run as its users run it."""

import csv
import hashlib
import json
import os
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
from hypernet.training.accelerator import set_cpu_threads
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed
from tests.helpers.scripts import REPO, run, train, train_here, unexpected
from tests.helpers.tiny_models import TINY_WIDTHS
from tests.modeling.test_attachment import with_hooks

# Attention does not depend on a constant in its keys, so some gradients are rounding noise; AdamW with its usual epsilon
# would blow that noise up to whole steps, and no two ways of computing the same would agree. Nor would they where an
# activation has a kink; mish has none.
ADAM_EPSILON = 1e-4
# (`--cpu --num_processes=2` starts one process, as of Accelerate 1.15; this starts two, on CPUs, too.)
LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
LAUNCH_TWO += ["--mixed_precision=no", "--dynamo_backend=no"]


def plain_loop(model_dir, images_dir, steps, batch_size, seed, rate_at):
    """Twenty lines of PyTorch and diffusers: what the script should do, without Accelerate and without caches."""
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
        optimizer.param_groups[0]["lr"] = rate_at(step)
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
    rows = list(csv.DictReader(open(tmp_path / "run" / "hypernetwork_loss.csv")))
    assert list(rows[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    for i, row in enumerate(rows):
        assert float(row["loss"]) == pytest.approx((losses[2 * i] + losses[2 * i + 1]) / 2, abs=1e-5)
    assert [row["learn_rate"] for row in rows] == ["0.001"] * 12 + ["0.0001"] * 8
    assert [(row["epoch"], row["epoch_step"]) for row in rows[:3]] == [("0", "1"), ("1", "0"), ("1", "2")]


def test_resumed_equals_uninterrupted(models_dir, mixed_dir, tmp_path):
    images_dir = mixed_dir  # an epoch has four batches, of three sizes
    flags = ["--learning_rate=1e-3", "--dropout_structure=0,0.3,0", "--train_batch_size=3", "--logging_steps=1"]
    flags += ["--aspect_buckets", "--resolution=128", "--latent_sampling=random", "--random_flip", "--alpha_weight"]
    flags += [
        "--shuffle_tags",
        "--tag_dropout=0.3",
        "--keep_tags=1",
        "--caption_dropout=0.2",
        "--template=style_filewords",
    ]
    flags += ["--validation_prompt=a cat", "--validation_steps=2", "--validation_inference_steps=2"]
    flags += ["--checkpointing_steps=2", "--name=x"]
    train_here(models_dir, images_dir, tmp_path / "whole", *flags, "--max_train_steps=7")
    train_here(models_dir, images_dir, tmp_path / "parts", *flags, "--max_train_steps=4")
    said = train_here(
        models_dir, images_dir, tmp_path / "parts", *flags, "--max_train_steps=7", "--checkpoints_total_limit=2"
    )
    assert "Going on from" in said and "3 steps in" in said
    whole, parts = (hypernet.load(tmp_path / folder / "x.pt") for folder in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))
    assert (tmp_path / "whole/hypernetwork_loss.csv").read_text() == (
        tmp_path / "parts/hypernetwork_loss.csv"
    ).read_text()
    states = tmp_path / "parts" / "checkpoints"
    assert sorted(path.name for path in states.iterdir()) == ["step-000006", "step-000007"]

    (tmp_path / "parts" / "x.pt").unlink()  # as if the run had been killed between the state and this file
    back = [*flags, "--max_train_steps=6", "--resume_from_checkpoint=step-000006"]
    said = train_here(models_dir, images_dir, tmp_path / "parts", *back)
    assert "0 steps in" in said and "step-000007 is now abandoned-step-000007" in said
    assert "This run has made its 6 steps; to go on, raise --max_train_steps" in said
    assert sorted(path.name for path in states.iterdir()) == ["abandoned-step-000007", "step-000006"]
    again, state = hypernet.load(tmp_path / "parts" / "x.pt"), hypernet.load(states / "step-000006")
    assert again.config.step == 6
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.state_dict().values()))
    assert len((tmp_path / "parts/hypernetwork_loss.csv").read_text().splitlines()) == 7


def test_resumed_with_more_images(models_dir, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    flags = ["--train_batch_size=3", "--checkpointing_steps=1", "--logging_steps=1"]  # three batches per epoch
    train_here(models_dir, folder, tmp_path / "run", *flags, "--max_train_steps=4")
    for i in range(3):
        shutil.copy(folder / f"{i}.png", folder / f"copy {i}.png")
    said = train_here(models_dir, folder, tmp_path / "run", *flags, "--max_train_steps=6")
    assert "the images, or their batches, are others than before: a new epoch begins" in said
    rows = list(csv.DictReader(open(tmp_path / "run" / "hypernetwork_loss.csv")))
    places = [(row["epoch"], row["epoch_step"]) for row in rows]
    assert places == [("0", "0"), ("0", "1"), ("0", "2"), ("1", "0"), ("2", "0"), ("2", "1")]


def test_a_run_that_has_died_saves_nothing_that_is_dead(models_dir, images_dir, tmp_path, capsys):
    flags = ["--learning_rate=1e30", "--max_grad_norm=0", "--checkpointing_steps=3", "--logging_steps=50"]
    arguments = command(models_dir, images_dir, tmp_path / "run", "--cache_dir", str(models_dir / "cache"), *flags)
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match="is not finite at step 12: the run has died 4 times, at ever lower rates"):
        train_hypernetwork.main(parse_config(list(map(str, arguments))))
    assert capsys.readouterr().out.count("times the learning rate") == 3
    saved = [tmp_path / "run", *(tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 4  # after each return, so that a resumed run has_good_state it
    for folder in saved:
        assert all(weight.isfinite().all() for weight in hypernet.load(folder).parameters())


def test_a_model_that_is_not_there_is_one_line_on_the_console(models_dir, images_dir, tmp_path):
    arguments = command(
        models_dir, images_dir, tmp_path / "run", "--pretrained_model_name_or_path", "somebody/no-model"
    )
    done = run(REPO / "train_hypernetwork.py", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    assert done.stderr.startswith(
        "error: --pretrained_model_name_or_path somebody/no-model: it is not here, and the Hub"
    )


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
def test_the_launchers_one_thread_is_not_meant(monkeypatch, given, threads):
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
        torch.set_num_threads(2)  # asked for
        set_cpu_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_overwrite_leaves_the_files_of_others(models_dir, images_dir, tmp_path):
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1")
    (tmp_path / "run" / "notes.md").write_text("mine")
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1", "--activation=relu", "--overwrite")
    assert (tmp_path / "run" / "notes.md").read_text() == "mine"
    assert hypernet.load(tmp_path / "run").config.activation == "relu"


def test_two_processes_equal_one_with_the_same_total_batch(models_dir, images_dir, mixed_dir, tmp_path):
    shutil.copytree(images_dir, tmp_path / "images")
    shutil.copytree(mixed_dir, tmp_path / "images" / "mixed")
    images_dir = tmp_path / "images"
    flags = ["--varsize"]  # batches of four, and of one image, which two processes cannot share
    flags += ["--learning_rate=1e-3", "--max_train_steps=20", "--name=x", "--activation=mish", "--seed=2"]
    flags += ["--weight_init=kaiming_normal", "--checkpointing_steps=15", f"--adam_epsilon={ADAM_EPSILON}"]
    flags += ["--validation_split=0.3", "--validation_loss_steps=10", "--validation_inference_steps=2"]
    flags += ["--validation_prompt", "a cat", "a dog", "a fish"]
    said = train_here(models_dir, images_dir, tmp_path / "one", "--train_batch_size=4", *flags)
    sizes = re.findall(r"^ *\d+x\d+ +(\d+) +\d+$", said, re.M)
    assert "1" in sizes and any(int(count) >= 4 for count in sizes)
    train(models_dir, images_dir, tmp_path / "two", "--train_batch_size=2", *flags, launch=LAUNCH_TWO)
    for folder in ("", "best", "checkpoints/step-000015"):
        one, two = (hypernet.load(tmp_path / run / folder).state_dict() for run in ("one", "two"))
        assert all((one[key] - two[key]).abs().max() < 1e-6 for key in one), folder
    for table, column in (("hypernetwork_loss.csv", "loss"), ("validation_loss.csv", "val_loss")):
        one, two = (list(csv.DictReader(open(tmp_path / run / table))) for run in ("one", "two"))
        assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) in (2, 3)
        assert [float(row[column]) for row in one] == pytest.approx([float(row[column]) for row in two], abs=1e-5)
    grids = [
        np.asarray(Image.open(tmp_path / run / "previews" / "before_after.png"), np.int16) for run in ("one", "two")
    ]
    assert np.abs(grids[0] - grids[1]).max() <= 2  # the prompts were shared out, and came back in order


def test_a_data_set_is_trained_on_and_the_run_says_what_it_uses(models_dir, images_dir, tmp_path, capsys):
    files = [str(path) for path in sorted(images_dir.glob("*.png"))]
    (tmp_path / "empty.png").write_bytes(b"")
    columns = {"picture": [*files, str(tmp_path / "empty.png")], "said": [["a cat", "one cat"]] * 9}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    table.save_to_disk(tmp_path / "set")
    flags = ["--pretrained_model_name_or_path", models_dir / "epsilon", "--dataset_name", tmp_path / "set"]
    flags += ["--image_column=picture", "--caption_column=said", "--resolution=64", "--report_to=none"]
    flags += ["--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run", "--train_batch_size=3"]
    flags += ["--max_train_steps=2", "--latent_sampling=once", "--crop=random"]
    AcceleratorState._reset_state(True)
    train_hypernetwork.main(parse_config(list(map(str, flags))))
    said = capsys.readouterr().out
    assert f"skipped: row 8 of --dataset_name {tmp_path / 'set'}: it is empty" in said
    assert "images used: 8, skipped: 1; batches per epoch: 3" in said
    assert re.search(r"64x64 +8 +3\n", said)
    assert hypernet.load(tmp_path / "run").config.step == 2


def test_everything_is_where_it_is_said_to_be(models_dir, images_dir, tmp_path):
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
    assert "trained for 4 steps" in card and "previews/before_after.png" in card and "widths 12, 32" in card
    assert list((output / "logs").rglob("events.out.tfevents*"))
    (sync,) = (line for line in done.stdout.splitlines() if "wandb sync" in line)
    assert list((output / "wandb").glob("offline-run-*/*.wandb")) and "offline-run-" in sync
    assert not unexpected(done.stderr)
    json.loads((output / "run.json").read_text())


def command(models_dir, images_dir, output, *flags):
    needed = {"--pretrained_model_name_or_path": models_dir / "epsilon", "--train_data_dir": images_dir}
    needed |= {"--output_dir": output, "--resolution": 64, "--report_to": "none"}
    return [str(item) for pair in needed.items() for item in pair] + list(flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pretrained_model_name_or_path={images}"], "there is no model_index.json in it"),
        (
            ["--pretrained_model_name_or_path=somebody/no-such-model"],
            "it is not here, and the Hub has no such model, or cannot be reached",
        ),
        (
            ["--pretrained_model_name_or_path={models}/none"],
            "--pretrained_model_name_or_path .*none: there is no such file or folder",
        ),
        (
            ["--pretrained_model_name_or_path={images}/0.png"],
            "0.png: it is a file, but no model; one ends in .safetensors or .ckpt",
        ),
        (["--train_data_dir={models}/none"], "there is no such folder"),
        (["--train_data_dir={models}/epsilon/unet"], "there is no image in it"),
        (["--widths=12,320"], "--widths 12,320: the UNet has no attention layer of width 320; it has 12,16,32"),
        (["--resume_from_checkpoint=step-9"], "has no such training state; it has none"),
        (["--output_dir={models}/epsilon"], "it is not empty and holds no run"),
        (["--mixed_precision=fp16"], "--mixed_precision fp16: it needs a GPU"),
        (["--push_to_hub"], "--push_to_hub: you are not logged in"),
        (["--resolution=60"], "--resolution 60: it must be a multiple of 8"),
        (["--output_dir={images}/run"], "it lies in --train_data_dir; name a folder outside"),
        (["--layer_structure=1,0.01,1"], "0.01 times width 12 is nothing"),
        (["--push_to_hub", "--name=my style"], "--hub_model_id my style: "),
        (["--cache_dir={images}/0.png"], "--cache_dir .*0.png: it cannot be written to .*; name another --cache_dir"),
        (["--resolution=64x60"], "--resolution 64x60: it must be a multiple of 8"),
        (["--train_data_dir={images}/../damaged"], "none of its 1 images can be used; .*a.png: it is empty"),
        (["--train_data_dir={images}/../latin"], r"a\.txt: it is not UTF-8 text \(byte 2\)"),
    ],
)
def test_mistakes_are_told_before_models_load(models_dir, images_dir, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(train_hypernetwork, "load_stable_diffusion", lambda *_, **__: pytest.fail("models were loaded"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("damaged", "latin"):
        (images_dir.parent / name).mkdir(exist_ok=True)
        (images_dir.parent / name / "a.png").write_bytes(b"")
    (images_dir.parent / "latin" / "a.txt").write_bytes("grün".encode("latin-1"))
    flags = [flag.format(models=models_dir, images=images_dir) for flag in flags]
    with pytest.raises(UserError, match=message) as error:
        train_hypernetwork.main(parse_config(command(models_dir, images_dir, tmp_path / "run", *flags)))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_another_run_in_the_folder(models_dir, images_dir, tmp_path):
    train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1")
    arguments = command(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1", "--activation=relu")
    before = (tmp_path / "run/config.json").read_text()
    with pytest.raises(UserError, match="holds another run; differing: .*activation .was linear, now relu.") as error:
        train_hypernetwork.main(parse_config(list(map(str, arguments))))
    assert "\n" not in str(error.value)
    assert (tmp_path / "run/config.json").read_text() == before
