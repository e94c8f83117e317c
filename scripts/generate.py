#!/usr/bin/env python
"""Continue prompts with a checkpoint; the work is in open_lm/generation.py.

python scripts/generate.py --checkpoint logs/run --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --num-samples 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import Problems, UserError, parse_topics  # noqa: E402
from open_lm.tokenizer import load_tokenizer, text_problem  # noqa: E402


@dataclass(frozen=True)
class GenerateParams:
    """generation"""

    checkpoint: str | None = None
    """epoch_N.pt or run folder."""
    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    model_config: str | None = None
    """model.json or named size of the checkpoint, where it doesn't carry it."""
    tokenizer: str | None = None
    """tokenizer.json, a folder that holds one, or a Hugging Face name. Default: the checkpoint's own, else OpenLM's."""
    allow_tokenizer_mismatch: bool = False
    """Take a --tokenizer that is known to be another one than the checkpoint's own."""
    max_new_tokens: int = 64
    """Longest continuation; it also ends at the end of text and at the model's context length."""
    temperature: float = 0.0
    """0 takes the most likely token every time; above 0 samples."""
    top_k: int | None = None
    """Sample among so many most likely tokens."""
    top_p: float | None = None
    """Sample among the fewest most likely tokens whose probabilities reach this sum."""
    seed: int = 0
    """Seed of the samples."""
    num_samples: int = 1
    """Continuations of each prompt."""
    device: str | None = None
    """Where the model runs, such as cpu or cuda:0. Default: cuda where there is one."""


def parse() -> GenerateParams:
    """The options, checked."""
    topics, _ = parse_topics((GenerateParams,), description=__doc__)
    params: GenerateParams = topics[GenerateParams]
    found = Problems()
    if params.tokenizer:
        found.attempt(load_tokenizer, params.tokenizer)
    problems = found.found
    if params.checkpoint is None:
        problems.append("--checkpoint: give an epoch_N.pt or a run folder")
    if not params.prompt:
        problems.append("--prompt: give one or more texts to continue")
    texts = enumerate(params.prompt, 1)
    problems += [f"--prompt, text {number}: {problem}" for number, text in texts if (problem := text_problem(text))]
    if params.num_samples < 1:
        problems.append(f"--num-samples {params.num_samples}: give at least 1")
    if params.num_samples > 1 and params.temperature == 0:
        problems.append(f"--num-samples {params.num_samples}: greedy samples are all equal; give --temperature above 0")
    if problems:
        raise UserError(problems)
    return params


def run(params: GenerateParams) -> list[tuple[str, str]]:
    """(prompt, continuation) pairs, the samples of a prompt together."""
    from open_lm import load_model
    from open_lm.device import choose_device
    from open_lm.generation import generate
    from open_lm.tokenizer import choose_tokenizer

    assert params.checkpoint is not None
    model, carried = load_model(params.checkpoint, params.model_config, choose_device(params.device))
    tokenizer = choose_tokenizer(params.tokenizer, carried, model.config.vocab_size, params.allow_tokenizer_mismatch)
    prompts = [prompt for prompt in params.prompt for _ in range(params.num_samples)]
    prompt_ids = [tokenizer.encode(prompt) or [tokenizer.eot_id] for prompt in prompts]  # no text: as at the start of a document
    new_ids = generate(
        model,
        prompt_ids,
        max_new_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        eot_id=tokenizer.eot_id,
    )
    # Some tokenizers drop the space before the first id of a text, so the continuation is read off the whole.
    before = [tokenizer.decode(ids) for ids in prompt_ids]
    whole = [tokenizer.decode([*ids, *new]) for ids, new in zip(prompt_ids, new_ids, strict=True)]
    return [(prompt, text[len(start) :]) for prompt, start, text in zip(prompts, before, whole, strict=True)]


def main() -> int:
    """Print prompts with their continuations; exit status 0, or 2 with the problems on stderr."""
    try:
        texts = run(parse())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for number, (prompt, continuation) in enumerate(texts, 1):
        if len(texts) > 1:
            print(f"--- {number} of {len(texts)}")
        print(prompt + continuation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
