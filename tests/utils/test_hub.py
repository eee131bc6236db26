"""What may be an id of the Hub; a name that no repository can have is told like one that is not there."""

import pytest

from hypernet.stable_diffusion.loras import check_loras
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.errors import UserError
from hypernet.utils.hub import hub_file, is_hub_id


def test_what_may_be_an_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "here").mkdir(parents=True)
    assert is_hub_id("somebody/ink") and is_hub_id("somebody/ink-1.5") and is_hub_id("mine/elsewhere")
    for path in ("mine/here", "ink", "a/b/c", "", "/ink", "./a/b", "../ink", "~/ink", "\\\\server/ink"):
        assert not is_hub_id(path), path


@pytest.mark.parametrize("name", ["somebody/ink", "some body/ink", "somebody/ink..1", "somebody/" + "i" * 200])
def test_what_the_hub_has_not(models_dir, name):
    with pytest.raises(OSError):
        hub_file(name)
    with pytest.raises(UserError, match=f"--pretrained_model_name_or_path {name}: it cannot be found") as error:
        ModelSource(name).identity()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="the Hub has no such LoRA, or cannot be reached"):
        check_loras([name], 768)
    path = str(models_dir / "epsilon")
    assert ModelSource(path, lora=(name,)).identity() == ModelSource(path, lora=(name,)).identity()
