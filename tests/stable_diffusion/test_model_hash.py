"""Hashes of base models change with the weights, and with nothing else."""

import torch

from hypernet.stable_diffusion.model_hash import weights_hash
from tests.helpers.tiny_models import open_models, tiny_unet


def test_hash_of_a_folder_does_not_depend_on_the_precision(models_dir):
    precisions = (torch.float32, torch.float16, torch.bfloat16)
    hashes = {open_models(models_dir / "epsilon", dtype).hash for dtype in precisions}
    assert hashes == {weights_hash(tiny_unet(), torch.float16)}


def test_hash_changes_with_the_weights():
    unet = tiny_unet()
    before, rounded = weights_hash(unet), weights_hash(unet, torch.float16)
    assert before == weights_hash(tiny_unet()) != weights_hash(tiny_unet(seed=1))
    assert rounded != before and weights_hash(unet.half(), torch.float16) == rounded
