"""Whole runs on a simulated GPU: nothing mixes devices or precisions, and steps that log nothing never wait for the GPU."""

from unittest import mock

import pytest
import torch

import train_hypernetwork
from examples import generate
from hypernet.training import setup, updater
from hypernet.training.divergence_guard import DivergenceGuard
from hypernet.training.monitor import Monitor
from tests.helpers.generation import max_difference, run_main
from tests.helpers.scripts import read_csv, same_weights, train_here, weights
from tests.helpers.simulated_gpu import simulated_gpu

STEPS = 4
# Steps 1 and 2 log nothing; 3 is followed by previews; 4 is logged, measured and saved
FLAGS = ["--learning_rate=1e-3", "--train_batch_size=2", f"--max_train_steps={STEPS}", f"--logging_steps={STEPS}"]
FLAGS += [f"--checkpointing_steps={STEPS}", "--validation_split=0.2", f"--validation_loss_steps={STEPS}"]
FLAGS += ["--min_prompt_fidelity=0"]  # that of models with random weights is noise
PREVIEWS = ["--validation_prompt=a cat", "--validation_negative_prompt=a dog", "--validation_steps=3"]
PREVIEWS += ["--validation_inference_steps=2"]
# Each objective, loss weight and memory option in at least one of them
RUNS = {
    "fp16": (
        "epsilon",
        torch.float16,
        ["--mixed_precision=fp16", "--gradient_checkpointing", "--gradient_accumulation_steps=2", "--ema_decay=0.9"],
    ),
    "bf16": (
        "v_prediction",
        torch.bfloat16,
        ["--mixed_precision=bf16", "--activation=swish", "--layer_norm", "--snr_gamma=5", "--noise_offset=0.1"]
        + ["--clip_grad_mode=value", "--dropout_structure=0,0.1,0"],
    ),
    "SDXL in fp16": (
        "xl",
        torch.float16,
        ["--mixed_precision=fp16", "--shuffle_tags", "--alpha_weight", "--aspect_buckets", "--random_flip"]
        + ["--latent_sampling=random", "--prompt_emphasis", "--template=(a drawing:1.2) of [filewords]"],
    ),
}


def train(models_dir, images_dir, folder, run, *flags, model="epsilon"):
    flags = [*FLAGS, f"--cache_dir={folder / 'cache'}", *flags]
    with mock.patch.object(setup, "memory_lines", lambda *_: []):  # it uses fake tensors, which do not mix with these
        return train_here(models_dir, images_dir, folder / run, *flags, model=model)


@pytest.fixture
def measured(monkeypatch):
    """Call with a simulated GPU to record what its run computes with, and when each step was over."""
    seen = {"prediction": set(), "loss": set(), "weights": set(), "frozen": set(), "waits": []}

    def kinds(tensors):
        return {(tensor.device.type, tensor.dtype) for tensor in tensors}

    def record(gpu):
        measure, training_loss, save = Monitor.measure, updater.training_loss, train_hypernetwork.save

        def recorded_loss(model, *arguments):
            hook = model.unet.register_forward_hook(
                lambda _, args, output: seen["prediction"].update(kinds(output[:1]))
            )
            loss = training_loss(model, *arguments)
            hook.remove()
            seen["loss"] |= kinds([loss])
            return loss

        def recorded_measure(*arguments):
            problem = measure(*arguments)
            seen["waits"].append(len(gpu.waits))
            return problem

        def recorded_save(monitor, *arguments):
            kept, optimizer = monitor.checkpointer, monitor.checkpointer.optimizer.state_dict()["state"]
            state = [value for values in optimizer.values() for value in values.values() if torch.is_tensor(value)]
            average = kept.ema.average.shadow_params if kept.ema.average else []
            seen["weights"] |= kinds([*kept.hypernetwork.parameters(), *average, *state])
            seen["frozen"] |= kinds(monitor.model.unet.parameters())
            save(monitor, *arguments)

        monkeypatch.setattr(updater, "training_loss", recorded_loss)
        monkeypatch.setattr(Monitor, "measure", recorded_measure)
        monkeypatch.setattr(train_hypernetwork, "save", recorded_save)
        return seen

    return record


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("model, dtype, flags", RUNS.values(), ids=RUNS)
def test_runs_on_a_gpu(models_dir, mixed_dir, tmp_path, measured, model, dtype, flags):
    with simulated_gpu() as gpu:
        seen = measured(gpu)
        said = train(models_dir, mixed_dir, tmp_path, "run", *PREVIEWS, *flags, model=model)
    assert "simulated GPU" in said and "could not be" not in said
    assert seen["prediction"] == {("cuda", dtype)} and seen["loss"] == {("cuda", torch.float32)}
    assert seen["weights"] == {("cuda", torch.float32)} and seen["frozen"] == {("cuda", dtype)}
    assert {weight.dtype for weight in weights(tmp_path / "run").values()} == {torch.float32}
    after_first, after_second = seen["waits"][:2]
    waits = [wait for wait in gpu.waits[after_first:after_second] if wait.where[0] != "time_forecast.py time_step"]
    assert not waits  # but for the stopwatch, which times the first steps
    assert len(list((tmp_path / "run" / "previews").glob("*.png"))) >= 2
    assert read_csv(tmp_path / "run" / "scores.csv", "step") == [0, 3, STEPS]
    # of each image, without the hypernetwork and at three steps, one number and the features of two blocks are read
    read = [wait.what for wait in gpu.waits if "preview_scores.py _judge" in wait.where]
    assert sum("'tolist'" in what for what in read) == 4 and sum("'cpu'" in what for what in read) == 4 * 2


@pytest.mark.usefixtures("scored")
def test_learns_what_a_cpu_learns(models_dir, mixed_dir, tmp_path):
    flags = [*PREVIEWS, "--ema_decay=0.9", "--snr_gamma=5", "--noise_offset=0.1"]
    train(models_dir, mixed_dir, tmp_path, "cpu", *flags)
    with simulated_gpu():
        train(models_dir, mixed_dir, tmp_path, "gpu", *flags, f"--cache_dir={tmp_path / 'other cache'}")
    cpu, gpu = (weights(tmp_path / run) for run in ("cpu", "gpu"))
    assert all(
        (cpu[key] - gpu[key]).abs().max() < 1e-4 for key in cpu
    )  # the bias of the keys has no gradient but rounding
    for table, column in (("hypernetwork_loss.csv", "loss"), ("validation_loss.csv", "val_loss")):
        cpu, gpu = (read_csv(tmp_path / run / table, column) for run in ("cpu", "gpu"))
        assert cpu and cpu == pytest.approx(gpu, rel=1e-5)
    cpu, gpu = (read_csv(tmp_path / run / "scores.csv", "style_distance") for run in ("cpu", "gpu"))
    assert len(cpu) == 3 and cpu == pytest.approx(gpu, abs=1e-3)
    assert max_difference(*(tmp_path / run / "previews" / "step-000003.png" for run in ("cpu", "gpu"))) <= 2


def test_resumes_and_rolls_back_exactly(models_dir, mixed_dir, tmp_path, monkeypatch):
    """The state of optimizer, loss scaler and EMA leaves the GPU and returns to it."""
    flags = ["--mixed_precision=fp16", "--ema_decay=0.9", "--checkpointing_steps=2", "--validation_loss_steps=2"]
    check = DivergenceGuard.check_evaluation
    monkeypatch.setattr(
        DivergenceGuard, "check_evaluation", lambda *of: check(*of) or ("too high" if of[1] == STEPS else None)
    )
    with simulated_gpu():
        train(models_dir, mixed_dir, tmp_path, "whole", *flags)
        train(models_dir, mixed_dir, tmp_path, "parts", *flags, "--max_train_steps=2")
        said = train(models_dir, mixed_dir, tmp_path, "parts", *flags)
    assert "Resuming from" in said and len(read_csv(tmp_path / "parts" / "guard.csv")) == 1
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_generates_images(models_dir, hypernetworks_dir, tmp_path):
    flags = ["--hypernetwork", hypernetworks_dir / "ink", "--prompt=a cat", "--steps=2", "--size=64x64"]
    [on_cpu] = run_main(generate, [*flags, "--output_dir", tmp_path / "cpu"])
    with simulated_gpu():
        [on_gpu] = run_main(generate, [*flags, "--output_dir", tmp_path / "gpu"])
    assert max_difference(on_cpu, on_gpu) <= 2  # in float16
