"""Every option of the training script, once, with its meaning, and what values of it can work."""

import dataclasses
import math
import re
from pathlib import Path

from transformers.hf_argparser import HfArg

from hypernet.captions import check_word_regex, read_templates
from hypernet.errors import UserError
from hypernet.network import check_structure
from hypernet.pictures import check_color
from hypernet.schedule import Schedule, parse_schedule
from hypernet.sizes import aspect_buckets

TRACKERS = ("wandb", "tensorboard", "all", "none")
PRECISIONS = ("no", "fp16", "bf16")
CROPS = ("center", "random", "none")
STRUCTURE_OPTIONS = ("widths", "layer_structure", "activation", "weight_init", "layer_norm", "layer_norm_init")
STRUCTURE_OPTIONS += ("activate_output", "dropout_structure")
LATENT_SAMPLINGS = ("deterministic", "once", "random")


# fmt: off
@dataclasses.dataclass
class TrainingConfig:
    """The options of `train_hypernetwork.py`; building one checks them.

    Raises:
        UserError: for a value that cannot work.
    """

    # Model
    pretrained_model_name_or_path: str | None = HfArg(default=None, help="Stable Diffusion to train on: a diffusers folder or Hub id.")
    revision: str | None = HfArg(default=None, help="Branch, tag or commit of the Hub id.")
    variant: str | None = HfArg(default=None, help='Variant of its weight files, such as "fp16".')
    # Data
    train_data_dir: str | None = HfArg(default=None, help="Folder of images, sub-folders too; the caption of an image is NAME.txt beside it, else its entry in metadata.jsonl or metadata.csv, else its file name.")
    dataset_name: str | None = HfArg(default=None, help="Instead of a folder: a data set of the Hub, or one that datasets has saved here.")
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of that data set, if it has several.")
    image_column: str = HfArg(default="image", help="Its column of images.")
    caption_column: str = HfArg(default="text", help='Column of captions of the data set or metadata file; a list of captions is drawn from; "" for none.')
    filename_word_regex: str | None = HfArg(default=None, help="Take only the matches of this pattern from a file name that is a caption.")
    filename_join_string: str = HfArg(default=" ", help="What joins these matches.")
    resolution: str = HfArg(default="512", help="Size of the training images in pixels: a side, or WIDTHxHEIGHT.")
    crop: str = HfArg(default="center", help="What of an image of another shape is kept: center, random (one of --crop_variants places each time), or none (all of it, squeezed).")
    crop_variants: int | None = HfArg(default=None, help="Random crops of each image; default: 4.")
    aspect_buckets: bool = HfArg(default=False, help="Train each image at the size nearest to its shape, of about as many pixels as --resolution, sides multiples of 64.")
    bucket_upscale: bool = HfArg(default=False, help="Enlarge images that are smaller than their bucket; otherwise they get a smaller size.")
    varsize: bool = HfArg(default=False, help="Train each image at its own size, cut to a multiple of what the model needs; --resolution is then that of the previews.")
    random_flip: bool = HfArg(default=False, help="Mirror images left to right, every other time.")
    alpha_weight: bool = HfArg(default=False, help="Weight the loss by the image's transparency: what is opaque counts, what is clear does not.")
    alpha_background: str = HfArg(default="white", help="Colour that is put behind what is transparent.")
    template: str = HfArg(default="[filewords]", help="Prompt text, or a file of them of which one is drawn each time, or one of the shipped files: style, style_filewords, subject, subject_filewords, hypernetwork, none; [filewords] is the caption, [name] the hypernetwork's name.")
    shuffle_tags: bool = HfArg(default=False, help="Shuffle the caption's tags (what stands between commas) each time.")
    keep_tags: int = HfArg(default=0, help="So many first tags are neither shuffled nor dropped.")
    tag_dropout: float = HfArg(default=0.0, help="Probability to leave out each tag.")
    caption_dropout: float = HfArg(default=0.0, help="Probability of an empty prompt, for classifier-free guidance.")
    caption_variants: int | None = HfArg(default=None, help="With shuffled or dropped tags: draw so many prompts for each image and cache them; default: new ones each time, encoded at each step.")
    latent_sampling: str = HfArg(default="deterministic", help="What of the VAE's distribution is taken: deterministic (its mean), once (one sample, kept), random (a new sample each time).")
    cache_dir: str | None = HfArg(default=None, help="Where encoded images and prompts are kept; default: the cache folder of datasets.")
    # Hypernetwork
    name: str | None = HfArg(default=None, help="What prompts and files call it; default: the output folder's name.")
    init_from: str | None = HfArg(default=None, help="Go on training this hypernetwork (a WebUI .pt, a folder, a .safetensors): its structure, weights and step, and the optimizer's state beside a .pt or in a training state.")
    widths: str | None = HfArg(default=None, help='Context widths to transform, such as "320,640,768,1280"; default: all that the UNet has.')
    layer_structure: str = HfArg(default="1,2,1", help="Layer widths as multiples of the context width, first and last 1.")
    activation: str = HfArg(default="linear", help="Activation between the layers by the WebUI's name: linear (none), relu, leakyrelu, elu, swish, mish, ...")
    weight_init: str = HfArg(default="normal", help="normal, xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, or zero (starts as the identity).")
    layer_norm: bool = HfArg(default=False, help="A LayerNorm after every layer.")
    layer_norm_init: str = HfArg(default="ones", help="Start of the LayerNorm weights: ones, or normal (the WebUI's, which learns next to nothing).")
    activate_output: bool = HfArg(default=False, help="The activation after the last layer, too.")
    dropout_structure: str | None = HfArg(default=None, help='Dropout probability per entry of the layer structure, such as "0,0.3,0"; default: none.')
    # Training
    output_dir: str = HfArg(default="output/hypernetwork", help="Folder for everything the run writes.")
    overwrite: bool = HfArg(default=False, help="Start anew and delete the earlier run in the output folder; leave it out to resume.")
    learning_rate: str = HfArg(default="1e-5", help='A number, or a schedule: "5e-6:12000, 5e-7:30000" is 5e-6 up to step 12000, then 5e-7 up to 30000.')
    max_train_steps: int = HfArg(default=10000, help="Optimizer updates; a learning rate schedule that ends earlier ends the training.")
    train_batch_size: int = HfArg(default=1, help="Images per process in one forward pass.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Forward passes per optimizer update.")
    gradient_checkpointing: bool = HfArg(default=False, help="Compute activations twice to save memory.")
    mixed_precision: str | None = HfArg(default=None, help="Precision of the frozen model: no (float32), fp16 or bf16, the hypernetwork stays float32; default: what accelerate is set to.")
    max_grad_norm: float = HfArg(default=1.0, help="Gradients are clipped to this norm; 0 turns clipping off.")
    adam_beta1: float = HfArg(default=0.9, help="AdamW's beta1.")
    adam_beta2: float = HfArg(default=0.999, help="AdamW's beta2.")
    adam_weight_decay: float = HfArg(default=0.01, help="AdamW's weight decay.")
    adam_epsilon: float = HfArg(default=1e-8, help="AdamW's epsilon.")
    seed: int = HfArg(default=0, help="Of the initial weights, the order of the images, noise, timesteps and previews.")
    # Checkpoints and previews
    checkpointing_steps: int = HfArg(default=500, help="Save the training state every so many steps.")
    checkpoints_total_limit: int | None = HfArg(default=None, help="Keep only so many of the newest training states.")
    resume_from_checkpoint: str = HfArg(default="latest", help='Training state to go on from: "latest" of the output folder, a folder under its checkpoints, or "none".')
    validation_prompt: list[str] | None = HfArg(default=None, help="One or more prompts to draw previews of.")
    validation_steps: int = HfArg(default=500, help="Draw previews every so many steps.")
    num_validation_images: int = HfArg(default=1, help="Previews per prompt, with the seeds seed, seed + 1, ...")
    validation_guidance_scale: float = HfArg(default=7.5, help="Guidance scale of the previews.")
    validation_inference_steps: int = HfArg(default=25, help="Sampling steps of the previews.")
    # Reports
    logging_steps: int = HfArg(default=10, help="Log the mean loss of so many steps, to the console, hypernetwork_loss.csv and the trackers.")
    report_to: str = HfArg(default="wandb", help="Trackers: wandb (offline if not logged in), tensorboard (to be installed), all or none.")
    tracker_project_name: str = HfArg(default="hypernetworks", help="The project's name in W&B.")
    push_to_hub: bool = HfArg(default=False, help="Upload the hypernetwork, its card and previews to the Hugging Face Hub at the end.")
    hub_model_id: str | None = HfArg(default=None, help="Hub repository to push to; default: the hypernetwork's name in your account.")

    # fmt: on
    def __post_init__(self):
        self._require("pretrained_model_name_or_path", "the model, such as stable-diffusion-v1-5/stable-diffusion-v1-5")
        self._check_data()
        self._choose("mixed_precision", (*PRECISIONS, None))
        self._choose("report_to", TRACKERS)
        self._at_least(1, "max_train_steps", "train_batch_size", "gradient_accumulation_steps")
        self._at_least(1, "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images")
        self._at_least(1, "validation_inference_steps", "logging_steps")
        self._at_least(0, "max_grad_norm", "adam_weight_decay", "adam_epsilon", "seed")
        self._below_one("adam_beta1", "adam_beta2")
        if self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: it must be below 2**32")
        self.name = self.name or Path(self.output_dir).resolve().name
        if set(self.name) & set('<>:"/\\|?*') or self.name in (".", ".."):
            raise UserError(f"--name {self.name}: it becomes a file name, so none of < > : \" / \\ | ? *")
        output, pictures = Path(self.output_dir).resolve(), self.train_data_dir
        if pictures and output.is_relative_to(Path(pictures).resolve()):
            raise UserError(f"--output_dir {self.output_dir}: it lies in --train_data_dir; name a folder outside")
        self._check("learning_rate", lambda: self.schedule)
        self._check("template", lambda: self.templates)
        without_words = not any("[filewords]" in template for template in self.templates)
        for option in ("shuffle_tags", "tag_dropout"):
            self._refuse_if(without_words, option, f"--template {self.template} has no [filewords]")
        for option in ("layer_structure", "dropout_structure", "widths"):
            self._check(option, lambda option=option: getattr(self, f"{option}_numbers"))
        self._check(None, lambda: check_structure(**self.structure()))

    def _check_data(self):
        if not self.dataset_name:
            self._require("train_data_dir", "a folder of images (or --dataset_name, a data set)")
        self._choose("crop", CROPS)
        self._choose("latent_sampling", LATENT_SAMPLINGS)
        self._at_least(1, "crop_variants", "caption_variants")
        self._at_least(0, "keep_tags")
        self._probability("tag_dropout", "caption_dropout")
        self._check("resolution", lambda: self.size)
        self._check("alpha_background", lambda: check_color(self.alpha_background))
        self._check("filename_word_regex", lambda: check_word_regex(self.filename_word_regex or ""))
        if self.aspect_buckets:
            self._check("resolution", lambda: aspect_buckets(*self.size))
        draws_tags = self.shuffle_tags or self.tag_dropout > 0
        self.train_data_dir, self.dataset_name = self.train_data_dir or None, self.dataset_name or None
        both = 'name a folder or a data set, not both (--train_data_dir "" takes out what a --config says)'
        self._refuse_if(self.dataset_name, "train_data_dir", both)
        self._refuse_if(not self.dataset_name, "dataset_config_name", "it belongs to --dataset_name")
        self._refuse_if(not self.dataset_name, "image_column", "it belongs to --dataset_name")
        self._refuse_if(self.dataset_name, "filename_word_regex", "it belongs to --train_data_dir")
        self._refuse_if(not self.filename_word_regex, "filename_join_string", "it belongs to --filename_word_regex")
        self._refuse_if(self.crop != "random", "crop_variants", "it belongs to --crop random")
        self._refuse_if(not self.aspect_buckets, "bucket_upscale", "it belongs to --aspect_buckets")
        self._refuse_if(self.aspect_buckets, "varsize", "choose it or --aspect_buckets")
        for option in ("keep_tags", "caption_variants"):
            self._refuse_if(not draws_tags, option, "it belongs to --shuffle_tags or --tag_dropout")

    def _refuse_if(self, forbidden, option, reason):
        """Refuse an option that would do nothing here, unless it has its default."""
        value = getattr(self, option)
        default = next(field.default for field in dataclasses.fields(self) if field.name == option)
        if forbidden and value != default:
            raise UserError(f"--{option}{'' if value is True else f' {value}'}: {reason}")

    def _probability(self, *options):
        for option in options:
            if not 0 <= getattr(self, option) <= 1:
                raise UserError(f"--{option} {getattr(self, option)}: a probability is from 0 to 1")

    def _require(self, option, meaning):
        if not getattr(self, option):
            raise UserError(f"--{option} is missing: {meaning}")

    def _choose(self, option, choices):
        if getattr(self, option) not in choices:
            raise UserError(f"--{option} {getattr(self, option)}: choose one of {', '.join(filter(None, choices))}")

    def _at_least(self, lowest, *options):
        for option in options:
            value = getattr(self, option)
            if value is not None and not value >= lowest:
                raise UserError(f"--{option} {value}: it must be {lowest} or more")

    def _below_one(self, *options):
        for option in options:
            if not 0 <= getattr(self, option) < 1:
                raise UserError(f"--{option} {getattr(self, option)}: it must be from 0 to below 1")

    def _check(self, option, build):
        try:
            build()
        except ValueError as error:
            raise UserError(f"--{option} {error}" if option else f"--{error}") from None

    @property
    def schedule(self) -> Schedule:
        return parse_schedule(self.learning_rate, self.max_train_steps)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the training images."""
        match = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", str(self.resolution).lower())
        if not match or 0 in (size := (int(match[1]), int(match[2] or match[1]))):
            raise ValueError(f"{self.resolution}: write a side, such as 512, or WIDTHxHEIGHT, such as 768x512")
        return size

    @property
    def templates(self) -> list[str]:
        return read_templates(self.template)

    @property
    def layer_structure_numbers(self) -> list[float]:
        return _numbers(self.layer_structure)

    @property
    def dropout_structure_numbers(self) -> list[float] | None:
        return None if self.dropout_structure is None else _numbers(self.dropout_structure)

    @property
    def widths_numbers(self) -> list[int] | None:
        """The widths asked for, or None for all that the UNet has."""
        return None if self.widths is None else sorted(set(_numbers(self.widths)))

    def structure(self) -> dict:
        """What `Hypernetwork` takes, but for the widths, the name and the base model."""
        return {
            "layer_structure": self.layer_structure_numbers,
            "activation": self.activation,
            "weight_init": self.weight_init,
            "layer_norm": self.layer_norm,
            "layer_norm_init": self.layer_norm_init,
            "activate_output": self.activate_output,
            "dropout_structure": self.dropout_structure_numbers,
        }

    def portable_options(self) -> dict:
        """All options, with the paths of model and images made absolute, so that they hold wherever one stands."""
        options = dataclasses.asdict(self)
        for key in ("pretrained_model_name_or_path", "train_data_dir", "dataset_name", "init_from"):
            if options[key] and Path(options[key]).exists():
                options[key] = str(Path(options[key]).resolve())
        return options

    def run_identity(self) -> set[str]:
        """The options that make two runs different runs: all but those that a run may change when it is resumed."""
        changeable = {"output_dir", "overwrite", "cache_dir", "resume_from_checkpoint", "max_train_steps", "report_to"}
        changeable |= {"checkpointing_steps", "checkpoints_total_limit", "logging_steps", "tracker_project_name"}
        changeable |= {"push_to_hub", "hub_model_id", "learning_rate"}
        names = {field.name for field in dataclasses.fields(self)}
        return names - changeable - {name for name in names if "validation" in name}


def _numbers(text):
    """ "1, 2, 1" -> [1, 2, 1]; a whole number becomes an int."""
    numbers = []
    for item in str(text).split(","):
        try:
            number = float(item)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{text}: {item.strip()!r} is not a number; write numbers with commas between them")
        numbers.append(int(number) if number == int(number) else number)
    return numbers
