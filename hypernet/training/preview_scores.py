"""Score what a hypernetwork generates: does it still show the prompts, and how near is it to the training images?

Both numbers come from the base model itself, and are relative to the same images generated without the hypernetwork.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch

from hypernet.data.dataset import TrainingDataset
from hypernet.data.prompts import with_template_words
from hypernet.generation.preview_prompts import PreviewPrompt
from hypernet.modeling.attachment import switched_off
from hypernet.stable_diffusion.conditioning import build_conditions, cast_conditions, time_ids
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import Embeds
from hypernet.training.base_samples import build_previewer, sample_base
from hypernet.training.previews import BASE, Latents, Previewer
from hypernet.training.prompt_fidelity import choose_alternatives, prompt_margin
from hypernet.training.run import Run
from hypernet.training.shutdown import gather_shares
from hypernet.training.style_distance import Features, Place, StyleAxis, extract_features, fit_axes, style_distance
from hypernet.utils.errors import OtherProcessError, reason
from hypernet.utils.hashing import derive_seed
from hypernet.utils.sequences import spread

CAPTION_PROMPTS = 6  # scored if there are no previews
STYLE_IMAGES = 16  # training images that define the style, each beside what the base model makes of its caption
VALIDATION_IMAGES = 16  # at most, to set the zero of the style distance
STYLE_SEED = 10_000  # other noise than that of previews, which would otherwise seem to belong to the base model's style
POOL = 1000  # captions to choose alternatives from
LEAST_MARGIN = 1e-4  # mean of the base model's margins; below, its prompts cannot be told apart, and noise decides
UNRECOGNIZED = 0.1  # prompt fidelity of training images below which a note is due
FAILED = "previews could not be scored"

Scores = dict[str, float]


@dataclasses.dataclass
class Judged:
    """What the base model sees in an image.

    Attributes:
        margin: see `prompt_margin`.
        places: where it is on each `StyleAxis`.
    """

    margin: float
    places: list[Place]

    @property
    def is_finite(self) -> bool:
        """Whether there is something to see; a hypernetwork may make the UNet overflow."""
        return all(math.isfinite(number) for number in itertools.chain([self.margin], *self.places))


class PreviewScores:
    """Measures prompt fidelity and style distance of the images that a previewer samples.

    Args:
        previewer: of the images to score.
        texts: what the images of each of its prompts should show.
        pool: texts to compare them with.
        style_images: indices of the images of `dataset` that define the style.
        style_prompts: their captions.
        sample_style: returns the latents of an image for each of `style_prompts`, generated without a hypernetwork.
        validation: the validation images, if there are any.
        judges_captions: measure `own_fidelity`, too.

    Attributes:
        values: "prompt_fidelity", "style_distance" and "score" of the last state measured; none if that has failed.
        own_fidelity: the prompt fidelity of the images that define the style, given their captions. None if it is not
            measured, or the base model cannot tell the captions apart.
    """

    def __init__(
        self,
        models: StableDiffusion,
        previewer: Previewer,
        texts: Sequence[str],
        pool: Iterable[str],
        dataset: TrainingDataset,
        style_images: Sequence[int],
        style_prompts: Sequence[PreviewPrompt],
        sample_style: Callable[[], Sequence[torch.Tensor]],
        validation: TrainingDataset | None,
        judges_captions: bool,
    ) -> None:
        self.models, self.previewer, self.accelerator = models, previewer, previewer.accelerator
        self.values: Scores = {}
        self.own_fidelity: float | None = None
        pool = list(dict.fromkeys([*texts, *pool]))
        captions = [prompt.prompt for prompt in style_prompts] if judges_captions else []
        choices = [[text, *choose_alternatives(text, pool)] for text in [*texts, *captions]]
        encoded = previewer.sampler.encode(["", *(text for choice in choices for text in choice)])
        embeds = [[encoded[text] for text in choice] for choice in choices]
        self._embeds, self._style_embeds = embeds[: len(texts)], embeds[len(texts) :]
        self._empty = encoded[""]
        self._batch_size = max(2, previewer.config.train_batch_size)  # without gradients, as for the validation loss
        self._dataset, self._style_images, self._validation = dataset, style_images, validation
        self._style_prompts, self._sample_style = style_prompts, sample_style
        self._axes: list[StyleAxis] = []
        self._base: dict[tuple[int, int], Judged] = {}  # of each prompt and image, without the hypernetwork

    def measure_base(self) -> None:
        """Measure the base model; no hypernetwork may be attached yet. If that fails, nothing will be scored."""
        try:
            plain = self._sample_style()  # if it fails in one process, it does in all
            shares, problem = gather_shares(lambda: self._start(plain))
        except OtherProcessError:
            raise
        except Exception as error:  # such as out of memory
            shares, problem = [], reason(error)
        self._base = {} if problem else _merge([judged for judged, _ in shares])
        self.own_fidelity = None if problem else shares[0][1]  # the same in all processes
        if problem:
            self.previewer.failures.report(f"{FAILED} ({problem}); the run continues without")

    def _start(self, generated: Sequence[torch.Tensor]) -> tuple[dict[tuple[int, int], Judged], float | None]:
        """Find the style's axes. Return what this process's images show without the hypernetwork, and `own_fidelity`.

        Args:
            generated: the latents of an image of each style prompt.

        Raises:
            ValueError: if the base model's images cannot be judged.
        """
        images = [self._features_of(self._dataset, index) for index in self._style_images]
        plain = [
            self._features(latents, self._time_ids(prompt), number)
            for number, (latents, prompt) in enumerate(zip(generated, self._style_prompts, strict=True))
        ]
        count = 0 if self._validation is None else min(VALIDATION_IMAGES, len(self._validation))
        more = [self._features_of(self._validation, index) for index in range(count)] if self._validation else []
        self._axes = fit_axes(images, plain, more)
        judged = self._judge(self.previewer.sample(state=BASE), lambda: None)
        if not all(each.is_finite for each in judged.values()):
            raise ValueError("the base model gives NaN")
        return judged, self._measure_own(generated)

    @property
    def note(self) -> str | None:
        """A note if the base model cannot match the training images to their captions, else None."""
        if self.own_fidelity is None or self.own_fidelity >= UNRECOGNIZED:
            return None
        return (
            f"the base model can hardly match your images to their captions (prompt fidelity {self.own_fidelity:.2f}, of "
            "its own images 1): either the captions describe something else, or the style is far from anything that the "
            "base model knows. In the second case, the guard may take the style for lost subjects; "
            "--min_prompt_fidelity 0 prevents that"
        )

    def measure(self, state: object, check: Callable[[], None] = lambda: None) -> Scores:
        """Measure and return `values` of the hypernetwork that is attached.

        Args:
            state: see `Previewer.sample`.
            check: called between forward passes; may raise `Interrupted`.

        Raises:
            Interrupted: on all processes, if `check` has raised it on one.
        """

        def work() -> dict[tuple[int, int], Judged]:
            latents = self.previewer.sample(check, state)
            with switched_off(self.models.unet):
                return self._judge(latents, check)

        if not self._base:
            return {}
        shares, problem = gather_shares(work)
        self.values = {}
        with self.previewer.failures.tolerate(FAILED):
            if problem:
                raise RuntimeError(problem)
            self.values = self._compare(_merge(shares))
        return self.values

    def _judge(self, latents: Latents, check: Callable[[], None]) -> dict[tuple[int, int], Judged]:
        """Return what the base model sees in images, by the number of the prompt and of the image."""
        judged = {}
        for number, images in latents.items():
            ids = self._time_ids(self.previewer.prompts[number])
            for i, image in enumerate(images):
                seed = derive_seed(number, i)
                margin = self._margin(image, self._embeds[number], ids, seed, check)
                features = self._features(image, ids, seed)
                judged[number, i] = Judged(margin, [axis.place(each) for axis, each in zip(self._axes, features)])
        return judged

    def _measure_own(self, generated: Sequence[torch.Tensor]) -> float | None:
        """Return `own_fidelity`; for the arguments, see `_start`."""
        own = possible = 0.0
        for number, (embeds, index) in enumerate(zip(self._style_embeds, self._style_images)):
            latents, ids = self._training_image(self._dataset, index)
            own += self._margin(latents, embeds, ids, number)
            possible += self._margin(generated[number], embeds, self._time_ids(self._style_prompts[number]), number)
        return own / possible if possible > LEAST_MARGIN * len(self._style_embeds) and math.isfinite(own) else None

    def _margin(
        self,
        latents: torch.Tensor,
        embeds: list[Embeds],
        ids: torch.Tensor | None,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ) -> float:
        """See `prompt_margin`."""
        latents, batch_size = latents.to(self.accelerator.device), self._batch_size
        return prompt_margin(self.models.unet, self.models.scheduler, latents, embeds, ids, seed, batch_size, check)

    def _compare(self, judged: dict[tuple[int, int], Judged]) -> Scores:
        """Return the scores of images, relative to those without the hypernetwork.

        An image of NaN shows nothing of its prompt, and is as far from the style as without the hypernetwork.
        """
        base = [self._base[place] for place in judged]
        images = [each if each.is_finite else Judged(0.0, before.places) for each, before in zip(judged.values(), base)]
        values = {}
        possible = sum(each.margin for each in base)
        if possible > LEAST_MARGIN * len(base):
            values["prompt_fidelity"] = max(0.0, sum(each.margin for each in images) / possible)
        places, base_places = [each.places for each in images], [each.places for each in base]
        values["style_distance"] = style_distance(self._axes, places, base_places)
        if "prompt_fidelity" in values:
            values["score"] = min(values["prompt_fidelity"], 1.0) * min(max(1.0 - values["style_distance"], 0.0), 1.0)
        return values

    def _features_of(self, dataset: TrainingDataset, index: int) -> Features:
        return self._features(*self._training_image(dataset, index), index)

    def _training_image(self, dataset: TrainingDataset, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the latents of an image, (channels, height, width), and SDXL's size conditioning."""
        latents = dataset.latents.sample(index, 0, 0, torch.Generator().manual_seed(0))
        return latents, dataset.latents.time_ids(index) if dataset.is_xl else None

    def _features(self, latents: torch.Tensor, ids: torch.Tensor | None, seed: int) -> Features:
        """Return the features of an image, (channels, height, width)."""
        unet, device = self.models.unet, self.accelerator.device
        conditions = build_conditions([self._empty], None if ids is None else ids[None])
        conditions = cast_conditions(conditions, device, unet.dtype)
        return extract_features(unet, self.models.scheduler, latents[None].to(device), conditions, seed)

    def _time_ids(self, prompt: PreviewPrompt) -> torch.Tensor | None:
        """Return SDXL's size conditioning of a prompt's images; None for other models."""
        width, height = prompt.size
        return time_ids((height, width), (0, 0), (height, width)) if self.models.base.is_xl else None


def _merge(shares: list[dict[tuple[int, int], Judged]]) -> dict[tuple[int, int], Judged]:
    """Merge what all processes have judged, in the same order whatever their number."""
    return dict(sorted((place, judged) for share in shares for place, judged in share.items()))


def prepare_scores(
    run: Run,
    models: StableDiffusion,
    previewer: Previewer | None,
    dataset: TrainingDataset,
    validation: TrainingDataset | None,
) -> PreviewScores | None:
    """Return what scores the previews; without previews, images of captions if there are validation images.

    It encodes prompts, so the text encoders must still be there. None if there is nothing to score.
    """
    config, prompts = run.config, dataset.prompts
    captions = prompts.first_captions
    if previewer is not None:
        texts = [prompt.prompt for prompt in previewer.prompts]
    elif validation is not None:
        texts = spread(
            list(dict.fromkeys(filter(None, [*validation.prompts.first_captions, *captions]))), CAPTION_PROMPTS
        )
        words = [with_template_words(prompts.templates, text, str(config.name)) for text in texts]
        previewer = build_previewer(run, models, words) if texts else None
    if previewer is None:
        return None
    style_images = spread(range(len(dataset)), STYLE_IMAGES)
    shown = build_previewer(run, models, [captions[index] for index in style_images], STYLE_SEED)

    def sample_style() -> list[torch.Tensor]:
        return sample_base(run, models, shown, "Generating images to compare the style with")

    pool = spread(captions, POOL)
    judges = validation is not None and config.min_prompt_fidelity > 0 and run.checkpoint is None
    return PreviewScores(
        models, previewer, texts, pool, dataset, style_images, shown.prompts, sample_style, validation, judges
    )
