"""--compile: one graph per batch shape, and the same training as without it.

PyTorch itself runs the graphs here, because inductor takes minutes.
"""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.image_index import ImageRecord
from hypernet.training import compilation
from hypernet.training.compilation import check_compiler, check_shapes
from hypernet.utils.errors import UserError
from tests.helpers.scripts import read_csv, train_here
from tests.helpers.tiny_models import ONE_LEVEL, tiny_unet


@pytest.fixture(scope="module")
def small_models(models_dir, tmp_path_factory):
    """Folder with the tiny model `epsilon`, whose UNet has one level only."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(models_dir / "epsilon", folder / "epsilon")
    tiny_unet(**ONE_LEVEL).save_pretrained(folder / "epsilon" / "unet")
    return folder


@pytest.fixture
def graphs():
    """Dynamo's counters, reset."""
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "shapes, flags",
    [
        (2, ["--train_batch_size=4", "--gradient_checkpointing"]),  # seven images: a batch of 4, one of 3
        (1, ["--mixed_precision=bf16", "--activation=swish", "--dropout_structure=0,0.3,0", "--quantize=nf4"]),
    ],
)
def test_compiled_training_equals_eager(small_models, images_dir, tmp_path, monkeypatch, graphs, shapes, flags):
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    flags += ["--max_train_steps=4", "--logging_steps=1", "--learning_rate=1e-3", "--name=x"]
    flags += ["--weight_init=xavier_normal", "--validation_split=0.01"]
    preview = ["--validation_prompt=a cat", "--validation_steps=2", "--validation_inference_steps=2"]
    train_here(small_models, images_dir, tmp_path / "plain", *flags)
    train_here(small_models, images_dir, tmp_path / "compiled", *flags, *preview, "--compile")
    assert graphs["stats"]["unique_graphs"] - 1 == shapes  # besides the function of check_compiler
    assert not graphs["graph_break"]
    close = {"rel": 2e-2} if "--mixed_precision=bf16" in flags else {"rel": 1e-5}
    losses = [read_csv(tmp_path / run / "hypernetwork_loss.csv", "loss") for run in ("compiled", "plain")]
    assert losses[0] == pytest.approx(losses[1], **close)


def test_batch_shapes_are_counted():
    sizes = [(64, 64)] * 5 + [(64, 128)] * 4
    records = [ImageRecord(row, str(row), *size, False, size) for row, size in enumerate(sizes)]
    assert EpochBatchSampler(records, 2, seed=0).shape_count == 3  # 2 and 1 of the first size, 2 of the second
    assert EpochBatchSampler(records, 2, seed=0, num_processes=2).shape_count == 3  # 4 and 1; 4


def test_too_many_shapes_are_refused():
    check_shapes(32)
    with pytest.raises(UserError, match="--compile: .* 33 "):
        check_shapes(33)


def test_broken_compiler_is_refused(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(UserError, match="--compile: .*no compiler"):
        check_compiler(torch.device("cpu"))


def test_inductor_knows_the_options():
    assert set(compilation.OPTIONS) <= set(torch._inductor.list_options())
