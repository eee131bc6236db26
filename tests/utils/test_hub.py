"""Hub ids, and what is reported for one that does not exist or is invalid."""

import pytest

from hypernet.stable_diffusion.loras import check_loras
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.errors import UserError
from hypernet.utils.hub import hub_file, is_hub_id


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "here").mkdir(parents=True)
    assert is_hub_id("somebody/ink") and is_hub_id("somebody/ink-1.5") and is_hub_id("mine/elsewhere")
    for path in ("mine/here", "ink", "a/b/c", "", "/ink", "./a/b", "../ink", "~/ink", "\\\\server/ink"):
        assert not is_hub_id(path), path


@pytest.mark.parametrize("name", ["somebody/ink", "some body/ink", "somebody/ink..1", "somebody/" + "i" * 200])
def test_missing_and_invalid_ids_are_reported_alike(models_dir, name):
    with pytest.raises(OSError):
        hub_file(name)
    with pytest.raises(UserError, match=f"--pretrained_model_name_or_path {name}") as error:
        ModelSource(name).identity()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=name):
        check_loras([name], 768)
    path = str(models_dir / "epsilon")
    assert ModelSource(path, lora=(name,)).identity() == ModelSource(path, lora=(name,)).identity()
