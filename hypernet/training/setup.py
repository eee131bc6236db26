"""Everything that happens before the first step, in the order in which `train_hypernetwork.py` calls it."""

from accelerate.utils import set_seed

from hypernet.config import SIZE_MULTIPLE, TrainingConfig
from hypernet.data.arrow_cache import check_cache_folder
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import TrainingDataset, describe_data, encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import ImageSource, open_image_source
from hypernet.data.latents import vae_notes
from hypernet.data.prompts import fill_name
from hypernet.data.validation_split import (
    describe_validation,
    encode_validation,
    open_validation_folder,
    split_validation,
)
from hypernet.generation.preview_prompts import check_sizes, preview_prompts
from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.loras import record_loras
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion, vae_dtype
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.quantization import quantize
from hypernet.training.accelerator import (
    build_accelerator,
    check_shared_folder,
    choose_mixed_precision,
    connect_processes,
    describe_accelerator,
    print_main,
)
from hypernet.training.auto_learning_rate import recall_choice
from hypernet.training.checkpoint import Checkpointer
from hypernet.training.compilation import check_compiler, check_shapes, compile_model, memory_format
from hypernet.training.disk_forecast import check_disk
from hypernet.training.ema import EMA
from hypernet.training.failures import Failures
from hypernet.training.init_from import load_init_from
from hypernet.training.launch_settings import check_launch_settings
from hypernet.training.memory_forecast import memory_lines
from hypernet.training.model_card import check_hub_login
from hypernet.training.model_checks import check_resolution, choose_widths
from hypernet.training.optimizers import build_optimizer, check_optimizer
from hypernet.training.preview_scores import PreviewScores, prepare_scores
from hypernet.training.preview_setup import (
    check_samplers,
    fill_placeholders,
    fix_random_seed,
    record_previews,
    save_first_previews,
)
from hypernet.training.previews import BASE, Previewer
from hypernet.training.prior import Prior, prepare_prior, recall_prior
from hypernet.training.run import Run, RunImages, Trainee
from hypernet.training.run_folder import RunFolder
from hypernet.training.run_identity import data_contents, image_digests, model_contents
from hypernet.training.run_options import read_orders
from hypernet.training.time_forecast import Stopwatch, describe_length
from hypernet.training.trackers import Trackers, choose_trackers
from hypernet.training.validation import ValidationLoss
from hypernet.utils.errors import UserError


def start_run(config: TrainingConfig) -> Run:
    """Check everything the user may have gotten wrong, before anything slow starts.

    Raises:
        UserError: for an option that this machine does not support, or a file that is unusable.
    """
    check_launch_settings()
    orders = read_orders(config)
    choose_mixed_precision(config)
    config.validation_prompt = fill_name(config.validation_prompt, str(config.name))
    initial = load_init_from(config, orders.starts_over)
    base = identify_base_model(ModelSource.from_config(config))
    widths = choose_widths(config, base)
    check_resolution(config, base)
    previews = preview_prompts(config)
    check_sizes(previews, max(base.image_multiple, SIZE_MULTIPLE))
    folder = RunFolder(config)
    folder.check(orders.overwrite)
    recall_choice(folder, orders.starts_over)
    recall_prior(folder, orders.starts_over)
    checkpoint, notes = folder.find_checkpoint(orders.checkpoint)
    trackers = choose_trackers(config)
    check_hub_login(config)
    check_cache_folder(config.cache_dir)
    source = open_image_source(config)
    validation_source = open_validation_folder(config)
    accelerator = build_accelerator(config, folder, trackers)
    failures = Failures(accelerator)
    if accelerator.is_main_process and folder.holds_run():
        folder.lock()
    state_ratio = check_optimizer(config, accelerator.device)
    if config.compile:
        check_compiler(accelerator.device)
    accelerator.print(describe_accelerator(accelerator))
    return Run(
        config=config,
        accelerator=accelerator,
        processes=connect_processes(accelerator),
        folder=folder,
        base=base,
        widths=widths,
        initial=initial,
        source=source,
        validation_source=validation_source,
        trackers=Trackers(accelerator, trackers, failures),
        failures=failures,
        orders=orders,
        checkpoint=checkpoint,
        notes=[*orders.notes, *notes],
        state_ratio=state_ratio,
        stopwatch=Stopwatch(config.compile),
        previews=fix_random_seed(previews, folder, accelerator, orders.overwrite),
    )


def find_images(run: Run) -> RunImages:
    """Index the images, set some aside for validation, and count the steps.

    Raises:
        UserError: if no usable images are left, the run in the folder was trained on different ones, or not all
            processes find the same ones.
    """
    config, accelerator, multiple = run.config, run.accelerator, run.base.image_multiple
    validation_source: ImageSource | None = None
    validation_records: list[ImageRecord] = []
    found, problems = index_images(run.source, config, multiple, run.processes)
    records = found
    if config.has_validation:
        before = () if run.orders.overwrite else run.folder.read_validation_images()
        validation_source, validation_records, records = split_validation(
            run.source, run.validation_source, records, config, multiple, before, run.processes
        )
    batches = EpochBatchSampler(
        records,
        config.train_batch_size,
        config.seed,
        accelerator.num_processes,
        accelerator.process_index,
        rounds=config.repeats,
    )
    config.count_steps(len(batches))
    if config.compile:
        count = batches.shape_count + bool(config.prior_weight)
        check_shapes(count)
        accelerator.print(f"--compile: each of {count} batch shapes takes some minutes to compile")
    description = describe_data(run.source, records, problems, batches, config)
    accelerator.print(description)
    if validation_source is not None:
        accelerator.print(describe_validation(validation_source, validation_records))
    begun = run.initial.hypernetwork.config.step if run.initial else 0
    accelerator.print(describe_length(config, len(batches), begun), check_disk(run, records), sep="\n")
    contents = data_contents(run.source, found, validation_records, config)
    if len(run.processes.peers((batches.fingerprint, contents))) < run.processes.count:
        problem = "the processes find different images or captions there; all machines need the same files"
        raise UserError(f"{run.source.option}: {problem}")
    if note := run.folder.check_contents(contents, batches.fingerprint, image_digests(run.source, found)):
        accelerator.print(f"note: {note}")
    run.previews = fill_placeholders(run.previews, run.source, records[0].row, str(config.name))
    return RunImages(records, batches, validation_source, validation_records, description)


def load_base_model(run: Run) -> StableDiffusion:
    """Load the frozen Stable Diffusion; its parts stay on the CPU until they are needed.

    Raises:
        UserError: if the run in the folder was trained on a different one.
    """
    run.accelerator.print(f"Loading {run.base.describe()}")
    models = load_stable_diffusion(run.base, run.dtype, run.accelerator.device, keep_on_cpu=True)
    run.folder.check_contents(model_contents(models))  # before the UNet may be quantized
    check_samplers(run.previews, models, run.accelerator)
    if run.config.gradient_checkpointing:
        models.unet.enable_gradient_checkpointing()
    return models


def encode_data(run: Run, images: RunImages, models: StableDiffusion) -> tuple[TrainingDataset, ValidationLoss | None]:
    """Encode images and prompts that are not in the cache yet."""
    config, accelerator, validation = run.config, run.accelerator, None
    precision = vae_dtype(run.dtype, accelerator.device)
    if accelerator.is_main_process:
        print_main(accelerator, *memory_lines(run, images, models))
    dataset = encode_dataset(models, run.source, images.records, config, precision, run.processes)
    if images.validation_source is not None:
        validation_set = encode_validation(
            models, images.validation_source, images.validation_records, config, precision, run.processes
        )
        validation = ValidationLoss(validation_set, models, accelerator, config.train_batch_size)
    print_main(accelerator, *vae_notes(run.base, dataset.latents))
    return dataset, validation


def create_folder(run: Run, images: RunImages) -> None:
    """Lock the run folder; write the options of a new run into it.

    Raises:
        UserError: if another process is training in it, or not all processes see it.
    """
    if run.accelerator.is_main_process:
        run.folder.lock()
        record_previews(run.previews, run.folder)
        run.folder.create(run.orders.overwrite, run.orders.begun_by)
        if images.validation_source is not None:
            names = {record.sha256: images.validation_source.name(record.row) for record in images.validation_records}
            run.folder.write_validation_images(names)
    check_shared_folder(run.accelerator, run.folder, run.checkpoint)


def place_models(
    run: Run, models: StableDiffusion, dataset: TrainingDataset, validation: ValidationLoss | None
) -> tuple[Previewer | None, PreviewScores | None, Prior | None]:
    """Quantize the UNet if asked to and bring it to the device; generate and score images without the hypernetwork."""
    config, device = run.config, run.accelerator.device
    previewer = Previewer(models, config, run.accelerator, run.failures, run.previews) if run.previews else None
    scores = prepare_scores(run, models, previewer, dataset, validation.dataset if validation else None)
    prior = prepare_prior(run, models, dataset.prompts)
    models.on_device(*([] if dataset.is_cached else models.text_encoders))
    if config.quantize:
        quantize(models.unet, config.quantize, run.dtype, device)
        run.accelerator.print(f"The UNet's attention blocks are held in {config.quantize}")
    models.unet.to(device, memory_format=memory_format(device, config.compile))  # the VAE is back on the CPU by now
    if previewer is not None:
        if previewer.note:
            run.accelerator.print(previewer.note)
        run.accelerator.print("Generating previews without the hypernetwork")
        with run.stopwatch.timing("previews"):
            previewer.base_previews = previewer.generate(state=BASE)
        save_first_previews(run, previewer)
    if scores is not None:
        run.accelerator.print("Measuring how well the base model shows the prompts, and its distance from the style")
        scores.measure_base()
    if prior is not None:
        prior.generate()
    return previewer, scores, prior


def build_trainee(run: Run, models: StableDiffusion) -> Trainee:
    """Build the hypernetwork, or use the one from --init_from, and prepare it and its optimizer for training."""
    config, device = run.config, run.accelerator.device
    set_seed(config.seed)
    if run.initial is not None:
        hypernetwork = run.initial.hypernetwork.train()
    else:
        hypernetwork = Hypernetwork(run.widths, **config.structure())
    hypernetwork.register_to_config(name=config.name, base_model_name=run.base.source.name, base_model_hash=models.hash)
    record_loras(hypernetwork, config.lora or [])
    bare_model = HypernetworkUNet(models.unet, hypernetwork)
    model, optimizer = run.accelerator.prepare(bare_model, build_optimizer(config, hypernetwork.parameters(), device))
    if config.compile:
        compile_model(bare_model)
    return Trainee(hypernetwork, bare_model, model, optimizer, EMA(hypernetwork, config.ema_decay))


def resume(run: Run, checkpointer: Checkpointer, batches: EpochBatchSampler) -> int:
    """Load the checkpoint to resume from, or the optimizer state of --init_from. Return the step to start at."""
    accelerator, hypernetwork = run.accelerator, checkpointer.hypernetwork
    print_main(accelerator, *(f"note: {note}" for note in run.notes))
    if run.checkpoint is not None:
        checkpointer.load(run.checkpoint)
        lines = run.folder.identity.describe_changes(batches.restarts)
        accelerator.print(f"Resuming from {run.checkpoint}, step {hypernetwork.config.step}", *lines, sep="\n  ")
    elif run.initial is not None:
        run.initial.restore(checkpointer.optimizer)
        accelerator.print(*run.initial.lines, sep="\n")
    if accelerator.is_main_process:
        print_main(accelerator, *(f"  {line}" for line in run.folder.roll_back_to(hypernetwork.config.step)))
        with run.failures.tolerate(f"{run.folder.root} could not be brought up to date"):
            if run.checkpoint is not None:
                checkpointer.export()
            run.folder.record(run.orders.begun_by)  # not earlier: a run killed before has not rolled back anything
    return hypernetwork.config.step
