"""Every option of the training script, declared once: name, type, default and meaning.

Plain typed data. Parsing and checking live in `hypernet.cli`; `--help` and docs/options.md are made from this file.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, Literal

MixedPrecision = Literal["no", "fp16", "bf16"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Crop = Literal["center", "random", "none"]
LatentSampling = Literal["deterministic", "once", "random"]
LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
ClipGradMode = Literal["norm", "value", "none"]
Quantization = Literal["nf4", "int8"]
SkipConnection = Literal["nearest", "linear"]
Tracker = Literal["wandb", "tensorboard", "all", "none"]

# Heading in --help and docs/options.md -> the option its group starts with
GROUPS = {
    "What to train on": "pretrained_model_name_or_path",
    "Data": "dataset_config_name",
    "Hypernetwork": "name",
    "Training": "learning_rate",
    "Memory and speed": "mixed_precision",
    "Validation and guard": "validation_split",
    "Checkpoints and previews": "checkpointing_steps",
    "Reports": "logging_steps",
}

PATH_OPTIONS = (
    "pretrained_model_name_or_path",
    "train_data_dir",
    "validation_data_dir",
    "dataset_name",
    "init_from",
    "model_config",
    "original_config",
    "pretrained_vae_model_name_or_path",
    "prior_prompts",
)

# A resumed run may change these options and INEXACT; any other change makes it a different run. PATH_OPTIONS are compared
# by the contents at the paths
CHANGEABLE = {"output_dir", "overwrite", "cache_dir", "resume_from_checkpoint", "max_train_steps", "num_train_epochs"}
CHANGEABLE |= {"checkpointing_steps", "checkpoints_total_limit", "logging_steps", "guard", "min_prompt_fidelity"}
CHANGEABLE |= {"learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power"}
CHANGEABLE |= {"clip_grad_mode", "max_grad_norm", "max_grad_value"}
CHANGEABLE |= {"validation_prompt", "validation_steps", "num_validation_images", "validation_guidance_scale"}
CHANGEABLE |= {"validation_inference_steps", "validation_loss_steps", "enable_tiling", "compile"}
CHANGEABLE |= {"validation_prompts_file", "validation_negative_prompt", "validation_sampler", "validation_seed"}
CHANGEABLE |= {"validation_resolution"}
CHANGEABLE |= {"report_to", "tracker_project_name", "run_name", "log_artifact", "push_to_hub", "hub_model_id"}
CHANGEABLE |= {"gradient_checkpointing", "repeats"}
# If one of these changes, a resumed run is no longer bit-identical to an uninterrupted one
INEXACT = {"train_batch_size", "gradient_accumulation_steps", "mixed_precision", "compile"}


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with its meaning beside it."""
    return dataclasses.field(default=default, metadata={"help": help})


# fmt: off
@dataclasses.dataclass
class TrainingConfig:
    """The options of `train_hypernetwork.py`, unchecked; `hypernet.cli.training_options.parse_config` checks them."""

    # What to train on
    pretrained_model_name_or_path: str | None = option(None, "Required. Stable Diffusion 1.x, 2.x or SDXL: a diffusers folder, a Hub id, or a single .safetensors or .ckpt file.")
    train_data_dir: str | list[str] | None = option(None, "Required, unless --dataset_name is given. One or more folders of images, subfolders included, or a file that lists images: one path per line, or metadata. FOLDER:N trains on its images N times per epoch; so does a folder name such as 10_cat, as in kohya's scripts. The caption of an image is the text in NAME.txt beside it, else its entry in metadata.jsonl, metadata.csv or kohya's meta_cap.json, else its file name.")
    dataset_name: str | None = option(None, "Instead of a folder: a dataset on the Hub, or one saved locally by datasets.")
    output_dir: str = option("output/hypernetwork", "Folder for everything the run writes.")
    overwrite: bool = option(False, "Delete the earlier run in the output folder and start over, once: the same command then resumes the new run.")
    revision: str | None = option(None, "Branch, tag or commit of the base model's Hub repository.")
    variant: str | None = option(None, 'Variant of the base model\'s weight files, such as "fp16".')
    model_config: str | None = option(None, "For a single-file base model: a diffusers folder or Hub id of the same kind that supplies configs and tokenizers. Default: fetched from the Hub.")
    original_config: str | None = option(None, "For a single-file base model: the YAML it was trained with, in CompVis' or Stability's format.")
    pretrained_vae_model_name_or_path: str | None = option(None, "Use another VAE: a folder, a Hub id or a file.")
    lora: list[str] | None = option(None, "LoRAs to fuse into the base model before training, each PATH or PATH:SCALE. Takes several, and may be repeated.")
    prediction_type: PredictionType | None = option(None, "Override what the base model predicts, where its config is wrong.")
    rescale_betas_zero_snr: bool | None = option(None, "Train and preview with zero terminal SNR, for models trained that way (v_prediction or sample). Default: what the model's config says.")

    # Data
    dataset_config_name: str | None = option(None, "Configuration of --dataset_name, if it has several.")
    image_column: str = option("image", "Image column of --dataset_name.")
    caption_column: str = option("text", 'Caption column of the dataset or metadata file; "" for none. Where it holds a list, one caption is sampled each time.')
    caption_lines: bool = option(False, "Treat each line of a caption as a separate caption, and sample one each time. Default: all lines are one caption.")
    filename_word_regex: str | None = option(None, "Keep only the matches of this pattern when a file name serves as the caption.")
    filename_join_string: str = option(" ", "Text that joins those matches.")
    resolution: str = option("512", "Size of the training images in pixels: one side, or WIDTHxHEIGHT.")
    crop: Crop = option("center", "How images of another shape are fitted: center crop, random crop (one of --crop_variants each time), or none (the whole image, squeezed).")
    crop_variants: int | None = option(None, "Number of random crops per image. Default: 4.")
    aspect_buckets: bool = option(False, "Train each image at the size closest to its aspect ratio: about as many pixels as --resolution, sides in multiples of 64.")
    bucket_upscale: bool = option(False, "Enlarge images smaller than their bucket. Otherwise they get a smaller size.")
    varsize: bool = option(False, "Train each image at its own size, cropped to a multiple of what the model needs. --resolution then applies to previews only.")
    random_flip: bool = option(False, "Mirror images left to right, half of the time. Same as --flip_p 0.5.")
    flip_p: float | None = option(None, "Mirror images left to right with this probability. Default: 0; 0.5 with --random_flip.")
    alpha_weight: bool = option(False, "Weight the loss by the image's alpha channel: opaque pixels count, transparent ones do not.")
    alpha_background: str = option("white", "Color behind transparent pixels.")
    template: str = option("[filewords]", "Prompt template: text, a file with one template per line (one is sampled each time), or the name of a shipped file: style, style_filewords, subject, subject_filewords, hypernetwork, none. [filewords] stands for the caption, [name] for the hypernetwork's name, [folder] for the name of the image's folder. A template.txt in a folder of images takes precedence for the images in it and below.")
    shuffle_tags: bool = option(False, "Shuffle the caption's tags each time.")
    tag_separator: str = option(",", 'Text between the tags of a caption, such as ";", or " " for tags separated by spaces.')
    keep_tags: int = option(0, "Number of leading tags that are neither shuffled nor dropped.")
    tag_dropout: float = option(0.0, "Probability of dropping each tag, except those kept by --keep_tags.")
    caption_dropout: float = option(0.0, "Probability of an empty prompt, for classifier-free guidance.")
    caption_variants: int | None = option(None, "With shuffled or dropped tags: sample this many prompts per image once and cache them. Default: new prompts, encoded at each step.")
    clip_skip: int | None = option(None, "Text encoder layer to read, in the WebUI's numbering: 1 is the output, 2 the layer before. Default: 1; for SDXL, where it applies to the first encoder, 2.")
    max_token_chunks: int | None = option(None, "Truncate prompts after this many chunks of 75 tokens. Default: no limit.")
    prompt_emphasis: bool = option(False, "Read the WebUI's prompt syntax: (word) and (word:1.3) weigh more, [word] weighs less, BREAK starts a new chunk. Prompt editing, alternation ([a|b]) and AND are not supported. \\( and \\) are always literal parentheses.")
    force_zeros_for_empty_prompt: bool | None = option(None, "SDXL only: embed an empty prompt as zeros. Default: what the model's config says.")
    latent_sampling: LatentSampling = option("deterministic", "How latents are taken from the VAE's distribution: deterministic (the mean), once (one sample, kept), or random (a new sample each time).")
    cache_dir: str | None = option(None, "Folder for encoded images and prompts. Default: the datasets cache.")

    # Hypernetwork
    name: str | None = option(None, "Name used in prompts and file names. Default: the output folder's name when the run began.")
    init_from: str | None = option(None, "Continue training this hypernetwork (a WebUI .pt, a folder, a .safetensors): take its structure, weights and step, and the optimizer state stored with it.")
    widths: str | None = option(None, 'Context widths to transform, such as "320,640,768,1280". Default: all that the UNet has.')
    layer_structure: str = option("1,2,1", "Layer widths as multiples of the context width; the first and last are 1.")
    activation: str = option("linear", "Activation between layers, by the WebUI's name: linear (none), relu, leakyrelu, elu, swish, mish, ...")
    weight_init: str = option("normal", "Initialization: normal, xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, or zero (starts as the identity).")
    layer_norm: bool = option(False, "Add a LayerNorm after every layer.")
    layer_norm_init: str = option("ones", "Initialization of LayerNorm weights: ones, or normal (the WebUI's, which hardly learns).")
    activate_output: bool = option(False, "Apply the activation after the last layer too.")
    dropout_structure: str | None = option(None, 'Dropout probability per entry of the layer structure, such as "0,0.05,0.15"; the first is unused. A single number applies to every layer but the last; true means 0.3, as the WebUI\'s "Use dropout" does. Default: no dropout.')
    skip_connection: SkipConnection | None = option(None, "Add each layer's input to its output, as residual hypernetworks of the WebUI's Hypernetwork-MonkeyPatch-Extension do: resized to the layer's width (nearest), or multiplied by a learned matrix (linear). The WebUI needs that extension to use the result. Default: no skip connections.")

    # Training
    learning_rate: str = option("1e-5", 'A number; "auto", to test learning rates at the start of the run and choose one ("auto:0.5" uses half of it); or the WebUI\'s schedule: "5e-6:12000, 5e-7:30000" is 5e-6 up to step 12000, then 5e-7 up to step 30000.')
    lr_scheduler: LRScheduler = option("constant", "Learning rate scheduler of diffusers; needs a single --learning_rate. Default with --learning_rate auto: cosine.")
    lr_warmup_steps: int = option(0, "Warmup steps of --lr_scheduler.")
    lr_num_cycles: int = option(1, "Number of cycles of --lr_scheduler cosine_with_restarts.")
    lr_power: float = option(1.0, "Power of --lr_scheduler polynomial.")
    max_train_steps: int = option(10000, "Number of optimizer updates. A learning rate schedule that ends earlier ends the training; without this option, the end of the schedule always does.")
    num_train_epochs: int | None = option(None, "Train for this many epochs instead of --max_train_steps.")
    repeats: int = option(1, "How many passes over all images make an epoch, as the WebUI's number of repeats does. It changes how epochs are counted, not what is learned per step.")
    train_batch_size: int = option(1, "Batch size per process.")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer update.")
    optimizer: str = option("AdamW", "Any optimizer of torch.optim or bitsandbytes by name (AdamW8bit, PagedAdamW8bit, Lion8bit, ...), or Prodigy (pip install prodigyopt; use a learning rate of 1).")
    optimizer_args: list[str] | None = option(None, "Further arguments for the optimizer, such as momentum=0.9 nesterov=true.")
    adam_beta1: float | None = option(None, "Beta1 of the optimizer. Default: its own; 0.9 for AdamW.")
    adam_beta2: float | None = option(None, "Beta2 of the optimizer. Default: its own; 0.999 for AdamW.")
    adam_weight_decay: float | None = option(None, "Weight decay of the optimizer. Default: its own; 0.01 for AdamW.")
    adam_epsilon: float | None = option(None, "Epsilon of the optimizer. Default: its own; 1e-8 for AdamW.")
    clip_grad_mode: ClipGradMode = option("norm", "Clip gradients by their norm, by value, or not at all.")
    max_grad_norm: str = option("1.0", "Maximum gradient norm: a number, or a schedule like the learning rate's. 0 disables clipping.")
    max_grad_value: str = option("0.1", "With --clip_grad_mode value: maximum absolute gradient, a number or a schedule.")
    snr_gamma: float | None = option(None, "Min-SNR weighting of the loss with this gamma; 5 is usual. Default: no weighting.")
    noise_offset: float = option(0.0, "Scale of a random offset added to each channel's noise; 0.05 to 0.1 teaches darker and brighter images.")
    prior_weight: float = option(0.0, "Loss weight of prior preservation: half as many images generated by the base model are added to each batch, and the hypernetwork learns to change nothing there. Preserves subjects at the cost of style; use it with a --template that adds words to the captions. 0 disables it.")
    prior_prompts: str | None = option(None, "Prompts for the images of --prior_weight: a text file, one prompt per line. Default: the captions and preview prompts, without the template's words.")
    ema_decay: float = option(0.0, "Keep an exponential moving average of the weights with this decay, such as 0.999, and use it for previews, validation and export. 0 disables it.")
    seed: int = option(0, "Random seed for initialization, data order, noise and previews.")

    # Memory and speed
    mixed_precision: MixedPrecision | None = option(None, "Precision of the frozen base model: no (float32), fp16 or bf16. The hypernetwork stays float32. Default: Accelerate's setting.")
    gradient_checkpointing: bool = option(False, "Save memory by recomputing activations in the backward pass.")
    use_8bit_adam: bool = option(False, "Use AdamW with 8-bit states, a quarter of the memory. Same as --optimizer AdamW8bit.")
    quantize: Quantization | None = option(None, "Keep the frozen UNet's attention blocks in 4 bits (nf4, smaller) or 8 bits (int8, more accurate) with bitsandbytes, for small cards. Slower and slightly less accurate.")
    compile: bool = option(False, "Compile the training step with torch.compile. Each new batch shape takes minutes to compile (at most 32 shapes); steps are then faster on a GPU.")
    enable_tiling: bool = option(False, "Decode previews in tiles of 512 pixels to save memory. SDXL previews then look slightly different.")

    # Validation and guard
    validation_split: float = option(0.0, "Fraction of the images set aside as validation images, never trained on.")
    validation_data_dir: str | None = option(None, "Instead of a fraction: a folder of validation images.")
    validation_loss_steps: int | None = option(None, "Measure the validation loss every N steps. Default: --validation_steps.")
    min_prompt_fidelity: float = option(0.5, "Only states with at least this prompt fidelity count as the best. Prompt fidelity is how well the images still show their prompts; 1 is as well as without the hypernetwork. With 0, only the validation loss decides.")
    guard: bool = option(True, "Divergence guard: when the validation loss has clearly risen, or the prompt fidelity has stayed below --min_prompt_fidelity, roll back to the best state and continue at a tenth of the learning rate (a third if it is the first rollback and the reason is a low prompt fidelity), up to three times. With --no_guard only non-finite values trigger it.")

    # Checkpoints and previews
    checkpointing_steps: int = option(500, "Save a checkpoint every N steps.")
    checkpoints_total_limit: int | None = option(None, "Keep only this many of the newest checkpoints.")
    resume_from_checkpoint: str = option("latest", 'Checkpoint to resume from: "latest" in the output folder, a folder below its checkpoints/, or "none". A run returns to an earlier checkpoint once; the same command then resumes from the newest.')
    validation_prompt: list[str] | None = option(None, "One or more prompts to preview, each in quotes. [name] stands for the hypernetwork's name, as in --template; [filewords] and [folder] for the caption and the folder of the first image.")
    validation_prompts_file: str | None = option(None, "File of more prompts, which may have their own settings: a YAML list, kohya's lines (a cat --n blurry --w 512 --h 768 --d 1 --l 7 --s 28), a PNG with the WebUI's parameters, or a text file of these. See docs/generation.md.")
    validation_negative_prompt: str = option("", "Negative prompt of the previews.")
    validation_steps: int = option(500, "Generate previews every N steps.")
    num_validation_images: int = option(1, "Previews per prompt, with consecutive seeds.")
    validation_seed: int | None = option(None, "Seed of each prompt's first preview; -1 picks a random one for the run. Default: --seed.")
    validation_resolution: str | None = option(None, "Size of the previews in pixels: one side, or WIDTHxHEIGHT. Default: --resolution.")
    validation_sampler: str | None = option(None, "Sampler of the previews, by its name in the WebUI or diffusers, such as \"Euler a\". Default: the model's.")
    validation_guidance_scale: float = option(7.5, "Guidance scale of the previews.")
    validation_inference_steps: int = option(25, "Sampling steps of the previews.")

    # Reports
    logging_steps: int = option(10, "Log the mean loss every N steps to the console, hypernetwork_loss.csv and the trackers.")
    report_to: Tracker = option("wandb", "Trackers: wandb (offline unless logged in), tensorboard (install it separately), all or none.")
    tracker_project_name: str = option("hypernetworks", "W&B project name.")
    run_name: str | None = option(None, "W&B run name. Default: --name and the options on the command line.")
    log_artifact: bool = option(False, "Upload the finished hypernetwork to W&B as an artifact.")
    push_to_hub: bool = option(False, "Upload the hypernetwork, its model card and previews to the Hugging Face Hub at the end.")
    hub_model_id: str | None = option(None, "Hub repository to push to. Default: the hypernetwork's name in your account.")
    # fmt: on

    @property
    def has_validation(self) -> bool:
        """Whether some images are set aside for validation."""
        return self.validation_split > 0 or bool(self.validation_data_dir)

    @property
    def has_previews(self) -> bool:
        """Whether prompts are previewed."""
        return bool(self.validation_prompt or self.validation_prompts_file)

    def changed(self, options: Iterable[str]) -> dict[str, Any]:
        """Return those of `options` whose values differ from their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in options if getattr(self, name) != defaults[name]}

    @property
    def flip_probability(self) -> float:
        """The probability that an image is mirrored."""
        return (0.5 if self.random_flip else 0.0) if self.flip_p is None else self.flip_p

    def count_steps(self, batches_per_epoch: int) -> None:
        """Translate --num_train_epochs, if given, into --max_train_steps."""
        if self.num_train_epochs is not None:
            batches = self.num_train_epochs * batches_per_epoch
            self.max_train_steps = math.ceil(batches / self.gradient_accumulation_steps)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the training images."""
        return parse_size(self.resolution)

    def structure(self) -> dict[str, Any]:
        """Return the arguments of `Hypernetwork` that describe its layers; widths and names are not among them."""
        return {
            "layer_structure": parse_numbers(self.layer_structure),
            "activation": self.activation,
            "weight_init": self.weight_init,
            "layer_norm": self.layer_norm,
            "layer_norm_init": self.layer_norm_init,
            "activate_output": self.activate_output,
            "dropout_structure": None if self.dropout_structure is None else parse_numbers(self.dropout_structure),
            "skip_connection": self.skip_connection,
        }

    @property
    def requested_widths(self) -> list[int] | None:
        """The context widths asked for, sorted; None for all that the UNet has."""
        return None if self.widths is None else sorted(set(parse_numbers(self.widths)))


def parse_numbers(text: str) -> list:
    """Parse comma-separated numbers; whole ones become int: "1, 1.5, 1" is [1, 1.5, 1].

    Raises:
        ValueError: if an item is not a finite number.
    """
    numbers = []
    for item in str(text).split(","):
        try:
            number = float(item)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{text}: {item.strip()!r} is not a number; write numbers separated by commas")
        numbers.append(int(number) if number == int(number) else number)
    return numbers


SIZE_MULTIPLE = 8  # pixels; sides of generated images are multiples of this


def parse_size(text: str) -> tuple[int, int]:
    """Parse "512" or "768x512" into (width, height).

    Raises:
        ValueError: with an example of what to write instead.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", str(text).lower())
    if not match or 0 in (size := (int(match[1]), int(match[2] or match[1]))):
        raise ValueError(f"{text}: write one side, such as 512, or WIDTHxHEIGHT, such as 768x512")
    return size
