"""examples/generate.py, run as its users run it."""

from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from examples import generate
from hypernet.generation.infotext import parse_infotext, read_png_infotext
from hypernet.utils.errors import UserError
from tests.helpers.generation import max_difference, reference_image, run_main
from tests.helpers.scripts import REPO, run, unexpected


def test_generates_what_diffusers_does_and_again_from_the_infotext(models_dir, hypernetworks_dir, tmp_path):
    words = ["--prompt", "a red <hypernet:other:0.5>star", "--negative_prompt", "blue, a: b", "--strength=0.8"]
    flags = ["--steps=3", "--seed=7", "--num_images=3", "--batch_size=2", "--size=64x128", "--sampler", "euler A"]
    flags += ["--hypernetwork_dir", hypernetworks_dir, "--output_dir", tmp_path]
    run_dir = hypernetworks_dir / "ink"
    done = run(REPO / "examples/generate.py", *words, *flags, "--hypernetwork", run_dir, afresh=True)
    assert done.returncode == 0 and not unexpected(done.stderr), done.stderr
    paths = done.stdout.splitlines()
    assert [path.rpartition("-")[2] for path in paths] == ["seed7.png", "seed8.png", "seed9.png"]

    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    options = {"num_inference_steps": 3, "guidance_scale": 4, "width": 64, "height": 128}
    stack = [(hypernetworks_dir / "other.pt", 0.5), (run_dir, 0.8)]
    for seed, path in enumerate(paths, 7):
        expected = reference_image(pipe, stack, "a red star", seed, negative_prompt="blue, a: b", **options)
        assert max_difference(path, expected) <= 1

    prompt, negative, fields = parse_infotext(read_png_infotext(paths[0]))
    assert prompt == "a red star <hypernet:other:0.5> <hypernet:ink:0.8>" and negative == "blue, a: b"
    expected = {"Steps": "3", "Sampler": "Euler a", "Schedule type": "Uniform", "CFG scale": "4", "Seed": "7"}
    expected |= {"RNG": "CPU", "Size": "64x128", "Model": "epsilon"}
    assert fields.items() >= expected.items()

    again = ["--prompt", prompt, "--negative_prompt", negative, *flags]
    before = [Path(path).read_bytes() for path in paths]
    assert run_main(generate, again) == paths and [Path(path).read_bytes() for path in paths] == before
    other = run_main(generate, [*again, "--steps", "4"])
    assert [path.rpartition("-")[2] for path in other] == ["2.png"] * 3 and max_difference(other[2], paths[2]) > 1


def test_a_stack_file_generates_what_its_hypernetworks_do(models_dir, hypernetworks_dir, tmp_path):
    for name in ("other.pt", "ink"):
        (tmp_path / name).symlink_to(hypernetworks_dir / name)
    (tmp_path / "both.hns").write_text("[('other', 0.5), ('ink', 0.8)]")
    flags = ["--model", models_dir / "epsilon", "--steps=2", "--size=64", "--output_dir", tmp_path / "out", "--prompt"]
    [expected] = run_main(
        generate, [*flags, "a star", "--hypernetwork", tmp_path / "other.pt", tmp_path / "ink", "--strength", 0.5, 0.8]
    )
    [stacked] = run_main(generate, [*flags, "a star", "--hypernetwork", tmp_path / "both.hns"])
    assert max_difference(stacked, expected) == 0
    prompt, _, fields = parse_infotext(read_png_infotext(stacked))
    assert prompt == "a star <hypernet:both:1>" and "both: " in fields["Hypernet hashes"]
    assert run_main(generate, [*flags, prompt, "--hypernetwork_dir", tmp_path]) == [stacked]
    (tmp_path / "mean.hns").write_text("{'other': 0.5, 'ink': 0.8}")
    [mean] = run_main(generate, [*flags, "a star", "--hypernetwork", tmp_path / "mean.hns"])
    assert max_difference(mean, stacked) > 0


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--sampler", "Eulr"], ["--sampler", "Euler"]),
        (["--size", "100"], ["--size 100x100", "8"]),
        (["--size", "64by64"], ["--size", "64by64", "WIDTHxHEIGHT"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--seed", "-2"], ["--seed -2"]),
        (["--num_images", "0"], ["--num_images"]),
        (["--strength", "1", "2"], ["--strength"]),
        (["--strength", "nan"], ["--strength"]),
        (["--hypernetwork", "nothing.pt"], ["nothing.pt"]),
        (["--model", "no/such/model"], ["--model no/such/model"]),
        (["--model", "tests"], ["--model tests", "model_index.json"]),
        (["--prompt", "a <hypernet:inc>"], ["<hypernet:inc>", "ink"]),
        (["--prompt", "a <lora:x:1>"], ["<lora:x:1>", "--lora"]),
        (["--color", "red"], ["--color"]),
        (["--prompt", "a", "red", "star"], ["red star", "quotes"]),
    ],
)
def test_refuses(hypernetworks_dir, tmp_path, flags, named):
    needed = ["--hypernetwork", hypernetworks_dir / "ink", "--hypernetwork_dir", hypernetworks_dir, "--prompt", "a"]
    with pytest.raises(UserError) as caught:
        generate.main(list(map(str, [*needed, "--output_dir", tmp_path, *flags])))
    assert all(name in str(caught.value) for name in named), caught.value
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())
