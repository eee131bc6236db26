"""What a file is that is no hypernetwork, told by the names in it."""

_KINDS = [  # the first whose names occur wins; a name may be any part of one in the file
    ("a WebUI optimizer file (.pt.optim); name the .pt beside it", ("optimizer_state_dict",)),
    (
        "a LoRA",  # some carry the embeddings that they were trained with
        ("lora_down", "lora_up", "lora_A", "lora_B", "lora.up", "lora.down", "hada_w1", "lokr_w1", "dora_scale"),
    ),
    ("a textual inversion embedding", ("string_to_param", "emb_params", "clip_l", "clip_g")),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding", "zero_convs.")),
    ("a whole Stable Diffusion checkpoint", ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")),
    ("the UNet of a Stable Diffusion", ("time_embedding.linear_1", "time_embed.0.")),
    ("a VAE", ("encoder.conv_in", "decoder.conv_in", "quant_conv")),
    ("a text encoder", ("text_model.", "token_embedding")),
    ("a training state of an optimizer; name the folder that it lies in", ("param_groups",)),
    ("a picture", ("\x89PNG", "\xff\xd8\xff", "RIFF")),
    ("an archive", ("7z\xbc\xaf", "Rar!", "\x1f\x8b")),
    ("a web page", ("<!doctype html", "<!DOCTYPE html", "<html")),
    ("a pointer of Git LFS, so the file itself has not been downloaded", ("version https://git-",)),
]


def kind_of(names) -> str | None:
    """What has such names in it (tensors, fields, classes, or a file's first characters), with its article."""
    together = "\n".join(names)
    return next((kind for kind, marks in _KINDS if any(mark in together for mark in marks)), None)
