"""Tiny stock models of transformers with random weights, in folders as their authors publish them; for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer

SEQ_LEN = 64
_WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
SIZES = {
    "llama": _WIDTHS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": SEQ_LEN},  # ties its head, learns its positions
    "gemma2": {**_WIDTHS, "num_key_value_heads": 1, "head_dim": 16},  # caps its logits
}


def stock(kind: str, vocab_size: int = 300) -> Any:
    """A model of that class. The end of text is id 0."""
    import transformers

    torch.manual_seed(0)
    ids = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, max_position_embeddings=SEQ_LEN, **ids, **SIZES[kind])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # random heads say nothing
    return model.eval()


def with_begin(tokenizer: Tokenizer, put: bool = True) -> Tokenizer:
    """The tokenizer with a token <s> that it puts before every text, as Llama's does, or only has."""
    import tokenizers
    from tokenizers import processors

    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    if put:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)])
    return Tokenizer(backend.to_str(), "with <s>")


def save(folder: Path, model: Any, tokenizer: Tokenizer, **more: Any) -> Path:
    """The folder of a model and its tokenizer."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json_text)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eot_token, "clean_up_tokenization_spaces": False, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def llama_twin(model: Transformer) -> Any:
    """A stock Llama with the weights of a model of ours that has RMS norms, rotary positions and SwiGLU."""
    import transformers

    ours = model.config
    assert (ours.model_norm, ours.positional_embedding_type, ours.ffn_type) == ("rms_norm", "rotary", "swiglu")
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size, hidden_size=ours.hidden_dim, intermediate_size=ours.ffn_dim, num_hidden_layers=ours.n_layers,
        num_attention_heads=ours.n_heads, num_key_value_heads=ours.kv_heads, max_position_embeddings=ours.seq_len,
        rms_norm_eps=ours.norm_eps, rope_theta=ours.rope_theta, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    twin = transformers.LlamaForCausalLM(config)
    weights = {"model.embed_tokens.weight": model.tok_embeddings.weight, "model.norm.weight": model.norm.weight}
    weights["lm_head.weight"] = model.output.weight
    for number, block in enumerate(model.layers):
        q, k, v = block.attention.in_proj.weight.split(block.attention.widths)
        gate, up = block.feed_forward.w12.weight.chunk(2)
        layer = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": block.attention.out_proj.weight,
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block.feed_forward.w3.weight,
            "input_layernorm": block.attention_norm.weight, "post_attention_layernorm": block.ffn_norm.weight,
        }  # fmt: skip
        weights |= {f"model.layers.{number}.{name}.weight": weight for name, weight in layer.items()}
    twin.load_state_dict(weights)
    return twin.eval()
