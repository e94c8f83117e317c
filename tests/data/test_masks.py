"""Which targets count and where documents end: OpenLM's meaning of its flags, its worked example, and what a loader gives."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from open_lm.data.batch import Batch, input_ids
from open_lm.data.dataset import TrainData, build_train_data
from open_lm.data.loader import Loader, LoaderShape
from open_lm.data.masks import Masks
from open_lm.data.source_names import source_names
from open_lm.params.data import DataParams

Write = Callable[..., Path]
L, P, NONE = 42, 2, -100


def inputs_and_targets(masks: Masks, rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """What the model reads and what it is asked for, `NONE` where it is not asked."""
    tokens = torch.from_numpy(masks.apply(np.array(rows, dtype=np.int32)))
    return input_ids(tokens[:, :-1]).tolist(), torch.where(tokens[:, 1:] < 0, NONE, tokens[:, 1:]).tolist()


ROWS = [[0, 1, 2, L], [0, 1, L, 2], [0, L, 1, 2], [L, 0, 1, 2], [0, 1, 2, 3], [L, 0, L, 1], [L, L, L, 1]]


def test_a_left_mask_ends_at_the_last_such_target_and_keeps_the_inputs() -> None:
    inputs, targets = inputs_and_targets(Masks(left=L), ROWS)
    assert inputs == [row[:-1] for row in ROWS]
    _ = NONE
    assert targets == [[_, _, _], [_, _, 2], [_, 1, 2], [0, 1, 2], [1, 2, 3], [_, _, 1], [_, _, 1]]


def test_an_individual_mask_hides_its_own_targets_only() -> None:
    inputs, targets = inputs_and_targets(Masks(individual=P), ROWS)
    assert inputs == [row[:-1] for row in ROWS]
    _ = NONE
    assert targets == [[1, _, L], [1, L, _], [L, 1, _], [0, 1, _], [1, _, 3], [0, L, 1], [L, L, 1]]


def test_both_masks_together() -> None:
    _ = NONE
    assert inputs_and_targets(Masks(left=L, individual=P), ROWS)[1] == [
        *([_, _, _], [_, _, _], [_, 1, _], [0, 1, _], [1, _, 3], [_, _, 1], [_, _, 1])
    ]


def test_openlms_worked_example() -> None:
    a, b, c, d, e, f, _ = 10, 11, 12, 13, 14, 15, NONE
    row = [a, b, c, L, d, e, L, f, P, P]
    inputs, targets = inputs_and_targets(Masks(left=L, individual=P, squash_left=True), [row])
    assert inputs == [[a, b, c, d, e, f, P, P, P]]
    assert targets == [[_, _, _, _, f, _, _, _, _]]


def openlm(row: list[int], squash: bool, individual: int | None) -> list[tuple[list[int], int]]:
    """OpenLM's meaning written plainly: for each target that counts, what is read before it and the target."""
    inputs, targets = row[:-1], list(row[1:])
    last = max((i for i, t in enumerate(targets) if t == L), default=-1)
    if squash:
        targets = [NONE if i <= last and t != L else t for i, t in enumerate(targets)]
        inputs, targets = ([t for t in side if t != L] for side in (inputs, targets))
    else:
        targets = [NONE if i <= last else t for i, t in enumerate(targets)]
    return [(inputs[: i + 1], t) for i, t in enumerate(targets) if t not in (NONE, individual)]


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("individual", [None, P])
@given(row=arrays(np.int32, 12, elements=st.sampled_from([0, 1, P, 3, L])))
def test_every_target_that_counts_follows_the_same_inputs_as_in_openlm(row: np.ndarray, individual: int | None, squash: bool) -> None:
    if squash and row[0] == L:
        row[0] = 3  # the next test's case
    masks = Masks(L, individual, squash)
    (inputs,), (targets,) = inputs_and_targets(masks, [row.tolist()])
    ours = [(inputs[: i + 1], t) for i, t in enumerate(targets) if t != NONE]
    assert ours == openlm(row.tolist(), squash, individual)


def test_a_squashed_row_that_begins_with_the_token_is_asked_for_what_comes_next() -> None:
    """OpenLM asks for 0 after it has shown 0, since its inputs move and its targets don't."""
    assert openlm([L, 0, 1, 3], True, None)[0] == ([0], 0)
    inputs, targets = inputs_and_targets(Masks(left=L, squash_left=True), [[L, 0, 1, 3]])
    assert (inputs, targets) == ([[0, 1, 3]], [[1, 3, NONE]])


def test_a_left_token_that_the_data_mask_already_is_one_nevertheless() -> None:
    row = np.array([[5, 6, ~L, 8, 9]])
    assert Masks(left=L).apply(row).tolist() == [[5, ~6, ~L, 8, 9]]
    assert Masks(left=L, squash_left=True).apply(row).tolist() == [[5, ~6, 8, 9, -1]]
    assert Masks(left=0).apply(np.array([[5, 6, -1, 8, 9]])).tolist() == [[5, 6, -1, 8, 9]]  # a masked 0 looks like padding


def test_masked_positions_of_the_data_stay_masked_whatever_the_flags() -> None:
    inputs, targets = inputs_and_targets(Masks(left=L, individual=P), [[5, -1, ~7, 8, P]])
    assert inputs == [[5, 0, 7, 8]]
    assert targets == [[NONE, NONE, 8, NONE]]


def test_an_end_of_text_belongs_to_the_document_that_it_ends() -> None:
    tokens = np.array([[1, 2, 0, 3, 0, 0, 4, 5], [0, 1, 1, 1, 1, 1, 1, 0], [1, ~0, 2, 3, 4, 5, 6, 7]], dtype=np.int32)
    ids = Masks(document_end=0).document_ids(tokens)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[0, 0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]


def test_ids_that_no_row_holds_and_several_ends_of_text_are_refused() -> None:
    with pytest.raises(ValueError, match="--target-mask-left 9: the vocabulary has the ids 0 to 8"):
        Masks.of(DataParams(target_mask_left=9), 9, {0})
    with pytest.raises(ValueError, match="--target-mask-individual -1: "):
        Masks.of(DataParams(target_mask_individual=-1), 9, {0})
    with pytest.raises(ValueError, match=r"--document-mask: the sources end documents with different ids \(0, 3\); give the --tokenizer"):
        Masks.of(DataParams(document_mask=True), 9, {3, 0})
    assert Masks.of(DataParams(squash_mask_left=True, target_mask_left=4), 9, {3, 0}) == Masks(left=4, squash_left=True)


def two_sources(write_shards: Write, **options) -> TrainData:
    folders = write_shards([30, 17]), write_shards([9, 5], key="npy", first=1000, folder="other")
    params = DataParams(train_data=tuple(f"{folder}/*.tar" for folder in folders), **options)
    return build_train_data(params, seq_len=4, vocab_size=2000, global_batch_size=12)


def batches(data: TrainData, masks: Masks, processes: int, workers: int) -> list[Batch]:
    """The global batches of numbers 24 to 143."""
    parts = []
    for rank in range(processes):
        shape = LoaderShape(rank, processes, 12, data.streams, 24, 144)
        with Loader(data.rows, shape, workers, masks=masks, sources=True) as loader:
            parts.append(list(loader))
    tensors = [[[getattr(b, name) for b in step] for name in ("tokens", "document_ids", "sources")] for step in zip(*parts, strict=True)]
    return [Batch(*(torch.stack(part, dim=1).flatten(0, 1) for part in step)) for step in tensors]


@pytest.mark.parametrize(("processes", "workers"), [(3, 0), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_masks_documents_and_sources_are_the_same_on_any_processes_and_workers(processes: int, workers: int, write_shards: Write) -> None:
    data, masks = two_sources(write_shards), Masks(left=1003, individual=7, document_end=1002)
    one = batches(data, masks, 1, 0)
    assert len(one) == 10
    for a, b in zip(one, batches(data, masks, processes, workers), strict=True):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "document_ids", "sources"))


def test_a_batch_knows_the_source_of_each_row_its_documents_and_its_masked_targets(write_shards: Write) -> None:
    for batch in batches(two_sources(write_shards), Masks(individual=7, document_end=1002), 1, 0):
        assert batch.tokens.dtype == batch.sources.dtype == torch.int64
        ids = input_ids(batch.tokens)[:, 0]
        assert torch.equal(batch.sources, (ids >= 1000).long())
        assert torch.equal(batch.tokens[:, 1:] < 0, (ids == 7)[:, None].expand(-1, 4))
        assert torch.equal(batch.document_ids[ids == 1002], torch.arange(4).expand(int((ids == 1002).sum()), -1).int())
        assert not batch.document_ids[ids != 1002].any()


def test_without_masks_a_batch_is_its_tokens(write_shards: Write) -> None:
    with Loader(two_sources(write_shards).rows, LoaderShape(0, 1, 12, 12), workers=0) as loader:
        batch = next(iter(loader))
    assert batch.document_ids is None
    assert batch.sources is None


def test_signed_npy_members_bring_their_own_loss_mask(tmp_path: Path, write_tar: Write) -> None:
    rows = np.array([[1, ~2, ~3, 4, 5], [5, ~0, 7, ~8, 9]], dtype=np.int32)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    write_tar(tmp_path / "signed/shard-0.tar", [("0.npy", buffer.getvalue())])
    params = DataParams(train_data=(f"{tmp_path}/signed/*.tar",))
    data = build_train_data(params, seq_len=4, vocab_size=10, global_batch_size=2)
    with Loader(data.rows, LoaderShape(0, 1, 2, 2, stop=2), workers=0) as loader:
        (batch,) = list(loader)
    assert sorted(batch.tokens.tolist()) == sorted(rows.tolist())
    small = build_train_data(params, seq_len=4, vocab_size=8, global_batch_size=2)
    with (
        Loader(small.rows, LoaderShape(0, 1, 2, 2, stop=2), workers=0) as loader,
        pytest.raises(ValueError, match="outside the vocabulary"),
    ):
        list(loader)


def test_the_parts_of_a_batch_stay_together() -> None:
    batch = Batch(torch.arange(20).view(4, 5), torch.arange(16).view(4, 4), torch.arange(4))
    parts = batch.chunk(2)
    assert [part.sources.tolist() for part in parts] == [[0, 1], [2, 3]]
    assert torch.equal(parts[1].tokens, batch.tokens[2:])
    assert torch.equal(parts[1].document_ids, batch.document_ids[2:])
    assert Batch(batch.tokens).chunk(4)[3].sources is None


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["/d/dclm/2-v1/0/shard-*.tar", "/d/code/2-v1/0/shard-*.tar"], ("dclm", "code")),
        (["s3://b/web/{00..99}.tar", "/data/books/all.tar"], ("b-web-_00..99", "data-books-all")),
        (["x/shard-{0..1}.tar", "x/shard-{2..3}.tar"], ("shard-_0..1", "shard-_2..3")),
        (["x/a.tar", "x/a.tar"], ("a", "a-2")),
        (["x/manifest.jsonl", "x/y/manifest.jsonl"], ("manifest", "y")),
        (["a.tar"], ("a",)),
    ],
)
def test_sources_have_short_names_of_their_own(patterns: list[str], names: tuple[str, ...]) -> None:
    assert source_names(patterns) == names
