"""convert_to_webui.py: convert, inspect, repair, average, export as a LoRA, and what it refuses."""

import contextlib
import hashlib
import io
import json
import re
import shlex

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import convert_to_webui
import hypernet
from hypernet import Hypernetwork, UserError, save_webui
from hypernet.cli.training_options import parse_config
from hypernet.formats.webui_optimizer import short_hash
from hypernet.training.init_from import load_init_from
from tests.helpers.scripts import REPO, one_line_error, run, same_weights, train_here, unexpected
from tests.helpers.tiny_models import TINY_WIDTHS, tiny_hypernetwork
from tests.helpers.webui_files import save_residual


def convert(*arguments):
    """Run the script in this process and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as console:
        convert_to_webui.main(list(map(str, arguments)))
    return console.getvalue()


def refused(*arguments):
    """Run the script in this process and return the line of the error it ends with."""
    with pytest.raises(UserError) as error:
        convert_to_webui.main(list(map(str, arguments)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def trained(models_dir, images_dir, tmp_path_factory):
    """A run of two steps with dropout and a checkpoint at each."""
    output = tmp_path_factory.mktemp("trained") / "style"
    flags = ["--max_train_steps=2", "--checkpointing_steps=1", "--learning_rate=1e-2", "--layer_structure=1,2,2,1"]
    train_here(models_dir, images_dir, output, *flags, "--activation=relu", "--dropout_structure=0, 0.1, 0.2, 0.3")
    return output


def test_converts_from_every_format_to_every_format(trained, tmp_path):
    source = tmp_path / "early.pt"
    done = run(REPO / "convert_to_webui.py", trained / "checkpoints" / "step-000001", source)
    assert done.returncode == 0 and "early.pt" in done.stdout and not unexpected(done.stderr)
    assert same_weights(source, trained / "checkpoints" / "step-000001")
    assert hypernet.load(source).config.name == "early" and hypernet.load(source).config.step == 1
    for form in ("alone.safetensors", "folder", "back.pt"):
        convert(source, tmp_path / form)
        assert same_weights(source, tmp_path / form) and hypernet.load(tmp_path / form).config.activation == "relu"
        source = tmp_path / form
    (trained / "style.pt").unlink()
    convert(trained)
    assert same_weights(trained / "style.pt", trained) and not same_weights(trained, source)


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "a.pt"
    save_webui(tiny_hypernetwork(), path)
    assert one_line_error(convert_to_webui.main, path, path).startswith(str(path))


def test_half_for_inference_rename_and_overwrite(trained, tmp_path):
    convert(trained, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt", "--half", "--for_inference")
    small, whole = hypernet.load(tmp_path / "b.pt"), hypernet.load(tmp_path / "a.pt")
    assert small.stored_dtype is torch.float16 and small.config.dropout_structure is None
    assert (tmp_path / "b.pt").stat().st_size < 0.7 * (tmp_path / "a.pt").stat().st_size
    x = torch.randn(2, 3, 16)
    assert (small(x)[0] - whole(x)[0]).abs().max() < 1e-3
    convert(tmp_path / "b.pt", "--rename", "better")
    assert hypernet.load(tmp_path / "better.pt").stored_dtype is torch.float16  # as it was
    assert torch.load(tmp_path / "better.pt", weights_only=True)["name"] == "better"
    line = refused(tmp_path / "a.pt", "--rename", "better.pt")
    assert "better.pt" in line and "--overwrite" in line
    convert(tmp_path / "a.pt", tmp_path / "better.pt", "--overwrite")
    assert same_weights(tmp_path / "a.pt", tmp_path / "better.pt")


def test_optimizer_state_moves_to_the_webui_and_back(trained, models_dir, images_dir, tmp_path):
    """A run that starts from the .pt ends with the same weights as one that starts from the folder."""
    for source in (trained, trained / "checkpoints" / "step-000002"):
        assert "moved.pt.optim" in convert(source, tmp_path / "moved.pt", "--with_optimizer", "--overwrite")
    file = torch.load(tmp_path / "moved.pt.optim", weights_only=True)
    assert file["hash"] == hashlib.sha256((tmp_path / "moved.pt").read_bytes()).hexdigest()[:10]
    ours = torch.load(trained / "checkpoints" / "step-000002" / "optimizer.bin", weights_only=True)["state"]
    theirs = file["optimizer_state_dict"]["state"]
    for index, state in ours.items():
        assert all(torch.equal(torch.as_tensor(value), theirs[index][name]) for name, value in state.items())

    flags = ["--max_train_steps=3", "--learning_rate=1e-2", "--seed=1"]
    ends = [tmp_path / "from_file", tmp_path / "from_folder"]
    for source, output in zip((tmp_path / "moved.pt", trained), ends):
        assert str(source) in train_here(models_dir, images_dir, output, *flags, f"--init_from={source}")
        config = hypernet.load(output).config
        assert config.step == 3 and config.layer_structure == [1, 2, 2, 1]
        moments = torch.load(output / "checkpoints" / "step-000003" / "optimizer.bin", weights_only=True)
        assert {float(state["step"]) for state in moments["state"].values()} == {3.0}  # 2 of them before
        assert moments["param_groups"][0]["lr"] == 1e-2
    assert same_weights(*ends)

    (tmp_path / "moved.pt").unlink()  # a run that has started does not need it any more
    again = train_here(models_dir, images_dir, ends[0], *flags, f"--init_from={tmp_path / 'moved.pt'}")
    assert "step-000003" in again and "moved.pt.optim" not in again  # its own checkpoint comes first
    assert hypernet.load(ends[0]).config.step == 3 and same_weights(*ends)


def test_init_from_takes_the_files_structure_and_refuses_another(trained, models_dir, images_dir, tmp_path):
    convert(trained, tmp_path / "moved.pt")
    flags = [
        f"--pretrained_model_name_or_path={models_dir}",
        f"--train_data_dir={images_dir}",
        f"--output_dir={tmp_path / 'o'}",
        f"--init_from={tmp_path / 'moved.pt'}",
    ]
    initial = load_init_from(parse_config(flags))
    assert initial.moments is None and "moved.pt.optim" in initial.lines[2]
    assert all(fact in initial.lines[1] for fact in ("1,2,2,1", "relu", "12,16,32"))
    config = parse_config([*flags, "--activation=relu", "--layer_structure=1, 2,2,1"])  # as in the file
    load_init_from(config)
    assert config.dropout_structure == "0,0.1,0.2,0.3" and config.widths == "12,16,32"
    for more, named in [
        (["--activation=mish"], "--activation mish.* relu"),
        (["--max_train_steps=2"], "--init_from .* 2 .*--max_train_steps"),
        (["--init_from=none.pt"], "none.pt"),
    ]:
        with pytest.raises(UserError, match=named):
            load_init_from(parse_config([*flags, *more]))


@pytest.mark.parametrize("upsample", [None, "Linear"])
def test_a_residual_file_of_the_extension_is_trained_further_as_one(models_dir, images_dir, tmp_path, upsample):
    """Also across an interruption, with the extension's optimizer state, which leaves the skip connections out."""
    path = tmp_path / "style.pt"
    data = save_residual(path, TINY_WIDTHS, upsample=upsample, activation_func="relu", step=5)
    tensors = [data[width][part] for width in TINY_WIDTHS for part in (0, 1)]
    trained = [tensor.clone() for module in tensors for name, tensor in module.items() if ".linear." in name]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor) for tensor in trained], lr=1e-3)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {"optimizer_name": "AdamW", "hash": short_hash(path), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(state, tmp_path / "style.pt.optim")

    flags = ["--learning_rate=1e-2", "--checkpointing_steps=1", f"--init_from={path}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output, steps in ((whole, 7),) if upsample else ((whole, 7), (parts, 6), (parts, 7)):
        said = train_here(models_dir, images_dir, output, *flags, f"--max_train_steps={steps}")
        assert ("linear" if upsample else "nearest") in said or output == parts
    assert not same_weights(whole, path) and (upsample or same_weights(whole, parts))
    moments = torch.load(whole / "checkpoints" / "step-000007" / "optimizer.bin", weights_only=True)["state"]
    assert {float(moment["step"]) for moment in moments.values()} == {2.0 if upsample else 3.0}
    after = torch.load(whole / "whole.pt", weights_only=True)
    assert after["skip_connection"] is True and after["upsample_linear"] == upsample and after["step"] == 7
    assert list(after[12][0]) == list(data[12][0])
    assert "MonkeyPatch" in (whole / "README.md").read_text() and "MonkeyPatch" in convert(whole)
    if upsample:
        assert "--with_optimizer" in refused(whole, tmp_path / "x.pt", "--with_optimizer")


def test_inspect_reports_files_and_folders(trained, tmp_path):
    printed = convert("--inspect", trained, trained / "style.pt")
    assert printed.count("alive") == 2 and str(trained / "style.pt") in printed
    folder, file = json.loads(convert("--inspect", trained, trained / "style.pt", "--json"))
    assert file["name"] == "style" and file["activation"] == "relu"
    assert "style.pt" in folder["read_by"]["WebUI"] and file["read_by"]["WebUI"] == "yes"
    for report in (folder, file):
        assert report["read_by"]["ComfyUI"].startswith("no") and "dropout" in report["read_by"]["ComfyUI"]
    rows = convert("--inspect", *[trained / "style.pt"] * 4).splitlines()
    assert len(rows) == 5 and rows[1].split()[1:] == ["2", "1,2,2,1", "relu", "?", "alive", "WebUI"]


def test_inspect_fails_in_the_end_for_files_that_are_not_hypernetworks(trained, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"hello")
    assert refused("--inspect", bad).startswith(f"{bad}: ")
    with contextlib.redirect_stdout(io.StringIO()) as console:
        assert "1 of 2" in refused("--inspect", bad, trained / "style.pt")
    assert f"{bad}: " in console.getvalue() and "alive" in console.getvalue()


def test_fix_repairs_a_file_once(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({16: [module.state_dict() for module in Hypernetwork((16,)).pairs["16"].values()], "name": "x"}, path)
    assert "a.pt.bak" in convert(path, "--fix") and (tmp_path / "a.pt.bak").is_file()
    assert torch.load(path, weights_only=True)["name"] == "a"
    content = path.read_bytes()
    assert "a.pt.bak" not in convert(path, "--fix") and path.read_bytes() == content


def test_average_weights_the_files(tmp_path):
    for name in "ab":
        save_webui(Hypernetwork((16,), weight_init="xavier_normal"), tmp_path / f"{name}.pt")
    save_webui(Hypernetwork((16,), (1, 3, 1)), tmp_path / "c.pt")
    a, b = hypernet.load(tmp_path / "a.pt"), hypernet.load(tmp_path / "b.pt")
    convert(tmp_path / "m.pt", "--average", f"{tmp_path / 'a.pt'}:0.6", f"{tmp_path / 'b.pt'}:0.4")
    for mean, one, other in zip(*(h.state_dict().values() for h in (hypernet.load(tmp_path / "m.pt"), a, b))):
        assert (mean - 0.6 * one - 0.4 * other).abs().max() < 1e-6
    line = refused(tmp_path / "n.pt", "--average", tmp_path / "a.pt", tmp_path / "c.pt")
    assert line.startswith("--average") and "layer_structure" in line
    content = (tmp_path / "a.pt").read_bytes()
    refused(tmp_path / "a.pt", "--average", tmp_path / "a.pt", tmp_path / "b.pt", "--overwrite")
    assert (tmp_path / "a.pt").read_bytes() == content  # a target that is a source


def percentages(printed):
    """Return the figures of each width in a report on a LoRA: kept by kohya's and PEFT's format, and missed."""
    return [re.findall(r"([\d.]+)%", line) for line in printed.splitlines() if line.startswith("  width")]


def test_to_lora_of_a_linear_hypernetwork_is_exact(models_dir, tmp_path):
    save_webui(tiny_hypernetwork(activation="linear", biases=True), tmp_path / "linear.pt")
    model, lora = models_dir / "epsilon", tmp_path / "lora.safetensors"
    printed = convert(tmp_path / "linear.pt", lora, "--to_lora", "32", "--model", model)
    figures = percentages(printed)
    assert len(figures) == 3 and all(len(row) == 2 and row[1] == "100.00" for row in figures)
    assert re.search(r"\b12\b.*\b32\b", printed)  # the narrowest layers have a smaller rank
    images = []
    for prepare in (
        lambda pipe: hypernet.attach(pipe.unet, hypernet.load(tmp_path / "linear.pt")),
        lambda pipe: pipe.load_lora_weights(tmp_path, weight_name="lora_peft.safetensors"),
    ):
        pipe = StableDiffusionPipeline.from_pretrained(model)
        prepare(pipe)
        generator = torch.Generator().manual_seed(0)
        images.append(pipe("a cat", num_inference_steps=3, generator=generator, output_type="np").images)
    assert np.abs(images[0] - images[1]).max() < 1e-4


def test_to_lora_of_another_hypernetwork_says_what_is_missed(models_dir, tmp_path):
    save_webui(tiny_hypernetwork(activation="relu", biases=True), tmp_path / "relu.pt")
    model, lora = models_dir / "epsilon", tmp_path / "lora.safetensors"
    flags = ["--to_lora", "4", "--model", model, "--prompts", "a cat", "a dog", "--steps", "3"]
    figures = percentages(convert(tmp_path / "relu.pt", lora, *flags))
    assert len(figures) == 3 and all(len(row) == 3 for row in figures)
    size = lora.stat().st_size
    convert(tmp_path / "relu.pt", lora, *flags, "--half", "--overwrite")
    assert lora.stat().st_size < 0.8 * size


@pytest.fixture
def places(trained, models_dir, tmp_path):
    """Names of files and folders for `COMMAND.format(**places)`."""
    save_webui(tiny_hypernetwork(activation="linear"), tmp_path / "a.pt")
    save_webui(tiny_hypernetwork(activation="relu"), tmp_path / "relu.pt")
    save_webui(Hypernetwork((320,), (1, 1)), tmp_path / "sd.pt")
    hypernet.save(tiny_hypernetwork(activation="linear"), tmp_path / "style_peft.safetensors")
    (tmp_path / "lora.safetensors").touch()
    names = {"dir": tmp_path, "repo": REPO, "trained": trained, "models": models_dir, "model": models_dir / "epsilon"}
    return {**names, "a": tmp_path / "a.pt", "b": tmp_path / "b.pt", "new": tmp_path / "new.safetensors"}


@pytest.mark.parametrize(
    "command, named",
    [
        # sources
        ("", "SOURCE"),
        ("{dir}/none {b}", "none"),
        ("{repo}/README.md {b}", "README.md"),
        ("{b}", "did you mean {a}"),
        ("{dir}", "did you mean {dir}"),
        ("{model}", "{model}"),
        # targets
        ("{a}", "TARGET"),
        ("{trained} {dir}/none/a.pt", "none"),
        ("{a} {a}", "source"),
        ("{a} {dir}/b.ckpt", "b.ckpt.* NAME.pt"),
        ("{a} {trained}", "{trained}"),
        ("{a} {model}/unet", "{model}/unet"),
        ("{a} {dir}", "NAME.pt"),
        ("{a} {dir}/None.pt", "None"),
        ("{a} {dir}/con.pt", "con.pt"),
        ("{a} '{dir}/trail .pt'", "trail"),
        ("{a} {dir}/b:c.pt", "b:c.pt"),
        ("{a} --rename ..", "--rename"),
        ("{a} --rename ''", "--rename"),
        ("{a} --rename x/y", "--rename"),
        ("{a} {b} --rename x", "--rename.* {b}"),
        ("{trained} --rename x", "--rename.* TARGET"),
        # options together
        ("{trained} --halff", "--half[?]"),
        ("{a} {b} --json", "--json.* --inspect"),
        ("{a} {b} --prompts x", "--prompts.* --to_lora"),
        ("--inspect {a} --half", "--half.* --inspect"),
        ("{a} --inspect {a}", "--inspect.* {a}"),
        ("{a} --fix --average {b}", "--average.* --fix"),
        ("{trained} --fix", "--fix.* .pt"),
        ("{repo}/README.md --fix", "README.md"),
        ("{a} {b} --fix", "--fix.* {b}"),
        ("--average {a} {a}", "--average"),
        ("{a} {b} --average {a} {a}", "--average.* {b}"),
        ("{b} --average {a}", "--average"),
        ("{b} --average {a}:0,4 {a}", r"--average .*0,4.*a\.pt:0\.4$"),
        ("{a} {b} --with_optimizer", "--with_optimizer.* checkpoints/"),
        ("{trained} {b} --with_optimizer --half", "--with_optimizer.* --half"),
        ("{trained} {dir}/c --with_optimizer", "--with_optimizer.* .pt"),
        # LoRAs
        ("{a} {dir}/new.safetensor", r"new\.safetensor: .*new\.safetensors[?]"),
        ("{a} {dir}/new.p", r"new\.p: .*new\.pt[?]"),
        ("{a} 'C:\\new.pt'", "Windows"),
        ("{dir}/relu.pt {dir}/c.pt --to_lora 4", "--to_lora.* .safetensors"),
        ("{dir}/relu.pt {new} --to_lora 0", "--to_lora 0"),
        ("{a} {new} --to_lora 4 --steps 0", "--steps 0"),
        ("{a} {new} --to_lora 4 --strength nan --model m", "--strength nan"),
        ("{dir}/relu.pt {dir}/lora.safetensors --to_lora 4", "lora.safetensors.* --overwrite"),
        ("{dir}/relu.pt {dir}/lora.safetensors --to_lora 4 --overwrite", "lora.safetensors.* LoRA"),
        ("{a} {dir}/style.safetensors --to_lora 4 --model m", "style_peft.safetensors.* --overwrite"),
        ("{a} {dir}/style.safetensors --to_lora 4 --overwrite", "style_peft.safetensors.* LoRA"),
        ("{dir}/relu.pt {new} --to_lora 4 --model {model}", "--prompts"),
        ("{dir}/relu.pt {new} --to_lora 4 --prompts x", "--model"),
        ("{dir}/relu.pt {new} --to_lora 4 --model {dir} --prompts x", "model_index.json"),
        ("{dir}/sd.pt {new} --to_lora 4 --model {model} --prompts x", "sd.pt"),
    ],
)
def test_refuses_in_one_line_and_writes_nothing(places, command, named):
    before = sorted(places["dir"].iterdir())
    line = refused(*shlex.split(command.format(**places)))
    assert re.search(named.format(**places), line), line
    assert sorted(places["dir"].iterdir()) == before


def test_a_hypernetwork_is_named_after_its_file(tmp_path):
    save_webui(tiny_hypernetwork(), tmp_path / "a.pt")
    said = convert(tmp_path / "a.pt", tmp_path / "style-v1.5")
    assert "note: " in said and f"{tmp_path / 'style-v1.5'}.pt" in said  # it is a folder
    assert hypernet.load(tmp_path / "style-v1.5").config.name == "style-v1.5"
    assert "note: " not in convert(tmp_path / "a.pt", tmp_path / "B.PT")
    assert hypernet.load(tmp_path / "B.PT").config.name == "B" and (tmp_path / "B.PT").is_file()
    assert "x" * 40 in refused(tmp_path / "a.pt", tmp_path / ("x" * 300))


def test_a_name_in_a_config_cannot_leave_the_folder(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    hypernet.save(tiny_hypernetwork(), tmp_path / "a.pt")
    hypernetwork = hypernet.load(tmp_path / "a.pt")
    hypernetwork.register_to_config(name="../../escaped")
    hypernet.save(hypernetwork, folder)
    convert(folder)
    assert (folder / "evil.pt").is_file() and not (tmp_path.parent / "escaped.pt").exists()
    convert(folder, "--overwrite")
    assert "evil.pt" in refused(folder)
