"""What a run says of the GPU memory it takes, and of what would make it fit, with cards of made-up sizes."""

import dataclasses
import gc
import json
import types

import pytest
import torch

from hypernet.config import TrainingConfig
from hypernet.training import memory_forecast, setup
from hypernet.training.memory_counting import ADAMW_8BIT_STATE, ADAMW_STATE, PeakMemory
from hypernet.training.memory_forecast import describe_memory, find_remedy, needs_of
from hypernet.training.memory_peaks import MemoryNeeds, MemoryPeaks, memory_peaks
from tests.helpers.scripts import train_here
from tests.helpers.tiny_models import TINY_WIDTHS, tiny_unet, tiny_vae

NEEDS = MemoryNeeds(
    unet=tiny_unet().config,
    vae=tiny_vae().config,
    hypernetwork={"widths": tuple(TINY_WIDTHS), "activation": "swish"},
    size=(192, 128),
    batch_size=4,
    preview_size=(768, 64),
)


def simple_peaks(needs):
    """Peaks by a formula, in place of the seconds that counting takes."""
    bytes_each = 4 if needs.dtype is torch.float32 else 2
    weights = {None: 100 * bytes_each, "int8": 150, "nf4": 100}[needs.quantize]
    activations = needs.batch_size * bytes_each * (20 if needs.checkpointing else 100)
    pixels = 50 if needs.tiling else 300
    preview = weights + pixels * needs.previews if needs.preview_size else 0
    return MemoryPeaks(encoding=10, step=weights + activations + round(30 * needs.state_ratio), preview=preview)


@pytest.fixture
def simple(monkeypatch):
    """Use `simple_peaks`, and leave no room for what is not counted."""
    monkeypatch.setattr(memory_forecast, "memory_peaks", simple_peaks)
    monkeypatch.setattr(memory_forecast, "RESERVE", 0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"checkpointing": True}, {"size": (64, 64), "batch_size": 1}, {"preview_size": None}],
    ids=["plain", "checkpointing", "small", "no previews"],
)
def test_counts_what_real_tensors_take(changes):
    needs = dataclasses.replace(NEEDS, **changes)
    gc.collect()
    counted, real = memory_peaks(needs), memory_peaks(needs, PeakMemory)
    for name, size in vars(counted).items():
        assert size == pytest.approx(getattr(real, name), rel=0.001), name
    assert (counted.preview == 0) == (needs.preview_size is None)


def test_every_option_that_saves_memory_counts(models_dir):
    plain = memory_peaks(NEEDS)
    assert memory_peaks(dataclasses.replace(NEEDS, checkpointing=True)).step < plain.step
    assert memory_peaks(dataclasses.replace(NEEDS, dtype=torch.float16)).step < plain.step
    assert memory_peaks(dataclasses.replace(NEEDS, state_ratio=ADAMW_STATE + 1)).step > plain.step
    more = memory_peaks(dataclasses.replace(NEEDS, encoder_bytes=10**9, encodes_always=True))
    assert more.encoding == 10**9 and more.step == plain.step + 10**9
    previews = memory_peaks(dataclasses.replace(NEEDS, previews=4))
    assert previews.preview > plain.preview and previews.step == plain.step


def test_a_card_with_room_needs_no_note(simple, monkeypatch):
    highest = simple_peaks(NEEDS).highest
    assert len(describe_memory(NEEDS, TrainingConfig(), highest)) == 1
    line, note = describe_memory(NEEDS, TrainingConfig(), highest - 1)
    assert line.startswith("GPU memory: ") and note.startswith("note: ")
    monkeypatch.setattr(memory_forecast, "RESERVE", 7)
    assert len(describe_memory(NEEDS, TrainingConfig(), highest + 7)) == 1
    _, other_note = describe_memory(NEEDS, TrainingConfig(), highest + 6)  # it may fit
    assert other_note.startswith("note: ") and "--mixed_precision fp16" in other_note and other_note != note


def test_the_most_harmless_options_that_suffice_are_named(simple):
    changed, wanted = NEEDS, {}
    for option, value, change in (
        ("mixed_precision", "fp16", {"dtype": torch.float16}),
        ("gradient_checkpointing", True, {"checkpointing": True}),
        ("enable_tiling", True, {"tiling": True}),
        ("use_8bit_adam", True, {"state_ratio": ADAMW_8BIT_STATE}),
    ):
        if option == "use_8bit_adam":  # now that a step takes more than a preview, a smaller batch comes first
            changed = dataclasses.replace(changed, batch_size=1)
            wanted |= {"train_batch_size": 1, "gradient_accumulation_steps": 4}
        changed, wanted = dataclasses.replace(changed, **change), wanted | {option: value}
        highest = simple_peaks(changed).highest
        changes, peaks = find_remedy(NEEDS, simple_peaks(NEEDS), TrainingConfig(), highest)
        assert changes == wanted and peaks.highest == highest
        note = describe_memory(NEEDS, TrainingConfig(), highest)[1]
        assert all(f"--{name}" in note for name in wanted) and "--quantize" not in note and "--resolution" not in note


def test_a_smaller_batch_keeps_the_images_per_update(simple):
    needs = dataclasses.replace(NEEDS, dtype=torch.float16, checkpointing=True, preview_size=None)
    free = simple_peaks(dataclasses.replace(needs, batch_size=2)).highest
    changes, peaks = find_remedy(needs, simple_peaks(needs), TrainingConfig(gradient_accumulation_steps=3), free)
    assert changes == {"train_batch_size": 2, "gradient_accumulation_steps": 6} and peaks.highest == free


def test_options_that_save_nothing_are_not_named(simple):
    needs = dataclasses.replace(NEEDS, dtype=torch.float16, previews=8)
    free = simple_peaks(dataclasses.replace(needs, tiling=True)).highest
    assert find_remedy(needs, simple_peaks(needs), TrainingConfig(), free)[0] == {"enable_tiling": True}


def test_a_card_that_is_too_small_for_all_of_them_is_told_to_use_smaller_images(simple):
    note = describe_memory(NEEDS, TrainingConfig(), 50)[1]
    options = ("mixed_precision fp16", "gradient_checkpointing", "train_batch_size 1", "quantize nf4", "resolution")
    assert all(f"--{option}" in note for option in options) and "int8" not in note


@pytest.mark.parametrize("size, has_remedy", [((512, 512), False), ((2048, 2048), True)])
def test_a_smaller_resolution_is_not_suggested_where_it_changes_nothing(monkeypatch, simple, size, has_remedy):
    """The VAE encodes a fixed number of pixels at once, unless an image alone has more."""
    counted = []

    def peaks(needs):
        counted.append(needs)
        return MemoryPeaks(encoding=1000 if needs.dtype is torch.float32 else 900, step=100, preview=0)

    monkeypatch.setattr(memory_forecast, "memory_peaks", peaks)
    note = describe_memory(dataclasses.replace(NEEDS, size=size), TrainingConfig(), 500)[1]
    assert ("--resolution" in note) == has_remedy and "--mixed_precision fp16" in note
    assert len(counted) == 2  # no other option can help, and counting takes seconds


@pytest.fixture
def say(monkeypatch, simple):
    """What a run on a device says; some options are those of the card that it finds."""
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: simple_peaks(NEEDS).highest - 1001)

    def lines(device="cuda", name="T4", total=10**9, checkpoint=None, record=None, needs=NEEDS, **options):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, total))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(memory_forecast, "needs_of", lambda *given: dataclasses.replace(needs))
        accelerator = types.SimpleNamespace(device=torch.device(device))
        record = json.loads(json.dumps(record or {}))
        folder = types.SimpleNamespace(extras={}, identity=types.SimpleNamespace(record=record))
        config = TrainingConfig(**options)
        run = types.SimpleNamespace(accelerator=accelerator, config=config, checkpoint=checkpoint, folder=folder)
        return memory_forecast.memory_lines(run, None, None), folder.extras

    return lines


def test_only_a_run_on_cuda_that_is_not_compiled_says_what_it_takes(say):
    assert [line.partition(": ")[0] for line in say()[0]] == ["GPU memory", "note"]
    assert say("cpu")[0] == say("mps")[0] == say(compile=True)[0] == []
    assert say(needs=None)[0] == []  # a forecast must not end a run


def test_a_resumed_run_says_it_if_the_card_or_its_needs_have_changed(say):
    record = say()[1]
    resumed = {"checkpoint": "step-000001", "record": record}
    assert say(**resumed) == ([], record)
    assert say(record=record)[0]  # a run that starts over
    assert say(checkpoint="step-000001")[0]  # begun by an earlier version
    for change in ({"name": "L4"}, {"total": 10**8}, {"needs": dataclasses.replace(NEEDS, batch_size=5)}):
        assert say(**resumed, **change)[0], change


def test_a_run_counts_with_its_own_options(models_dir, images_dir, tmp_path, monkeypatch):
    """On a CPU it says nothing; what it would count is what its options say."""
    seen = []
    monkeypatch.setattr(
        setup, "memory_lines", lambda *given: seen.append((given, memory_forecast.memory_lines(*given))) or []
    )
    flags = ["--max_train_steps=1", "--train_batch_size=2", "--ema_decay=0.9", "--activation=relu"]
    flags += ["--gradient_checkpointing", "--validation_prompt=a cat", "--validation_resolution=128x64"]
    flags += ["--validation_inference_steps=1"]
    train_here(models_dir, images_dir, tmp_path / "ink", *flags)
    [(given, lines)] = seen
    assert lines == []
    needs = needs_of(*given)
    assert needs.size == (64, 64) and needs.batch_size == 2 and needs.preview_size == (128, 64)
    assert needs.checkpointing and needs.quantize is None and needs.state_ratio == ADAMW_STATE + 1
    assert needs.hypernetwork["activation"] == "relu" and needs.encoder_bytes > 1000 and not needs.encodes_always
    assert memory_peaks(needs).step > memory_peaks(dataclasses.replace(needs, batch_size=1)).step
