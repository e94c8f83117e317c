"""Validation: the mean over unmasked tokens, whatever the batches, the masks and the number of processes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_lm.evaluation.validation import validate
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.storage.json_lines import add_line
from open_lm.tokenizer import Tokenizer


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 300, (6, 17), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def plain(model: Transformer, tokens: Tensor) -> tuple[float, float]:
    """Loss and accuracy from whole logits."""
    logits, targets = model(tokens[:, :-1].clamp(min=0)), tokens[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    return float(loss), float((logits.argmax(-1) == targets)[targets >= 0].double().mean())


def test_loss_perplexity_and_accuracy_are_those_of_the_logits(model: Transformer, tokens: Tensor) -> None:
    tokens[0, 5] = model(tokens[:1, :5])[0, -1].argmax()  # one right prediction at least
    loss, accuracy = plain(model, tokens)
    result = validate(model, [tokens[:4], tokens[4:]])
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert result.token_accuracy == pytest.approx(accuracy) and accuracy > 0
    assert (result.tokens, result.sequences) == (6 * 16, 6)


def test_the_batch_size_does_not_change_the_loss(model: Transformer, tokens: Tensor) -> None:
    one, many = validate(model, [tokens]), validate(model, list(tokens.split(1)))
    assert one.loss == pytest.approx(many.loss, rel=1e-6)


def test_masked_targets_are_ignored_and_short_rows_weigh_by_their_tokens(model: Transformer, tokens: Tensor) -> None:
    tokens[2, 4:] = -1
    result = validate(model, [tokens[:3], tokens[3:]])
    assert result.loss == pytest.approx(plain(model, tokens)[0], rel=1e-6)
    assert (result.tokens, result.sequences) == (5 * 16 + 3, 6)


def test_a_masked_token_is_read_by_what_follows_it(model: Transformer, tokens: Tensor) -> None:
    masked = torch.cat([~tokens[:, :6], tokens[:, 6:]], dim=1)
    with torch.no_grad():
        losses = F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    assert validate(model, [masked]).loss == pytest.approx(float(losses[:, 5:].mean()), rel=1e-6)


def test_openlm_defect_29_fully_masked_rows_and_batches_are_harmless(model: Transformer, tokens: Tensor) -> None:
    masked = torch.full_like(tokens, -1)
    with_masked = validate(model, [tokens, masked, torch.cat([tokens[:1], masked])])
    assert with_masked == validate(model, [tokens, tokens[:1]])
    assert math.isfinite(with_masked.loss)


def test_nothing_to_validate_on_is_an_error(model: Transformer, tokens: Tensor) -> None:
    for batches in ([], [torch.full_like(tokens, -1)]):
        with pytest.raises(ValueError, match="--val-data"):
            validate(model, batches)


def test_bits_per_byte_come_from_statistics_else_from_text_else_are_absent(model: Transformer, tokenizer: Tokenizer) -> None:
    text = "what a day, a cat saw a hat"
    ids = tokenizer.encode(text)
    row = torch.tensor([[*ids, tokenizer.eot_id, *[-1] * 5]])
    result = validate(model, [row], tokenizer=tokenizer)
    n_bytes = len(text) - len(tokenizer.decode(ids[:1]))  # the first id is no target, the end of text has no bytes
    bits = result.loss * result.tokens / math.log(2)
    assert result.tokens == len(ids)
    assert result.bits_per_byte == pytest.approx(bits / n_bytes)
    assert validate(model, [row], tokenizer=tokenizer, bytes_per_token=4.0).bits_per_byte == result.bits_per_byte  # of some rows only
    whole = validate(model, [row[:, :-5], torch.full_like(row, -1)[:, :-5]], tokenizer=tokenizer, bytes_per_token=4.0)
    assert whole.bits_per_byte == pytest.approx(whole.loss / math.log(2) / 4)
    assert validate(model, [row]).bits_per_byte is None


def test_a_loss_that_is_not_finite_is_null_in_the_results(model: Transformer, tokens: Tensor, tmp_path: Path) -> None:
    broken = Transformer(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.output.weight[0] = math.nan
    calls: list[None] = []
    result = validate(broken, [tokens[:3], tokens[3:]], progress=lambda: calls.append(None))
    assert math.isnan(result.loss) and math.isnan(result.perplexity) and len(calls) == 2
    add_line(tmp_path / "results.jsonl", [{**result.as_dict(), "best": math.inf}])
    (one,) = json.loads((tmp_path / "results.jsonl").read_text(), parse_constant=pytest.fail)
    assert (one["loss"], one["perplexity"], one["best"]) == (None, None, None) and one["tokens"] == 96


def test_the_models_mode_and_gradients_are_left_alone(model: Transformer, tokens: Tensor) -> None:
    model.train()
    try:
        validate(model, [tokens])
        assert model.training and all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


def test_the_dictionary_has_openlms_keys(model: Transformer, tokens: Tensor) -> None:
    values = validate(model, [tokens]).as_dict()
    bounds = {f"loss_{unit}_{side}_95" for unit in ("sequences", "tokens") for side in ("lower", "upper")}
    assert {"loss", "sequences", "tokens", *bounds} <= values.keys()
    assert all(values[key] is None for key in bounds)


def _validate_on_a_process(rank: int, folder: str, weights: dict[str, Tensor], tokens: Tensor) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = Transformer(ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=64, vocab_size=300))
    model.load_state_dict(weights)
    result = validate(model, [tokens[rank::2]])
    torch.save((result.loss, result.tokens), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_with_unequal_tokens_agree_on_the_mean_over_all(model: Transformer, tokens: Tensor, tmp_path: Path) -> None:
    tokens[1, 3:] = -1
    torch.multiprocessing.spawn(_validate_on_a_process, (str(tmp_path), model.state_dict(), tokens), nprocs=2)
    expected = validate(model, [tokens])
    for rank in range(2):
        loss, count = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == expected.tokens
        assert loss == pytest.approx(expected.loss, rel=1e-9)
