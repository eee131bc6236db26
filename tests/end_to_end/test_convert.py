"""convert_to_webui.py, each thing that it does."""

import contextlib
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import convert_to_webui
import hypernet
from hypernet import Hypernetwork, UserError, save_webui
from hypernet.cli.training_options import parse_config
from hypernet.training.init_from import load_init_from
from tests.helpers.scripts import REPO, run, train_here, unexpected
from tests.modeling.test_fusing import style


def convert(*arguments):
    """The console, after it has worked."""
    with contextlib.redirect_stdout(io.StringIO()) as console:
        convert_to_webui.main(list(map(str, arguments)))
    return console.getvalue()


def refused(*arguments):
    """The one line that it ends with."""
    with pytest.raises(UserError) as error:
        convert_to_webui.main(list(map(str, arguments)))
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(one, other):
    states = hypernet.load(one).state_dict(), hypernet.load(other).state_dict()
    return all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.fixture(scope="module")
def trained(models_dir, images_dir, tmp_path_factory):
    """A run of two steps with dropout, a training state at each."""
    output = tmp_path_factory.mktemp("trained") / "style"
    flags = ["--max_train_steps=2", "--checkpointing_steps=1", "--learning_rate=1e-2", "--layer_structure=1,2,2,1"]
    train_here(models_dir, images_dir, output, *flags, "--activation=relu", "--dropout_structure=0,0.3,0.3,0")
    return output


def test_round_trip_through_every_form(trained, tmp_path):
    early = tmp_path / "early.pt"
    done = run(REPO / "convert_to_webui.py", trained / "checkpoints" / "step-000001", early)
    assert done.returncode == 0 and "early.pt: early, step 1" in done.stdout and not unexpected(done.stderr)
    done = run(REPO / "convert_to_webui.py", early, early)
    assert done.returncode == 2 and done.stderr == f"error: {early}: it is the source itself; name another one\n"
    assert equal(early, trained / "checkpoints" / "step-000001")
    assert hypernet.load(early).config.name == "early" and hypernet.load(early).config.step == 1
    for form in ("alone.safetensors", "folder", "back.pt"):
        convert(early, tmp_path / form)
        assert equal(early, tmp_path / form) and hypernet.load(tmp_path / form).config.activation == "relu"
        early = tmp_path / form
    (trained / "style.pt").unlink()
    convert(trained)
    assert equal(trained / "style.pt", trained) and not equal(trained, early)


def test_half_inference_and_name(trained, tmp_path):
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
    assert "better.pt: there is one already; name another one, or add --overwrite" in refused(
        tmp_path / "a.pt", "--rename", "better.pt"
    )
    assert "better.pt: better" in convert(tmp_path / "a.pt", tmp_path / "better.pt", "--overwrite")
    assert equal(tmp_path / "a.pt", tmp_path / "better.pt")


def test_the_optimizer_goes_to_the_webui_and_comes_back(trained, models_dir, images_dir, tmp_path):
    """Every moment arrives; a run that goes on from the .pt ends in the very weights of one that goes on from the folder."""
    for source in (trained, trained / "checkpoints" / "step-000002"):
        told = convert(source, tmp_path / "moved.pt", "--with_optimizer", "--overwrite")
        assert "moved.pt.optim: AdamW's state" in told
    file = torch.load(tmp_path / "moved.pt.optim", weights_only=True)
    assert file["hash"] == hashlib.sha256((tmp_path / "moved.pt").read_bytes()).hexdigest()[:10]
    ours = torch.load(trained / "checkpoints" / "step-000002" / "optimizer.bin", weights_only=True)["state"]
    theirs = file["optimizer_state_dict"]["state"]
    for index, state in ours.items():
        assert all(torch.equal(torch.as_tensor(value), theirs[index][name]) for name, value in state.items())

    flags = ["--max_train_steps=3", "--learning_rate=1e-2", "--seed=1"]
    ends = []
    for source in (tmp_path / "moved.pt", trained):
        output = tmp_path / f"on-{len(ends)}"
        said = train_here(models_dir, images_dir, output, *flags, f"--init_from={source}")
        assert f"Going on from {source}, step 2\n" in said and "\n  the optimizer goes on" in said
        ends.append(hypernet.load(output))
        assert ends[-1].config.step == 3 and ends[-1].config.layer_structure == [1, 2, 2, 1]
        moments = torch.load(output / "checkpoints" / "step-000003" / "optimizer.bin", weights_only=True)
        assert {float(state["step"]) for state in moments["state"].values()} == {3.0}
        assert moments["param_groups"][0]["lr"] == 1e-2
    assert all(torch.equal(a, b) for a, b in zip(*(end.state_dict().values() for end in ends)))
    (tmp_path / "moved.pt").unlink()  # a run that has begun needs it no more
    again = train_here(models_dir, images_dir, tmp_path / "on-0", *flags, f"--init_from={tmp_path / 'moved.pt'}")
    assert "step-000003, step 3" in again and "moved.pt.optim" not in again  # its own state comes first


def test_what_a_run_cannot_begin_with(trained, models_dir, images_dir, tmp_path):
    convert(trained, tmp_path / "moved.pt")
    flags = [
        f"--pretrained_model_name_or_path={models_dir}",
        f"--train_data_dir={images_dir}",
        f"--output_dir={tmp_path / 'o'}",
    ]
    flags += ["--init_from", str(tmp_path / "moved.pt")]
    initial = load_init_from(parse_config(flags))
    assert initial.lines[1] == "  structure 1,2,2,1, activation relu, widths 12,16,32"
    assert initial.lines[2] == "  there is no moved.pt.optim beside it: the optimizer starts anew"
    config = parse_config([*flags, "--activation=relu", "--layer_structure=1, 2,2,1"])  # what the file says, too
    load_init_from(config)
    assert config.dropout_structure == "0,0.3,0.3,0" and config.widths == "12,16,32"
    for more, message in [
        (["--activation=mish"], "--activation mish: .* has relu; leave it out .* with --init_from"),
        (["--max_train_steps=2"], "--init_from .*: it has been trained for 2 steps already, and the run ends at 2"),
        (["--init_from=none.pt"], "none.pt: there is no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            load_init_from(parse_config([*flags, *more]))


def test_inspect(trained, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"hello")
    told = convert("--inspect", trained, trained / "style.pt")
    assert "WebUI         yes, as style.pt beside it" in told
    assert told.count("ComfyUI       no: leaves dropout active") == 2 and "alive" in told
    reports = json.loads(convert("--inspect", trained / "style.pt", "--json"))
    assert reports[0]["name"] == "style" and reports[0]["activation"] == "relu"
    assert refused("--inspect", tmp_path / "bad.pt").startswith(f"{tmp_path / 'bad.pt'}: it is no hypernetwork file")
    rows = convert("--inspect", *[trained / "style.pt"] * 4).splitlines()
    assert len(rows) == 5 and rows[1].split()[1:] == ["2", "1,2,2,1", "relu", "?", "alive", "WebUI"]
    with contextlib.redirect_stdout(io.StringIO()) as console:
        assert (
            refused("--inspect", tmp_path / "bad.pt", trained / "style.pt") == "1 of 2 cannot be read as a hypernetwork"
        )
    assert "bad.pt: it is no hypernetwork file" in console.getvalue() and "alive" in console.getvalue()


def test_fix(tmp_path):
    torch.save({16: [p.state_dict() for p in Hypernetwork((16,)).pairs["16"].values()], "name": "x"}, tmp_path / "a.pt")
    assert "mended: " in convert(tmp_path / "a.pt", "--fix") and (tmp_path / "a.pt.bak").is_file()
    assert "nothing to mend" in convert(tmp_path / "a.pt", "--fix")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["name"] == "a"


def test_merge(tmp_path):
    for name in "ab":
        save_webui(Hypernetwork((16,), weight_init="xavier_normal"), tmp_path / f"{name}.pt")
    save_webui(Hypernetwork((16,), (1, 3, 1)), tmp_path / "c.pt")
    a, b = hypernet.load(tmp_path / "a.pt"), hypernet.load(tmp_path / "b.pt")
    convert(tmp_path / "m.pt", "--merge", f"{tmp_path / 'a.pt'}:0.6", f"{tmp_path / 'b.pt'}:0.4")
    for mean, one, other in zip(*(h.state_dict().values() for h in (hypernet.load(tmp_path / "m.pt"), a, b))):
        assert (mean - 0.6 * one - 0.4 * other).abs().max() < 1e-6
    told = refused(tmp_path / "n.pt", "--merge", tmp_path / "a.pt", tmp_path / "c.pt")
    assert "their layer_structure differs" in told and "stack them instead" in told
    assert "it is the source itself" in refused(tmp_path / "a.pt", "--merge", tmp_path / "a.pt", tmp_path / "b.pt")


def test_to_lora(models_dir, tmp_path):
    save_webui(style(), tmp_path / "linear.pt")
    save_webui(style(activation="relu"), tmp_path / "relu.pt")
    model, lora, new = models_dir / "epsilon", tmp_path / "lora.safetensors", tmp_path / "new.safetensors"
    save_webui(Hypernetwork((320,), (1, 1)), tmp_path / "sd.pt")
    told = convert(tmp_path / "linear.pt", lora, "--to_lora", "32", "--model", model)
    assert told.count("PEFT 100.00%") == 3 and "misses" not in told and "12 is all of theirs" in told
    pictures = []
    for prepare in (
        lambda pipe: hypernet.attach(pipe.unet, hypernet.load(tmp_path / "linear.pt")),
        lambda pipe: pipe.load_lora_weights(tmp_path, weight_name="lora_peft.safetensors"),
    ):
        pipe = StableDiffusionPipeline.from_pretrained(model)
        prepare(pipe)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe("a cat", num_inference_steps=3, generator=generator, output_type="np").images)
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-4
    flags = ["--to_lora", "4", "--model", model, "--prompts", "a cat", "a dog", "--steps", "3", "--overwrite"]
    told = convert(tmp_path / "relu.pt", lora, *flags)
    assert told.count("the nearest linear map misses") == 3
    size = lora.stat().st_size
    convert(tmp_path / "linear.pt", lora, "--to_lora", "4", "--model", model, "--half", "--overwrite")
    assert lora.stat().st_size < 0.8 * size
    for arguments, message in [
        ([tmp_path / "relu.pt", lora, "--to_lora", "4"], "lora.safetensors: there is one already"),
        ([tmp_path / "relu.pt", new, "--to_lora", "4", "--model", model], "--prompts is missing"),
        ([tmp_path / "relu.pt", new, "--to_lora", "4", "--prompts", "x"], "--model is missing"),
        ([tmp_path / "relu.pt", tmp_path / "a.pt", "--to_lora", "4"], "ends in .safetensors"),
        ([tmp_path / "relu.pt", lora, "--to_lora", "0"], "must be 1 or more"),
        ([tmp_path / "relu.pt", new, "--to_lora", "4", "--model", tmp_path, "--prompts", "x"], "no model_index.json"),
        ([tmp_path / "sd.pt", new, "--to_lora", "4", "--model", model, "--prompts", "x"], "made for another kind"),
    ]:
        assert message in refused(*arguments)


def test_what_is_refused(trained, models_dir, tmp_path):
    save_webui(style(), tmp_path / "a.pt")
    hypernet.save(style(), tmp_path / "style_peft.safetensors")
    lora = tmp_path / "lora.safetensors"
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    for arguments, message in [
        ([tmp_path / "none", b], "there is no such file"),
        ([trained, tmp_path / "none" / "a.pt"], "there is no folder"),
        ([REPO / "README.md", b], "README.md: it is no hypernetwork"),
        ([], "the SOURCE is missing"),
        ([a], "name what to write, too"),
        ([tmp_path / "b.pt"], "there is no such file or folder; did you mean"),
        ([tmp_path], "there is no hypernetwork in this folder itself; name"),
        ([models_dir / "epsilon"], "it is a whole Stable Diffusion, no hypernetwork"),
        ([a, a], "it is the source itself"),
        ([a, tmp_path / "b.ckpt"], "write NAME.pt"),
        ([a, trained], "it holds other things"),
        ([a, models_dir / "epsilon" / "unet"], "it holds other things"),
        ([a, tmp_path], "it holds other things; name a new folder, or a file, such as"),
        ([a, "--rename", ".."], "it becomes a file name"),
        ([a, "--rename", ""], "it becomes a file name"),
        ([a, b, "--rename", "x"], "leave"),
        ([a, lora, "--to_lora", "4", "--strength", "nan", "--model", "m"], "--strength nan: it must be a number"),
        ([a, tmp_path / "style.safetensors", "--to_lora", "4", "--model", "m"], "style_peft.safetensors: there is one"),
        ([a, tmp_path / "style.safetensors", "--to_lora", "4", "--overwrite"], "style_peft.safetensors: it is there"),
        ([a, tmp_path / "None.pt"], "the WebUI takes None for no hypernetwork"),
        ([trained, "--halff"], "unrecognized arguments: --halff; did you mean --half?"),
        ([b, "--merge", f"{a}:0,6", a], "0,6 is no number"),
        ([a, b, "--json"], "--json: it has no effect without --inspect"),
        ([a, b, "--prompts", "x"], "--prompts: it has no effect without --to_lora"),
        (["--inspect", a, "--half"], "--half: it has no effect with --inspect"),
        ([a, "--fix", "--merge", b], "one at a time"),
        ([a, b, "--with_optimizer"], "a.pt has no optimizer; name a training state"),
        ([trained, b, "--with_optimizer", "--half"], "leave out the other option"),
        ([trained, tmp_path / "c", "--with_optimizer"], "lies beside a .pt"),
        ([trained, "--rename", "x"], "it is for files"),
        ([a, "--rename", "x/y"], "it becomes a file name"),
        ([trained, "--fix"], "only the WebUI's .pt files can need it"),
        ([REPO / "README.md", "--fix"], "README.md: it is no hypernetwork"),
        ([a, b, "--fix"], "it mends the file in its place"),
        (["--merge", a, a], "the file to write is missing"),
        ([a, b, "--merge", a, a], "is one too many"),
        ([a, "--inspect", a], "name all files behind --inspect"),
    ]:
        assert message in refused(*arguments), arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "style_peft.safetensors"]


def test_names_come_from_where_it_is_written(tmp_path):
    save_webui(style(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "style-v1.5")
    assert hypernet.load(tmp_path / "style-v1.5").config.name == "style-v1.5"
    convert(tmp_path / "a.pt", tmp_path / "B.PT")
    assert hypernet.load(tmp_path / "B.PT").config.name == "B" and (tmp_path / "B.PT").is_file()
    (tmp_path / "evil").mkdir()
    hypernetwork = hypernet.load(tmp_path / "a.pt")
    hypernetwork.register_to_config(name="../../escaped")
    hypernet.save(hypernetwork, tmp_path / "evil")
    convert(tmp_path / "evil")
    assert (tmp_path / "evil" / "evil.pt").is_file() and "other" not in convert(tmp_path / "evil", "--overwrite")
    assert "evil.pt: there is one already" in refused(tmp_path / "evil")
    assert "the name is too long" in refused(tmp_path / "a.pt", tmp_path / ("x" * 300))
