"""Values that cannot work, alone or together, are refused in one line that names the option."""

import pytest

from hypernet.cli.training_options import parse_config
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--max_train_steps", "0"], "--max_train_steps 0"),
        (["--learning_rate", "1e-5:9, 1e-6:8"], r"--learning_rate .*>>> 1e-6:8<<<"),
        (["--learning_rate", "0"], "--learning_rate 0"),
        (["--layer_structure", "2,1"], "--layer_structure 2,1"),
        (["--layer_structure", "1,0,1"], "--layer_structure 1,0,1: .*more than 0"),
        (["--layer_structure", "1,x,1"], "--layer_structure 1,x,1.*'x'"),
        (["--layer_structure", "1,inf,1"], "--layer_structure 1,inf,1.*'inf'"),
        (["--activation", "rellu"], "--activation 'rellu'.*relu"),
        (["--dropout_structure", "0,0.5"], "--dropout_structure 0,0.5"),
        (["--weight_init=zero", "--activate_output", "--activation=sigmoid"], "--weight_init zero"),
        (["--widths", "320,abc"], "--widths 320,abc.*'abc'"),
        (["--optimizer", "AdamV"], "--optimizer AdamV.*Adam"),
        (["--optimizer", "Prodigy"], "--optimizer Prodigy"),
        (["--optimizer", "DAdaptAdam"], "--optimizer DAdaptAdam.*Prodigy"),
        (["--optimizer", "SGDNesterov"], "--optimizer SGDNesterov.* SGD .*nesterov=true"),
        (["--optimizer", "SGD", "--use_8bit_adam"], "--use_8bit_adam.*--optimizer"),
        (["--adam_beta2", "1"], "--adam_beta2 1.0"),
        (["--snr_gamma", "0"], "--snr_gamma 0"),
        (["--seed", "5000000000"], "--seed 5000000000"),
        (["--lr_scheduler", "cosine", "--learning_rate", "1e-4:5, 1e-5"], "--lr_scheduler cosine.*--learning_rate"),
        (["--lr_scheduler", "polynomial", "--learning_rate", "1e-8"], "--lr_scheduler polynomial.*--learning_rate"),
        (["--lr_scheduler=cosine", "--max_train_steps=9", "--lr_warmup_steps=9"], "--lr_warmup_steps 9"),
        (["--lr_warmup_steps=9"], "--lr_warmup_steps 9.*--lr_scheduler"),
        (["--max_grad_value", "2"], "--max_grad_value 2.*--clip_grad_mode value"),
        (["--name", "a/b"], "--name a/b"),
        (["--name", "a:b"], "--name a:b"),
        (["--name", "None"], "--name None"),
        (["--name", "x" * 300], "--name xxx"),
        (["--name", "\u6c34" * 80], "--name \u6c34"),
        (["--name", "a\nb"], "--name a b"),
        (["--name", "trail."], "--name trail."),
        (["--name", "trail "], '--name "trail "'),
        (["--name", "a\u202eb"], r"--name a\\u202eb"),
        (["--name", "con"], "--name con"),
        (["--output_dir", "out/None"], "--output_dir out/None.*--name"),
        (["--output_dir", "out/" + "x" * 248], "--output_dir out/x.*--name"),
        (["--output_dir", "C:\\Users\\me\\out"], r"^--output_dir C:\\Users\\me\\out: .*Windows"),
        (["--output_dir", "D:/out", "--name=ink"], "^--output_dir D:/out: .*Windows"),
        (["--output_dir", "out\\ink", "--name=ink"], "^--output_dir .* write out/ink$"),
        (["--cache_dir", "D:\\cache"], "^--cache_dir .*Windows"),
        (["--init_from", "E:\\a.pt"], "^--init_from .*Windows"),
        (["--lora", "E:\\a.safetensors:0.5"], "^--lora .*Windows"),
        (["--template", "C:\\t\\style.txt"], "^--template .*Windows"),
        (["--lora", "ink.safetensors:0,5"], "^--lora .* ink.safetensors:0.5$"),
        (["--output_dir", "$HOME/out"], r"^--output_dir .*\$HOME"),
        (["--output_dir", "'out'"], "^--output_dir .* write out "),
        (["--learning_rate", "5e-6:12,000"], "--learning_rate .*>>>000<<<"),
        (["--learning_rate", "5e-6:12k"], "--learning_rate .*12000"),
        (["--learning_rate", "1e\u20135"], "--learning_rate .*1e-5 "),
        (["--output_dir", "x" * 300, "--name=ink"], "--output_dir xxx"),
        (["--output_dir", ""], "--output_dir"),
        (["--train_data_dir", "x" * 300], "--train_data_dir xxx"),
        (["--init_from", "x" * 300 + "/a.pt"], "--init_from xxx"),
        (["--learning_rate", "0,0001"], r"--learning_rate .*0,>>>0001<<<.*0\.0001"),
        (["--max_grad_norm", "0,5"], r"--max_grad_norm .*0,>>>5<<<.*0\.5"),
        (["--clip_grad_mode=value", "--max_grad_value", "0,5"], r"--max_grad_value .*0\.5"),
        (["--template", "my templates/style_filewrods.txt"], "--template my templates/style_filewrods.txt"),
        (["--train_data_dir", ""], "--train_data_dir"),
        (["--pretrained_model_name_or_path", ""], "--pretrained_model_name_or_path"),
        (["--dataset_name", "a/b"], "--train_data_dir images"),
        (["--image_column", "x"], "--image_column x.*--dataset_name"),
        (
            ["--train_data_dir", "", "--dataset_name=a/b", "--template=a [folder]"],
            r"--template a \[folder\].*--train_data_dir",
        ),
        (["--flip_p", "1.5"], "--flip_p 1.5"),
        (["--flip_p", "0.3", "--random_flip"], "--flip_p 0.3.*--random_flip"),
        (["--flip_p", "0", "--random_flip"], "--flip_p 0.*--random_flip"),
        (["--repeats", "0"], "--repeats 0"),
        (["--train_data_dir", "images:0"], "--train_data_dir images:0"),
        (["--train_data_dir", "images", "others", "--dataset_name=a/b"], "--train_data_dir images"),
        (["--tag_dropout", "1.5"], "--tag_dropout 1.5"),
        (["--skip_connection=nearest", "--activate_output"], "--activate_output.*--skip_connection"),
        (["--skip_connection=linear", "--weight_init=zero"], "weight_init zero.*skip_connection"),
        (["--caption_dropout", "-0.1"], "--caption_dropout -0.1"),
        (["--caption_dropout", "10"], "--caption_dropout 10.* 0.1$"),
        (["--keep_tags", "1"], "--keep_tags 1.*--shuffle_tags"),
        (["--tag_separator", ";"], "--tag_separator ;.*--shuffle_tags"),
        (["--tag_separator", "", "--shuffle_tags"], "--tag_separator"),
        (["--caption_variants", "2"], "--caption_variants 2.*--shuffle_tags"),
        (["--filename_word_regex", "[a-"], r"--filename_word_regex \[a-"),
        (["--template", "nothing.txt"], "--template nothing.txt"),
        (["--template", "styl"], "--template styl"),
        (["--template", "styl_e"], "--template styl_e.*style_filewords"),
        (["--template", "by [Name]"], r"--template by \[Name\].*\[name\]"),
        (["--template", "a [fileword]"], r"--template.*\[filewords\]"),
        (["--template", "style", "--shuffle_tags"], "--shuffle_tags.*--template style"),
        (["--resolution", "big"], "--resolution big"),
        (["--resolution", "0"], "--resolution 0"),
        (["--resolution", "32", "--aspect_buckets"], "--resolution 32x32"),
        (["--alpha_background", "#ffffff00"], "--alpha_background #ffffff00"),
        (["--alpha_background", "whit"], "--alpha_background whit"),
        (["--varsize", "--aspect_buckets"], "--varsize.*--aspect_buckets"),
        (["--crop_variants", "3"], "--crop_variants 3.*--crop random"),
        (["--bucket_upscale"], "--bucket_upscale.*--aspect_buckets"),
        (["--validation_split", "1"], "--validation_split 1"),
        (["--validation_split", "0.1", "--validation_data_dir", "v"], "--validation_split 0.1.*--validation_data_dir"),
        (["--validation_data_dir", "images/v"], "--validation_data_dir images/v.*--train_data_dir"),
        (["--validation_loss_steps", "5"], "--validation_loss_steps 5.*--validation_split"),
        (["--validation_prompt", "a <lora:x:1>"], "--validation_prompt.*--lora"),
        (["--output_dir", "images/out"], "--output_dir images/out.*--train_data_dir"),
        (["--log_artifact", "--report_to=none"], "--log_artifact.*--report_to"),
        (["--clip_skip", "0"], "--clip_skip 0"),
        (["--lora", "ink.safetensors:0"], "--lora ink.safetensors:0"),
    ],
)
def test_impossible_values_are_refused(flags, named):
    with pytest.raises(UserError, match=named) as error:
        parse_config([*REQUIRED, *flags])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, size", [("512", (512, 512)), ("768x512", (768, 512)), (" 64 X 128 ", (64, 128))])
def test_resolution_is_a_side_or_width_x_height(text, size):
    assert parse_config([*REQUIRED, "--resolution", text]).size == size


@pytest.mark.parametrize("text, name", [("adamw", "AdamW"), ("ADAMW_8BIT", "AdamW8bit"), ("sgd", "SGD")])
def test_optimizers_are_found_in_any_case(text, name):
    assert parse_config([*REQUIRED, "--optimizer", text]).optimizer == name


@pytest.mark.parametrize(
    "flag, text, meant",
    [
        ("activation", "Swish", "swish"),
        ("activation", "ReLU", "relu"),
        ("activation", "Leaky_ReLU", "leakyrelu"),
        ("activation", "None", "linear"),
        ("weight_init", "Normal", "normal"),
        ("weight_init", "KaimingUniform", "kaiming_uniform"),
        ("weight_init", "xavier normal", "xavier_normal"),
        ("layer_norm_init", "Ones", "ones"),
        ("layer_structure", "[1, 2, 1]", "1, 2, 1"),
        ("dropout_structure", "[0, 0.3, 0]", "0, 0.3, 0"),
        ("dropout_structure", "use_dropout", "0,0.3,0"),
        ("dropout_structure", "True", "0,0.3,0"),
        ("dropout_structure", "0.15", "0,0.15,0"),
        ("dropout_structure", "None", None),
        ("dropout_structure", "false", None),
        ("clip_grad_mode", "disabled", "none"),
        ("clip_grad_mode", "None", "none"),
        ("lr_scheduler", "Cosine with restarts", "cosine_with_restarts"),
        ("prediction_type", "v-prediction", "v_prediction"),
        ("layer_structure", "(1,1.5,1)", "1,1.5,1"),
        ("widths", "[320,640]", "320,640"),
        ("widths", "['768', '320',]", "768, 320"),
        ("report_to", "off", "none"),
        ("crop", "Random", "random"),
        ("mixed_precision", "BF16", "bf16"),
        ("mixed_precision", "BFLOAT_16", "bf16"),
        ("mixed_precision", "fp32", "no"),
    ],
)
def test_accepts_the_webuis_words_in_any_case(flag, text, meant):
    assert getattr(parse_config([*REQUIRED, f"--{flag}", text]), flag) == meant


def test_one_dropout_is_for_every_inner_layer():
    config = parse_config([*REQUIRED, "--layer_structure=1, 2, 2, 1", "--dropout_structure=0.1"])
    assert config.structure()["dropout_structure"] == [0, 0.1, 0.1, 0]


@pytest.mark.parametrize(
    "flags, steps",
    [
        (["--learning_rate", "5e-6:12000, 5e-7:30000"], 30000),
        (["--learning_rate", "5e-6:12000, 5e-7:30000", "--max_train_steps=40000"], 40000),
        (["--learning_rate", "5e-6:12000, 5e-7:30000", "--max_train_steps=200"], 200),
        (["--learning_rate", "5e-6:120, 5e-7:300"], 300),
        (["--learning_rate", "5e-6:120, 5e-7"], 10000),
        (["--learning_rate", "5e-6"], 10000),
    ],
)
def test_the_schedule_sets_the_last_step_unless_steps_are_given(flags, steps):
    assert parse_config([*REQUIRED, *flags]).max_train_steps == steps


def test_8bit_adam_is_an_optimizer_of_its_own():
    assert parse_config([*REQUIRED, "--use_8bit_adam"]).optimizer == "AdamW8bit"


def test_name_defaults_to_the_output_folder():
    assert parse_config([*REQUIRED, "--output_dir", "out/ink"]).name == "ink"


def test_a_flip_probability_of_one_half_is_random_flip():
    for flags, expected in [
        ([], (False, None, 0.0)),
        (["--random_flip"], (True, None, 0.5)),
        (["--flip_p=0.5"], (True, None, 0.5)),
        (["--flip_p=0.5", "--random_flip"], (True, None, 0.5)),
        (["--flip_p=0"], (False, None, 0.0)),
        (["--flip_p=0.3"], (False, 0.3, 0.3)),
    ]:
        config = parse_config([*REQUIRED, *flags])
        assert (config.random_flip, config.flip_p, config.flip_probability) == expected


def test_folders_must_not_hold_what_the_run_writes_or_validates(tmp_path, monkeypatch):
    for name in ("a", "b/v", "c"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    flags = [*REQUIRED, "--train_data_dir", "a", "b:2"]
    for flag, named in (
        ("--validation_data_dir=b/v", "--validation_data_dir b/v"),
        ("--output_dir=b/o", "--output_dir b/o"),
    ):
        with pytest.raises(UserError, match=f"^{named}: .*--train_data_dir"):
            parse_config([*flags, flag])
    assert parse_config([*flags, "--validation_data_dir=c"]).train_data_dir == ["a", "b:2"]
