"""lm-evaluation-harness's tasks on our scorer (the extra [eval], which the test environment has)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from open_lm.evaluation.command import parse_eval
from open_lm.model.transformer import Transformer
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer


def test_without_lm_eval_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.pt").touch()
    monkeypatch.setattr("open_lm.evaluation.command.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lm-evaluation-harness is not installed; pip install .*\[eval\]"):
        parse_eval(["--checkpoint", str(tmp_path / "one.pt"), "--tasks", "hellaswag,arc_easy"])
    with pytest.raises(UserError, match="--tasks arc_easy: are lm-eval's; leave --backend native out"):
        parse_eval(["--checkpoint", str(tmp_path / "one.pt"), "--tasks", "arc_easy", "--backend", "native", "--eval-yaml", "x.yaml"])


def asked(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_log_likelihoods_are_sums_over_the_continuation(model: Transformer, tokenizer: Tokenizer) -> None:
    from open_lm.evaluation.lm_eval_backend import HarnessModel
    from open_lm.evaluation.scorer import ScorerOptions

    ours = HarnessModel(model, tokenizer, ScorerOptions())
    pairs = [("what a day", " a cat"), ("a dog saw ", "a hat"), ("", "a mat"), ("a cat " * 60, " and a dog")]
    for (context, continuation), (value, greedy) in zip(pairs, ours.loglikelihood([asked(*pair) for pair in pairs]), strict=True):
        whole = tokenizer.encode(context + continuation) if context else [tokenizer.eot_id, *tokenizer.encode(continuation)]
        count = len(whole) - (len(tokenizer.encode(context.rstrip())) if context else 1)
        ids = torch.tensor(whole[-(model.config.seq_len + 1) :])
        logits = model(ids[None, :-1])[0, -count:].log_softmax(-1)
        assert value == pytest.approx(float(logits.detach().gather(1, ids[-count:, None]).sum()), rel=1e-4)
        assert greedy == bool((logits.argmax(-1) == ids[-count:]).all())
    text = "a cat and a dog saw " * 12
    ids = torch.tensor([tokenizer.eot_id, *tokenizer.encode(text)])
    [rolled] = ours.loglikelihood_rolling([asked(text)])
    width = model.config.seq_len
    first = model(ids[None, :width])[0].log_softmax(-1).gather(1, ids[1 : width + 1, None]).sum()
    assert len(ids) > width + 1 and rolled < float(first)
    [answer] = ours.generate_until([asked("what a day", {"until": ["zzz"], "max_gen_toks": 5})])
    [stopped] = ours.generate_until([asked("what a day", {"until": [answer[2:]], "max_gen_toks": 5})])
    assert len(answer) > 2 and answer.startswith(stopped) and len(stopped) < len(answer)


def test_requests_of_equal_settings_are_continued_together_with_the_texts_that_each_gets_alone(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_lm.evaluation import lm_eval_backend
    from open_lm.evaluation.scorer import ScorerOptions

    ours, sizes = lm_eval_backend.HarnessModel(model, tokenizer, ScorerOptions()), []
    plain = lm_eval_backend.continue_prompts
    monkeypatch.setattr(
        lm_eval_backend, "continue_prompts", lambda model, prompts, *more: sizes.append(len(prompts)) or plain(model, prompts, *more)
    )
    contexts = ["what a day", "a cat", "a dog saw a hat on a mat and a cat", "a mat " * 40]
    short, long = {"until": ["zzz"], "max_gen_toks": 4}, {"until": "zzz", "max_gen_toks": 9}
    alone = [ours.generate_until([asked(context, long)])[0] for context in contexts]
    stop = {"until": [alone[0][2:4]], "max_gen_toks": 9}
    sizes.clear()
    together = ours.generate_until([asked(c, s) for s in (long, short, stop) for c in contexts])
    assert sizes == [4, 4, 4]
    assert together[:4] == alone
    assert all(a.startswith(b) for a, b in zip(alone, together[4:8], strict=True))
    assert together[8:] == [text.split(alone[0][2:4])[0] for text in alone] and together[8] == alone[0][:2]


def test_pairs_tokenised_together_are_lm_evals_own(model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.model import TemplateLM

    from open_lm.evaluation.lm_eval_backend import HarnessModel
    from open_lm.evaluation.scorer import ScorerOptions

    ours, seen = HarnessModel(model, tokenizer, ScorerOptions()), []
    monkeypatch.setattr(
        ours, "_loglikelihood_tokens", lambda requests, **more: seen.append([tuple(map(list, r[1:])) for r in requests]) or []
    )
    pairs = [("a cat  ", "saw"), ("a cat", " saw"), ("", "a hat"), ("a cat", "s"), ("", "<|endoftext|>a hat"), ("what a", " day ")]
    ours.loglikelihood([asked(*pair) for pair in pairs])
    TemplateLM.loglikelihood(ours, [asked(*pair) for pair in pairs], disable_tqdm=True)
    assert seen[0] == seen[1] and len(seen[0]) == 6


def test_without_the_hub_a_task_whose_data_are_not_cached_is_one_line(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("open_lm.evaluation.lm_eval_backend")
    monkeypatch.setattr(backend, "hub_problem", lambda: "http://hub can't be reached (no answer)")
    monkeypatch.setattr(backend.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(backend.datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(backend, "_task_manager", lambda tasks, path: SimpleNamespace(all_tasks=list(tasks)))
    monkeypatch.setattr(backend, "simple_evaluate", lambda *args, **more: backend.datasets.load_dataset("me/words"))
    said = "--tasks words: the data can't be had .http://hub can't be reached .no answer.*set HF_ENDPOINT"
    for cached in (False, True):
        with pytest.raises(ValueError, match=said):
            backend.score_harness_tasks(model, tokenizer, ["words"], backend.ScorerOptions())
        (tmp_path / "datasets--me--others").mkdir(exist_ok=cached)
    assert not backend.datasets.config.HF_HUB_OFFLINE


@pytest.mark.slow
def test_a_task_of_ones_own_is_scored_with_lm_evals_metrics(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_lm.evaluation import lm_eval_backend
    from open_lm.evaluation.lm_eval_backend import score_harness_tasks
    from open_lm.evaluation.scorer import ScorerOptions

    def few_tasks(include_path: str | None = None, include_defaults: bool = True) -> Any:
        return TaskManager(include_path=include_path, include_defaults=False)  # to list all takes ten seconds

    TaskManager = lm_eval_backend.TaskManager
    monkeypatch.setattr(lm_eval_backend, "TaskManager", few_tasks)

    rows = [{"q": f"a cat saw {i}", "choices": ["a hat", "what a day"], "gold": i % 2} for i in range(8)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "hats",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "hats.yaml").write_text(yaml.dump(task))
    results = score_harness_tasks(model, tokenizer, ["hats"], ScorerOptions(), include_path=str(tmp_path))
    assert list(results) == ["hats/0-shot", "hats:acc_norm/0-shot"]
    assert all(r.questions == 8 and r.accuracy * 8 == round(r.accuracy * 8) for r in results.values())
    with pytest.raises(ValueError, match="--tasks nothing: lm-eval has no such task"):
        score_harness_tasks(model, tokenizer, ["nothing"], ScorerOptions(), include_path=str(tmp_path))
    for wrong in ({"outputtype": "multiple_choice"}, {"output_type": "choice"}, {"test_split": "tset"}):
        (tmp_path / "wrong.yaml").write_text(yaml.dump(task | {"task": "wrong"} | wrong))
        with pytest.raises(ValueError, match=r"^--tasks wrong: lm-eval can't score it \(.*\); correct its YAML$"):
            score_harness_tasks(model, tokenizer, ["wrong"], ScorerOptions(), include_path=str(tmp_path))


def test_every_share_has_a_row_and_other_numbers_are_told() -> None:
    from open_lm.evaluation.lm_eval_backend import _results

    told = {
        "results": {
            "sums": {
                "alias": "sums",
                "exact_match,strict-match": 0.2,
                "exact_match,flexible-extract": 0.3,
                "exact_match_stderr,strict-match": 0.1,
            },
            "hats": {"alias": "hats", "acc,none": 0.5, "acc_norm,none": 0.75},
            "texts": {"alias": "texts", "word_perplexity,none": 23.25},
        },
        "n-samples": {name: {"original": 8, "effective": 4} for name in ("sums", "hats", "texts")},
        "n-shot": {"sums": 5},
    }
    lines: list[str] = []
    results = _results(told, 3.0, lines.append)
    assert {name: one.accuracy for name, one in results.items()} == {
        "sums/5-shot": 0.2,
        "sums:exact_match,flexible-extract/5-shot": 0.3,
        "hats/0-shot": 0.5,
        "hats:acc_norm/0-shot": 0.75,
    }
    assert lines == ["texts: word_perplexity 23.25; no share of questions, so it is not in the table"]
