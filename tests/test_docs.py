"""The pages: their links lead somewhere, their commands name files that exist, the API page is complete."""

import re
import shlex

import pytest

import convert_to_webui
import hypernet
from hypernet.cli.option_aliases import PAGE as ALIASES
from hypernet.cli.option_aliases import find_aliases, read_tables
from hypernet.cli.script import ScriptParser
from hypernet.cli.training_options import build_parser, parse_config
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO

PAGES = [REPO / "README.md", *(REPO / "examples").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    local = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_paths_of_the_repository_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"(?<![\w/.])((?:examples|hypernet|tests)/[\w/.-]+\.\w+)", text))
    assert not [path for path in paths if not (REPO / path).exists()]


def test_api_page_documents_every_public_name():
    """`python examples/docs/make_api.py` writes it."""
    text = (REPO / "examples" / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", text, re.M) and set(re.findall(r"^### (\w+)$", text, re.M)) == set(
        hypernet.__all__
    )
    for name in hypernet.__all__:
        assert getattr(hypernet, name).__doc__.strip().splitlines()[0] in text


def test_folder_listing_of_the_readme_is_complete():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for path in (REPO / "hypernet").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"^  {path.name}/ ", text, re.M), path.name


def test_the_lowest_versions_agree():
    """requirements.txt, the pins that its lower bounds are tested with, and the table of what was tried."""
    bounds = dict(line.split(">=") for line in (REPO / "requirements.txt").read_text().split())
    pins = dict(line.split("==") for line in (REPO / "tests" / "lowest.txt").read_text().split())
    table = (REPO / "examples" / "docs" / "versions.md").read_text(encoding="utf-8")
    assert {name: f"{bound}.0" for name, bound in bounds.items()} == pins
    assert all(re.search(rf"^\| {name} \| {re.escape(pin)} \|", table, re.M) for name, pin in pins.items())


# --- Options of other trainers. The names are those of the WebUI's code and pages

TRAIN_FUNCTION = """id_task hypernetwork_name learn_rate batch_size gradient_step data_root log_directory
training_width training_height varsize steps clip_grad_mode clip_grad_value shuffle_tags tag_drop_out
latent_sampling_method use_weight create_image_every save_hypernetwork_every template_filename preview_from_txt2img
preview_prompt preview_negative_prompt preview_steps preview_sampler_name preview_cfg_scale preview_seed preview_width
preview_height""".split()
DATASET_CLASS = """data_root width height repeats flip_p placeholder_token model cond_model device template_file
include_cond batch_size gradient_step shuffle_tags tag_drop_out latent_sampling_method varsize use_weight""".split()
CREATE_TAB = """Name; Modules; Enter hypernetwork layer structure; Select activation function of hypernetwork; Select
Layer weights initialization; Add layer normalization; Use dropout; Overwrite Old Hypernetwork; Create hypernetwork"""
PREPROCESS_TAB = """Source directory; Destination directory; Width; Height; Existing Caption txt Action; Keep original
size; Create flipped copies; Split oversized images; Split oversized images into two; Split image threshold; Split
image overlap ratio; Auto focal point crop; Focal point face weight; Focal point entropy weight; Focal point edges
weight; Create debug image; Auto-sized crop; Dimension lower bound; Dimension upper bound; Area lower bound; Area
upper bound; Resizing objective; Error threshold; Use BLIP for caption; Use deepbooru for caption"""
SETTINGS = """medvram; deepdanbooru; VAE; Clip skip; X/Y plot; Hypernetwork strength; Interrogate: keep models in
VRAM; Interrogate: use artists from artists.csv; Interrogate: num_beams for BLIP; Interrogate: minimum description
length (excluding artists, etc..); Interrogate: maximum description length; Interrogate: deepbooru score threshold;
Interrogate: deepbooru sort alphabetically; use spaces for tags in deepbooru; escape (\\) brackets in deepbooru; Move
VAE and CLIP to RAM when training if possible. Saves VRAM.; Saves Optimizer state as separate *.optim file; Filename
word regex; Filename join string; Move VAE and CLIP to RAM when training hypernetwork. Saves VRAM.; Number of repeats
for a single input image per epoch; used only for displaying epoch number; Save an csv containing the loss to log
directory every N steps, 0 to disable; Read parameters (prompt, etc...) from txt2img tab when making previews; Stable
Diffusion finetune hypernetwork; Apply color correction to img2img results to match original colors.; Save a copy of
image before applying color correction to img2img results.; With img2img, do exactly the amount of steps the slider
specifies (normally you'd do less with less denoising).; Enable quantization in K samplers for sharper and cleaner
results; Emphasis: use (text) to make model pay more attention to text; Use old emphasis implementation; Make
K-diffusion samplers produce same images in a batch as when making a single image; Increase coherency by padding from
the last comma within n tokens when using more than 75 tokens; Filter NSFW content; Stop At last layers of CLIP model;
Allowed categories for random artists selection when using the Roll button; Quicksettings list; sd_model_checkpoint"""
WEBUI = {
    "training function": TRAIN_FUNCTION,
    "dataset class": DATASET_CLASS,
    "create tab": " ".join(CREATE_TAB.split()).split("; "),
    "preprocess tab": " ".join(PREPROCESS_TAB.split()).split("; "),
    "settings": " ".join(SETTINGS.split()).split("; "),
}


@pytest.mark.parametrize("place", WEBUI)
def test_every_option_of_the_webui_has_a_row(place):
    assert not [name for name in WEBUI[place] if not find_aliases(name)]


def test_no_row_on_other_trainers_is_empty():
    for rows in read_tables(ALIASES.read_text(encoding="utf-8")).values():
        for row in rows:
            assert all(row.theirs) and row.difference and (row.ours or row.difference != "the same"), row


def test_our_options_on_the_page_exist(monkeypatch):
    """In the script that is named with them; without one, in train_hypernetwork.py."""
    from examples import generate, show_data, xy_plot
    from examples.preparation.options import parse_arguments

    parsers = {"train_hypernetwork.py": build_parser()}
    scripts = {"generate.py": generate.parse_arguments, "show_data.py": show_data.parse_arguments}
    scripts |= {"prepare.py": lambda arguments: parse_arguments(None, arguments), "xy_plot.py": xy_plot.parse_arguments}
    scripts |= {"convert_to_webui.py": convert_to_webui.parse_arguments}
    for script, parse in scripts.items():
        parsers[script] = declared(parse, monkeypatch)
    text = ALIASES.read_text(encoding="utf-8")
    written = [option for rows in read_tables(text).values() for row in rows for option in row.ours]
    written += re.findall(r"`((?:\w+\.py )?--\w+)", text)
    for option in written:
        script, name, value = re.fullmatch(r"(?:(\w+\.py) ?)?(--\w+|[A-Z]+|)(?: (.+))?", option).groups()
        parser = parsers[script or "train_hypernetwork.py"]
        names = {*parser._option_string_actions, *(action.dest for action in parser._actions), ""}
        assert name in names, option
        if script is None and value:
            parser.parse_args(shlex.split(f"{name} {value}"))


def declared(parse, monkeypatch):
    """Return the parser that a script declares."""
    parsers = []

    def stop(parser, *_):
        parsers.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ScriptParser, "parse_known_args", stop)
        parse([])
    return parsers[0]


def test_the_page_shows_what_a_script_says_of_an_unknown_option():
    text = ALIASES.read_text(encoding="utf-8")
    command, said = re.search(r"^\$ python train_hypernetwork.py (.*)\nerror: (.*)$", text, re.M).groups()
    with pytest.raises(UserError) as error:
        parse_config(command.split())
    assert str(error.value) == said
