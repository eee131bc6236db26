"""--compile: one graph for each shape of a batch, the training that it would be without, and no trust in wrong gradients.

The graphs are run by torch itself, for inductor takes minutes; what it makes of them is tried in every run.
"""

import csv

import pytest
import torch
from torch._dynamo.utils import counters

from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.image_index import ImageRecord
from hypernet.training import compilation as compiling
from hypernet.training.compilation import check_compiler, check_shapes
from hypernet.utils.errors import UserError
from tests.helpers.scripts import train_here


@pytest.fixture
def graphs():
    """What dynamo counts."""
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def losses(folder):
    return [float(row["loss"]) for row in csv.DictReader(open(folder / "hypernetwork_loss.csv"))]


@pytest.mark.parametrize(
    "shapes, flags",
    [
        (2, ["--train_batch_size=4", "--gradient_checkpointing"]),  # of seven, and 3 are left over
        (1, ["--mixed_precision=bf16", "--activation=swish", "--dropout_structure=0,0.3,0", "--quantize=nf4"]),
    ],
)
def test_the_same_training(models_dir, images_dir, tmp_path, monkeypatch, graphs, shapes, flags):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    flags += ["--max_train_steps=4", "--logging_steps=1", "--learning_rate=1e-3", "--name=x"]
    flags += ["--weight_init=xavier_normal", "--validation_split=0.01"]
    preview = ["--validation_prompt=a cat", "--validation_steps=2", "--validation_inference_steps=2"]
    train_here(models_dir, images_dir, tmp_path / "plain", *flags)
    train_here(models_dir, images_dir, tmp_path / "compiled", *flags, *preview, "--compile")
    assert graphs["stats"]["unique_graphs"] - 1 == shapes  # and the few numbers at the start
    assert not graphs["graph_break"]
    close = {"rel": 2e-2} if "--mixed_precision=bf16" in flags else {"rel": 1e-5}
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), **close)


def test_what_cannot_be_compiled(monkeypatch):
    sizes = [(64, 64)] * 5 + [(64, 128)] * 4
    pictures = [ImageRecord(row, str(row), *size, False, size) for row, size in enumerate(sizes)]
    assert EpochBatchSampler(pictures, 2, seed=0).shapes == 3  # 2 and 1 of the first, 2 of the second
    assert EpochBatchSampler(pictures, 2, seed=0, processes=2).shapes == 3  # 4 and 1; 4
    assert set(compiling.OPTIONS) <= set(torch._inductor.list_options())
    check_shapes(32)
    with pytest.raises(UserError, match="--compile: images come in batches of 33 shapes"):
        check_shapes(33)

    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(UserError, match="--compile: torch.compile does not work here .*no compiler"):
        check_compiler(torch.device("cpu"))
