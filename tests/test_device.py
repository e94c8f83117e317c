"""The device of a command."""

from __future__ import annotations

import pytest
import torch

from open_lm.device import choose_device


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert choose_device(None) == device


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name}: ") as error:
        choose_device(name)
    assert "\n" not in str(error.value)
