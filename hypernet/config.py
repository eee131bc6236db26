"""Every option of the training script, once, with its meaning, and what values of it can work."""

import dataclasses
import math
from pathlib import Path

from transformers.hf_argparser import HfArg

from hypernet.data.captions import read_templates
from hypernet.utils.errors import UserError
from hypernet.stable_diffusion.loras import absolute_lora
from hypernet.stable_diffusion.model_source import NAMES as MODEL_OPTIONS
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.optimizers import find_class
from hypernet.cli.option_checks import check_options
from hypernet.training.lr_schedule import Schedule, parse_schedule
from hypernet.data.buckets import parse_size

STRUCTURE_OPTIONS = ("widths", "layer_structure", "activation", "weight_init", "layer_norm", "layer_norm_init")
PATH_OPTIONS = ("pretrained_model_name_or_path", "train_data_dir", "validation_data_dir", "dataset_name", "init_from")
PATH_OPTIONS += ("model_config", "original_config", "pretrained_vae_model_name_or_path")
STRUCTURE_OPTIONS += ("activate_output", "dropout_structure")
# What a run may change when it is resumed
CHANGEABLE = {"output_dir", "overwrite", "cache_dir", "resume_from_checkpoint", "max_train_steps", "num_train_epochs"}
CHANGEABLE |= {"checkpointing_steps", "checkpoints_total_limit", "on_save_error", "logging_steps", "guard"}
CHANGEABLE |= {"learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power"}
CHANGEABLE |= {"clip_grad_mode", "max_grad_norm", "max_grad_value"}
CHANGEABLE |= {"validation_prompt", "validation_steps", "num_validation_images", "validation_guidance_scale"}
CHANGEABLE |= {"validation_inference_steps", "validation_loss_steps", "enable_tiling", "compile"}
CHANGEABLE |= {"report_to", "tracker_project_name", "run_name", "log_artifact", "push_to_hub", "hub_model_id"}

YES_OR_NO = {"nargs": "?", "const": True}  # of an option that may also be left open


# fmt: off
@dataclasses.dataclass
class TrainingConfig:
    """The options of `train_hypernetwork.py`; building one checks them.

    Raises:
        UserError: for a value that cannot work.
    """

    # Model
    pretrained_model_name_or_path: str | None = HfArg(default=None, help="Stable Diffusion 1.x, 2.x or SDXL to train on: a diffusers folder, a Hub id, or a single .safetensors or .ckpt file.")
    revision: str | None = HfArg(default=None, help="Branch, tag or commit of the Hub id.")
    variant: str | None = HfArg(default=None, help='Variant of its weight files, such as "fp16".')
    model_config: str | None = HfArg(default=None, help="Of a single file: a diffusers folder or Hub id of the same kind, whose configs and tokenizers it is read with; default: its kind's on the Hub.")
    original_config: str | None = HfArg(default=None, help="Of a single file: the YAML that it was trained with, in CompVis' or Stability's form.")
    pretrained_vae_model_name_or_path: str | None = HfArg(default=None, help="Another VAE than the model's own: a folder, a Hub id or a file.")
    lora: list[str] | None = HfArg(default=None, help="LoRAs that are folded into the model before the training, each PATH or PATH:SCALE; several may follow, and the option may be repeated.")
    prediction_type: str | None = HfArg(default=None, help="What the model predicts, where its config does not say it right: epsilon, v_prediction, sample.")
    rescale_betas_zero_snr: bool | None = HfArg(default=None, metadata=dict(YES_OR_NO), help="Train and preview with a noise schedule whose last timestep is noise alone, for models that were trained so (v_prediction or sample); default: as the model's config says; false for not.")
    # Text
    clip_skip: int | None = HfArg(default=None, help="Which layer of the text encoder is read, with the WebUI's meaning: 1 is its output, 2 the last but one, ...; default: 1. Of SDXL it means the first encoder, as the WebUI's own setting for SDXL has it, and the default is 2.")
    max_token_chunks: int | None = HfArg(default=None, help="Cut prompts after so many chunks of 75 tokens; default: as many as they need.")
    prompt_emphasis: bool = HfArg(default=False, help="Read the WebUI's prompt syntax: (word) and (word:1.3) weigh more, [word] less, BREAK starts a new chunk (no prompt editing, no AND). Either way \\( and \\) are plain brackets.")
    force_zeros_for_empty_prompt: bool | None = HfArg(default=None, metadata=dict(YES_OR_NO), help="Of SDXL: an empty prompt is zeros, as guidance has it; default: as the model's config says; false for not.")
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
    lr_scheduler: str = HfArg(default="constant", help="How one rate changes with the steps, by diffusers' name: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial.")
    lr_warmup_steps: int = HfArg(default=0, help="Steps of --lr_scheduler in which the rate grows from 0.")
    lr_num_cycles: int = HfArg(default=1, help="Cycles of --lr_scheduler cosine_with_restarts.")
    lr_power: float = HfArg(default=1.0, help="Power of --lr_scheduler polynomial.")
    max_train_steps: int = HfArg(default=10000, help="Optimizer updates; a learning rate schedule that ends earlier ends the training.")
    num_train_epochs: int | None = HfArg(default=None, help="So many times through all images; it replaces --max_train_steps.")
    train_batch_size: int = HfArg(default=1, help="Images per process in one forward pass.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Forward passes per optimizer update.")
    quantize: str | None = HfArg(default=None, help="Hold the frozen UNet's attention blocks in 4 or 8 bits, through bitsandbytes: nf4 or int8; slower and a little less exact, for small cards; int8 is nearer to the whole model, nf4 smaller.")
    compile: bool = HfArg(default=False, help="Compile the training step with torch.compile: some minutes for each shape of a batch when it first comes (size, images, length of the prompts; 32 sizes at most), for faster steps on a GPU; its gradients are tried against the plain ones each time.")
    gradient_checkpointing: bool = HfArg(default=False, help="Compute activations twice to save memory.")
    mixed_precision: str | None = HfArg(default=None, help="Precision of the frozen model: no (float32), fp16 or bf16, the hypernetwork stays float32; default: what accelerate is set to.")
    clip_grad_mode: str = HfArg(default="norm", help="Clip gradients by their norm, each by its value, or none.")
    max_grad_norm: str = HfArg(default="1.0", help="Gradients are clipped to this norm: a number, or a schedule like the learning rate's; 0 clips nothing.")
    max_grad_value: str = HfArg(default="0.1", help="With --clip_grad_mode value: each gradient is clipped to this size; a number or a schedule.")
    optimizer: str = HfArg(default="AdamW", help="Any of torch.optim by name, of bitsandbytes (AdamW8bit, PagedAdamW8bit, Lion8bit, ...), or Prodigy (pip install prodigyopt; its learning rate is 1).")
    use_8bit_adam: bool = HfArg(default=False, help="AdamW with 8-bit moments, a quarter of the memory; the same as --optimizer AdamW8bit.")
    optimizer_args: list[str] | None = HfArg(default=None, help="More of its arguments, such as momentum=0.9 nesterov=true.")
    adam_beta1: float | None = HfArg(default=None, help="The optimizer's beta1; default: its own, AdamW's is 0.9.")
    adam_beta2: float | None = HfArg(default=None, help="The optimizer's beta2; default: its own, AdamW's is 0.999.")
    adam_weight_decay: float | None = HfArg(default=None, help="The optimizer's weight decay; default: its own, AdamW's is 0.01.")
    adam_epsilon: float | None = HfArg(default=None, help="The optimizer's epsilon; default: its own, AdamW's is 1e-8.")
    snr_gamma: float | None = HfArg(default=None, help="Min-SNR weighting of the loss with this gamma; 5 is usual; default: none.")
    noise_offset: float = HfArg(default=0.0, help="Shift each channel's noise by a random number of this size; 0.05 to 0.1 teaches darker and brighter pictures.")
    ema_decay: float = HfArg(default=0.0, help="Preview, validate and export a moving average of the weights with this decay, such as 0.999; 0 for none.")
    seed: int = HfArg(default=0, help="Of the initial weights, the order of the images, noise, timesteps and previews.")
    # Held-out images and the guard
    validation_split: float = HfArg(default=0.0, help="Share of the images that is never trained on; the loss on them tells when a run turns bad.")
    validation_data_dir: str | None = HfArg(default=None, help="Instead of a share: a folder of images that are never trained on.")
    validation_loss_steps: int | None = HfArg(default=None, help="Measure the loss on them every so many steps; default: as --validation_steps.")
    guard: bool = HfArg(default=True, help="When the loss on held-out images has clearly risen, go back to the best state and go on at a tenth of the rate, three times at most (--no_guard: only what is not finite is answered so).")
    # Checkpoints and previews
    checkpointing_steps: int = HfArg(default=500, help="Save the training state every so many steps.")
    checkpoints_total_limit: int | None = HfArg(default=None, help="Keep only so many of the newest training states.")
    resume_from_checkpoint: str = HfArg(default="latest", help='Training state to go on from: "latest" of the output folder, a folder under its checkpoints, or "none".')
    on_save_error: str = HfArg(default="continue", help="When saving fails (a full disk, say): continue, and save at the next chance, or stop.")
    validation_prompt: list[str] | None = HfArg(default=None, help="One or more prompts to draw previews of.")
    validation_steps: int = HfArg(default=500, help="Draw previews every so many steps.")
    num_validation_images: int = HfArg(default=1, help="Previews per prompt, with the seeds seed, seed + 1, ...")
    validation_guidance_scale: float = HfArg(default=7.5, help="Guidance scale of the previews.")
    validation_inference_steps: int = HfArg(default=25, help="Sampling steps of the previews.")
    enable_tiling: bool = HfArg(default=False, help="Decode previews in tiles of 512 pixels, to save memory where they are larger; SDXL's look a little different then.")
    # Reports
    logging_steps: int = HfArg(default=10, help="Log the mean loss of so many steps, to the console, hypernetwork_loss.csv and the trackers.")
    report_to: str = HfArg(default="wandb", help="Trackers: wandb (offline if not logged in), tensorboard (to be installed), all or none.")
    tracker_project_name: str = HfArg(default="hypernetworks", help="The project's name in W&B.")
    run_name: str | None = HfArg(default=None, help="The run's name in W&B; default: --name and the options given beside --config.")
    log_artifact: bool = HfArg(default=False, help="Upload the finished hypernetwork to W&B as an artifact.")
    push_to_hub: bool = HfArg(default=False, help="Upload the hypernetwork, its card and previews to the Hugging Face Hub at the end.")
    hub_model_id: str | None = HfArg(default=None, help="Hub repository to push to; default: the hypernetwork's name in your account.")

    # fmt: on
    def __post_init__(self):
        self.name = self.name or Path(self.output_dir).resolve().name
        self.train_data_dir, self.dataset_name = self.train_data_dir or None, self.dataset_name or None
        self._choose_8bit_adam()
        self.optimizer = find_class(self.optimizer).__name__  # "adamw" and "AdamW" are the same
        check_options(self)

    def _choose_8bit_adam(self):
        if self.use_8bit_adam:
            if self.optimizer.lower() not in ("adamw", "adamw8bit"):
                raise UserError(f"--use_8bit_adam: it stands for --optimizer AdamW8bit, and --optimizer is {self.optimizer}")
            self.optimizer = "AdamW8bit"

    @property
    def model_source(self) -> ModelSource:
        """Which model is trained on, and how prompts are read."""
        return ModelSource.of({name: getattr(self, name) for name in MODEL_OPTIONS})

    @property
    def schedule(self) -> Schedule:
        return self.schedule_of("learning_rate")

    def schedule_of(self, option: str) -> Schedule:
        """The learning rate's schedule, or the clipping threshold's."""
        return parse_schedule(getattr(self, option), self.max_train_steps)

    @property
    def holds_out(self) -> bool:
        """Whether there are images that are never trained on."""
        return self.validation_split > 0 or bool(self.validation_data_dir)

    def changed(self, options) -> dict:
        """Those of the options that differ from their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in options if getattr(self, name) != defaults[name]}

    def count_steps(self, batches_per_epoch: int):
        """Turn --num_train_epochs, if it is given, into --max_train_steps."""
        if self.num_train_epochs is not None:
            batches = self.num_train_epochs * batches_per_epoch
            self.max_train_steps = math.ceil(batches / self.gradient_accumulation_steps)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the training images."""
        return parse_size(self.resolution)

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
        for key in PATH_OPTIONS:
            if options[key] and Path(options[key]).exists():
                options[key] = str(Path(options[key]).resolve())
        if self.lora:
            options["lora"] = [absolute_lora(lora) for lora in self.lora]
        return options

    def run_identity(self) -> set[str]:
        """The options that make two runs different runs."""
        return {field.name for field in dataclasses.fields(self)} - CHANGEABLE


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
