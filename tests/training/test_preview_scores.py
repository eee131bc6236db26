"""Scores of previews against the same steps one by one; what is scored, and what happens when that fails."""

import types

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import hypernet
from hypernet.config import TrainingConfig
from hypernet.data.dataset import encode_dataset
from hypernet.data.processes import ALONE
from hypernet.data.prompts import PromptSampler
from hypernet.data.validation_split import encode_validation, open_validation_folder, split_validation
from hypernet.modeling.attachment import set_strength
from hypernet.stable_diffusion.conditioning import build_conditions, time_ids
from hypernet.stable_diffusion.text_encoding import encode_prompts
from hypernet.training import preview_scores
from hypernet.training.base_samples import build_previewer, sample_base, samples_folder
from hypernet.training.failures import Failures
from hypernet.training.preview_scores import STYLE_SEED, PreviewScores, prepare_scores
from hypernet.training.previews import BASE, Previewer
from hypernet.training.prompt_fidelity import choose_alternatives, prompt_margin
from hypernet.training.style_distance import extract_features, fit_axes, style_distance
from hypernet.utils.hashing import derive_seed
from tests.conftest import MEASURE_BASE
from tests.helpers.image_sets import index_folder
from tests.helpers.tiny_models import open_models, tiny_hypernetwork

STEPS = "--validation_inference_steps=2"
WIDTHS = {"epsilon": [12, 16, 32], "xl": [16, 32, 36]}


def made_run(config, models):
    """Return what scoring needs of a run."""
    AcceleratorState._reset_state(True)  # an earlier test may have trained in another precision
    accelerator = Accelerator(cpu=True)
    identity = types.SimpleNamespace(contents={"UNet": models.hash})
    return types.SimpleNamespace(
        config=config,
        accelerator=accelerator,
        failures=Failures(accelerator),
        processes=ALONE,
        dtype=torch.float32,
        folder=types.SimpleNamespace(identity=identity),
        checkpoint=None,
    )


def open_scores(models_dir, images_dir, tmp_path, *flags, model="epsilon"):
    """Return the models, the scores as a run prepares them, and the datasets of training and validation images."""
    config, source, records = index_folder(models_dir, images_dir, tmp_path, STEPS, *flags, model=model)
    models, validation = open_models(models_dir / model), None
    if config.has_validation:
        held, held_records, records = split_validation(source, open_validation_folder(config), records, config, 8)
        validation = encode_validation(models, held, held_records, config, torch.float32)
    dataset = encode_dataset(models, source, records, config, torch.float32)
    run = made_run(config, models)
    previewer = Previewer(models, config, run.accelerator, run.failures) if config.has_previews else None
    return models, prepare_scores(run, models, previewer, dataset, validation), dataset, validation


@pytest.fixture(scope="module", autouse=True)
def clear_prompts():
    """Let tiny models with random weights see every prompt somewhat, as the real ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview_scores, "prompt_margin", lambda *of: abs(prompt_margin(*of)))
        patch.setattr(PreviewScores, "measure_base", MEASURE_BASE)
        yield


@pytest.fixture(scope="module")
def one_prompt(models_dir, images_dir, tmp_path_factory):
    """The scores of two images of one prompt, and the UNet with a hypernetwork that clearly changes them."""
    flags = ["--validation_prompt=a cat on a roof", "--num_validation_images=2"]
    models, scores, *_ = open_scores(models_dir, images_dir, tmp_path_factory.mktemp("one"), *flags)
    scores.measure_base()
    hypernet.attach(models.unet, tiny_hypernetwork(biases=True))
    return scores, models.unet


@pytest.mark.parametrize("model", ["epsilon", "xl"])
def test_scores_equal_the_same_steps_one_by_one(models_dir, images_dir, tmp_path, model):
    (tmp_path / "more.yaml").write_text("- {prompt: a blue fish, width: 96, seed: 3}")
    flags = ["--validation_prompt=a red star", f"--validation_prompts_file={tmp_path / 'more.yaml'}"]
    flags += ["--num_validation_images=2", "--validation_split=0.3"]
    models, scores, dataset, validation = open_scores(models_dir, images_dir, tmp_path, *flags, model=model)
    plain = open_models(models_dir / model)  # to which nothing is attached
    hypernetwork = tiny_hypernetwork(widths=WIDTHS[model], biases=True)
    state = torch.get_rng_state()
    scores.measure_base()
    base = scores.previewer.sample(state=BASE)
    hypernet.attach(models.unet, hypernetwork)
    values = scores.measure(("a state", 1))
    images = scores.previewer.sample(state=("a state", 1))
    assert torch.equal(torch.get_rng_state(), state) and scores.values == values
    hypernet.detach(models.unet)

    def ids_of(width, height):
        return time_ids((height, width), (0, 0), (height, width)) if model == "xl" else None

    def features(latents, ids, seed):
        conditions = build_conditions(encode_prompts(plain, [""]), None if ids is None else ids[None])
        return extract_features(plain.unet, plain.scheduler, latents[None], conditions, seed)

    def features_of(data):
        latents = [data.latents.sample(index, 0, 0, None) for index in range(len(data))]
        return [features(each, ids_of(64, 64), index) for index, each in enumerate(latents)]

    captions = [of_image[0] for of_image in dataset.prompts.captions]
    shown = build_previewer(made_run(scores.previewer.config, plain), plain, captions, STYLE_SEED)
    assert shown.prompts == scores._style_prompts and len(captions) == len(dataset)
    plain_images = [images[0] for images in shown.sample().values()]
    generated = [features(image, ids_of(64, 64), number) for number, image in enumerate(plain_images)]
    axes = fit_axes(features_of(dataset), generated, features_of(validation))
    own = [0.0, 0.0]
    for number, caption in enumerate(captions):
        others = choose_alternatives(caption, ["a red star", "a blue fish", *captions])
        embeds, ids = encode_prompts(plain, [caption, *others]), ids_of(64, 64)
        for kind, image in enumerate((dataset.latents.sample(number, 0, 0, None), plain_images[number])):
            own[kind] += abs(prompt_margin(plain.unet, plain.scheduler, image, embeds, ids, number, 4))
    assert scores.own_fidelity == pytest.approx(own[0] / own[1], rel=1e-3)
    margins, places = [0.0, 0.0], [[], []]
    for kind, latents in enumerate((base, images)):
        assert [of_prompt.shape for of_prompt in latents.values()] == [(2, 4, 8, 8), (2, 4, 8, 12)]
        for number, (prompt, width) in enumerate([("a red star", 64), ("a blue fish", 96)]):
            others = choose_alternatives(prompt, ["a red star", "a blue fish", *captions])
            embeds, ids = encode_prompts(plain, [prompt, *others]), ids_of(width, 64)
            for i, image in enumerate(latents[number]):
                seed = derive_seed(number, i)
                margins[kind] += abs(prompt_margin(plain.unet, plain.scheduler, image, embeds, ids, seed, 4))
                places[kind].append([axis.place(each) for axis, each in zip(axes, features(image, ids, seed))])
    fidelity, distance = margins[1] / margins[0], style_distance(axes, places[1], places[0])
    expected = {"prompt_fidelity": fidelity, "style_distance": distance}
    expected["score"] = min(fidelity, 1.0) * min(max(0.0, 1 - distance), 1.0)
    assert values == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_hypernetwork_without_effect_scores_like_the_base_model(one_prompt):
    scores, unet = one_prompt
    changed = scores.measure("with it")
    assert changed["prompt_fidelity"] != pytest.approx(1, abs=1e-3)
    set_strength(unet, 0.0)
    same = scores.measure("without it")
    assert same == pytest.approx({"prompt_fidelity": 1, "style_distance": 1, "score": 0}, abs=1e-6)
    assert scores.measure("with it again") == changed  # scoring restores the strength


def test_images_of_nan_show_nothing(one_prompt, monkeypatch):
    scores, _ = one_prompt
    images = scores.previewer.sample(state="with it")
    whole = scores.measure("with it")
    for ruined, part in (([0], 0.9), ([0, 1], 0.0)):
        latents = images[0].clone()
        latents[ruined] = torch.nan
        monkeypatch.setattr(scores.previewer, "sample", lambda *_, latents=latents: {0: latents})
        values = scores.measure("ruined")
        assert 0 <= values["prompt_fidelity"] <= part * whole["prompt_fidelity"]
    assert values == pytest.approx({"prompt_fidelity": 0, "style_distance": 1, "score": 0})
    monkeypatch.undo()
    assert scores.measure("with it") == whole and not scores.previewer.failures.lines


def test_a_failure_costs_one_measurement(one_prompt, monkeypatch):
    scores, _ = one_prompt
    whole = scores.measure("with it")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(preview_scores, "prompt_margin", fail)
        assert scores.measure("another") == scores.values == {} == scores.measure("a third")
    (line,) = scores.previewer.failures.lines
    assert "out of memory" in line
    assert scores.measure("with it") == scores.values == whole
    scores.previewer.failures.lines.clear()


@pytest.mark.parametrize("fails", ["sampling", "nan"])
def test_a_base_model_that_cannot_be_scored_leaves_the_run_without_scores(
    models_dir, images_dir, tmp_path, monkeypatch, fails
):
    models, scores, *_ = open_scores(models_dir, images_dir, tmp_path, "--validation_prompt=a cat")

    def fail(*_):
        if fails == "nan":
            return torch.full((1, 4, 8, 8), torch.nan)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Previewer, "sample_prompt", fail)
        scores.measure_base()
    hypernet.attach(models.unet, tiny_hypernetwork())
    assert scores.measure("a state") == scores.values == {}
    assert len(scores.previewer.failures.lines) == 1


class Captioned:
    """Images of which only the captions are known."""

    def __init__(self, *captions, templates=("[filewords]",)):
        named = [(caption,) for caption in captions]
        self.prompts = PromptSampler(list(captions), named, list(templates), name="ink", seed=0)

    def __len__(self):
        return len(self.prompts.captions)


@pytest.mark.parametrize(
    "images, validation, expected",
    [
        (Captioned("a cat", "a dog"), None, None),
        (Captioned("", ""), Captioned(""), None),
        (Captioned("a cat", "a cat"), Captioned("a cat"), ["a cat"]),
        (Captioned("a cat", ""), Captioned("a dog"), ["a dog", "a cat"]),
        (Captioned(*"bcdefghijk"), Captioned("a"), ["a", "b", "d", "f", "h", "j"]),
        (
            Captioned("a cat", templates=["[filewords], by [name]"]),
            Captioned("a dog"),
            ["a dog, by ink", "a cat, by ink"],
        ),
    ],
)
def test_without_previews_images_of_captions_are_scored(epsilon_models, images, validation, expected):
    options = {"resolution": "64", "validation_seed": -1, "seed": 7, "name": "ink", "num_validation_images": 3}
    run = made_run(TrainingConfig(**options), epsilon_models)
    scores = prepare_scores(run, epsilon_models, None, images, validation)
    if expected is None:
        assert scores is None
        return
    prompts = scores.previewer.prompts
    assert [prompt.prompt for prompt in prompts] == expected
    assert [prompt.seed for prompt in prompts] == [7 + number for number in range(len(expected))]
    assert scores.previewer.config.num_validation_images == 1 and {prompt.size for prompt in prompts} == {(64, 64)}


def test_images_of_the_base_model_are_generated_once(epsilon_models, tmp_path, monkeypatch):
    options = {"resolution": "64", "cache_dir": str(tmp_path), "validation_inference_steps": 2}

    def sample(texts, **changed):
        run = made_run(TrainingConfig(**{**options, **changed}), epsilon_models)
        return sample_base(run, epsilon_models, build_previewer(run, epsilon_models, texts, 5), "")

    first = sample(["a cat", "a dog"])
    run = made_run(TrainingConfig(**options), epsilon_models)
    plain = build_previewer(run, epsilon_models, ["a cat", "a dog"], 5).sample()
    assert all(torch.equal(mine, plain[number][0]) for number, mine in enumerate(first))
    sampled, sample_prompt = [], Previewer.sample_prompt
    monkeypatch.setattr(Previewer, "sample_prompt", lambda *of: sampled.append(of[1].prompt) or sample_prompt(*of))
    assert all(torch.equal(one, other) for one, other in zip(first, sample(["a cat", "a dog"]))) and not sampled
    sample(["a cat", "a bird"])
    assert sampled == ["a bird"]
    scheduler = epsilon_models.pipeline.scheduler
    folder, names = samples_folder(run, epsilon_models), ["a", "b", "c"]
    for order in (names, names[::-1]):  # of a set, which differs between processes
        scheduler.register_to_config(_use_default_values=order)
        assert samples_folder(run, epsilon_models) == folder
    sample(["a cat"], validation_guidance_scale=1.0)
    assert sampled == ["a bird", "a cat"]
