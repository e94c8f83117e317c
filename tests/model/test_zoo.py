"""Named sizes have the published parameter counts, and wrong configurations are told in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import get_model_config, named_models
from open_lm.params.fields import UserError

PARAMETERS = {
    "open_lm_11m": 11_014_848,
    "open_lm_11m_v2": 10_570_944,
    "open_lm_25m": 24_683_904,
    "open_lm_41m": 41_007_168,
    "open_lm_79m_v2": 78_922_752,
    "open_lm_87m": 87_474_000,
    "open_lm_154m_v2": 153_705_600,
    "open_lm_160m": 162_436_608,
    "open_lm_410m": 411_666_432,
    "open_lm_411m": 411_666_432,
    "open_lm_411m_v2": 411_666_432,
    "open_lm_830m": 834_554_880,
    "open_lm_1b": 1_439_895_552,
    "open_lm_1b_old": 1_439_895_552,
    "open_lm_3b": 2_796_098_560,
    "open_lm_7b": 6_889_676_800,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_have_their_published_parameters(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(get_model_config(name))
    assert count_parameters(model) == PARAMETERS[name]


def test_every_named_size_is_in_the_table() -> None:
    assert set(named_models()) == set(PARAMETERS)


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"--model open_lm_1bb: no such size. Did you mean open_lm_1b\?"):
        get_model_config("open_lm_1bb")


def test_a_missing_file_names_the_nearest_size() -> None:
    with pytest.raises(ValueError, match=r"--model open_lm_3b.json: no such file.*Did you mean open_lm_3b\?"):
        get_model_config("open_lm_3b.json")


def test_all_wrong_keys_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"hidden_dimm": 8, "n_layers": 0, "n_heads": 2, "model_norm": "rms", "moe_freq": 2}))
    with pytest.raises(UserError) as caught:
        get_model_config(str(file))
    text = str(caught.value)
    for part in ("unknown key hidden_dimm. Did you mean hidden_dim?", "n_layers 0", "choose one of", "mixture of experts", "needs the key"):
        assert part in text


def test_a_key_given_twice_is_named_with_its_line_and_a_byte_order_mark_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text('\ufeff{"hidden_dim": 8,\n "n_layers": 1,\n "n_heads": 2}')
    assert get_model_config(str(file)).n_heads == 2
    file.write_text('{"hidden_dim": 8,\n "n_layers": 1,\n "n_heads": 2, "n_layers": 3}')
    with pytest.raises(ValueError, match=r"--model .*m.json: can't be read: line 3: the key 'n_layers' is given twice, first in line 2"):
        get_model_config(str(file))


def test_keys_of_the_file_are_stronger_than_flags(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"hidden_dim": 8, "n_layers": 1, "n_heads": 2, "model_norm": "rms_norm"}))
    config = get_model_config(str(file), {"model_norm": "lp_layer_norm", "qk_norm": True})
    assert config.model_norm == "rms_norm"
    assert config.qk_norm


def test_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"hidden_dim": 24, "n_layers": 1, "n_heads": 4, "n_kv_heads": 3}))
    with pytest.raises(ValueError, match="n_kv_heads 3: must divide n_heads 4"):
        get_model_config(str(file))
