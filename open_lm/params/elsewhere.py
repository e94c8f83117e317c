"""What other trainers (Hugging Face's, nanoGPT, litgpt, torchtitan, OLMo) call our options, for the mistakes of who comes from them."""

from __future__ import annotations

from collections.abc import Mapping

_OURS = {
    "lr": "learning_rate max_lr peak_lr base_lr",
    "wd": "weight_decay",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "eps": "adam_epsilon adam_eps epsilon",
    "grad_clip_norm": "max_grad_norm grad_clip max_norm gradient_clip_val clip_grad_norm grad_norm_clip",
    "warmup": "warmup_steps warmup_iters lr_warmup_steps lr_warmup_iters warmup_ratio lr_warmup_fraction num_warmup_steps t_warmup",
    "lr_scheduler": "lr_scheduler_type scheduler decay_lr lr_decay_style lr_schedule",
    "lr_cooldown_end": "min_lr lr_min end_lr",
    "z_loss_coefficient": "softmax_auxiliary_loss auxiliary_loss_multiplier z_loss_multiplier",
    "optimizer": "optim optimizer_name optimizer_type",
    "accum_freq": "gradient_accumulation_steps accumulate_grad_batches grad_accum_steps gradient_accumulation_iters grad_accum",
    "batch_size": "per_device_train_batch_size local_batch_size device_batch_size micro_batch_size device_train_microbatch_size "
    "rank_microbatch_size train_micro_batch_size_per_gpu",
    "global_batch_size": "global_train_batch_size train_batch_size",
    "global_val_batch_size": "per_device_eval_batch_size eval_batch_size device_eval_batch_size",
    "train_num_samples": "max_steps max_iters train_iters training_steps num_train_steps total_steps num_steps steps num_iterations "
    "max_train_steps max_duration max_tokens max_train_tokens total_tokens",
    "epochs": "num_train_epochs num_epochs max_epochs n_epochs",
    "train_data": "dataset dataset_path dataset_name data data_dir data_path train_file train_files training_data train_dataset "
    "input_bin paths",
    "val_data": "validation_file validation_data val_file eval_dataset eval_data eval_file input_val_bin",
    "val_frequency": "eval_interval eval_steps eval_every val_check_interval evaluation_strategy eval_strategy",
    "eval_tasks": "evaluators benchmarks",
    "workers": "num_workers dataloader_num_workers",
    "num_workers": "workers num_proc preprocessing_num_workers nproc",
    "resume": "resume_from_checkpoint resume_from load_path init_from load_checkpoint checkpoint ckpt_path restore_from",
    "pretrained": "initial_checkpoint_dir init_weights finetune_from",
    "checkpoint": "ckpt ckpt_path checkpoint_path checkpoint_dir model_name_or_path pretrained model_path load_path model_args",
    "logs_dir": "output_dir out_dir save_folder dump_folder log_dir logging_dir save_dir",
    "output_dir": "out out_dir output save_folder",
    "out": "output output_path output_file output_dir",
    "name": "run_name experiment_name wandb_run_name exp_name",
    "log_every_n_steps": "logging_steps log_interval log_every log_freq console_log_interval print_every",
    "save_every_steps": "save_steps save_interval checkpoint_interval ckpt_interval ckpt_every",
    "keep_last": "save_total_limit save_num_checkpoints_to_keep keep_latest_k max_checkpoints",
    "overwrite": "overwrite_output_dir save_overwrite force",
    "report_to": "wandb use_wandb wandb_log logger_name enable_wandb enable_tensorboard",
    "wandb_project_name": "wandb_project project",
    "seed": "random_seed data_seed manual_seed",
    "grad_checkpointing": "gradient_checkpointing activation_checkpointing use_gradient_checkpointing",
    "torchcompile": "compile torch_compile use_compile",
    "precision": "dtype bf16 fp16 mixed_precision torch_dtype",
    "model": "model_name model_name_or_path config_name model_size arch model_type",
    "seq_len": "block_size max_seq_len max_seq_length seq_length sequence_length context_length max_length n_ctx model_max_length "
    "max_position_embeddings max_sequence_length",
    "max_seq_len": "block_size max_length max_seq_length seq_len context_length",
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_model tokenizer_type encoding",
    "input_files": "input dataset_path data data_dir train_file train_files files",
    "eval_yaml": "task tasks_config icl_tasks task_config",
    "batch_tokens": "batch_size per_device_eval_batch_size device_eval_batch_size eval_batch_size",
    "num_fewshot": "n_shot nshot fewshot num_shots",
    "limit": "num_examples max_examples subset_num_batches",
    "max_new_tokens": "max_tokens max_length length n_tokens",
    "num_samples": "num_return_sequences n n_samples",
    "temperature": "temp",
    "fsdp": "data_parallel_shard_degree sharding_strategy",
    "hidden_dim": "hidden_size d_model n_embd dim embed_dim",
    "n_layers": "num_hidden_layers n_layer num_layers depth",
    "n_heads": "num_attention_heads n_head num_heads",
    "n_kv_heads": "num_key_value_heads n_query_groups",
    "vocab_size": "padded_vocab_size embedding_size",
    "norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon",
    "rope_theta": "rope_base rotary_base",
    "weight_tying": "tie_word_embeddings tied tie_embeddings",
}
"""Our name: theirs."""

_REMARKS = {
    "train_num_samples": "it counts the tokens of an epoch: steps x global batch size x sequence length",
    "batch_size": "sequences of a process and step, which --accum-freq splits",
    "warmup": "steps, or a share such as 2%",
    "val_frequency": "it counts epochs",
}
_NO_FLAG = {
    "device devices gpus num_gpus n_gpus nproc nproc_per_node num_processes world_size accelerator ngpu": (
        "train_data",
        "A run takes the GPUs that it sees: torchrun --nproc-per-node N starts N processes, CUDA_VISIBLE_DEVICES chooses among GPUs.",
    ),
    "num_nodes nnodes num_machines": ("train_data", "It is torchrun that has --nnodes."),
    "seq_len hidden_dim n_layers n_heads n_kv_heads vocab_size weight_tying norm_eps rope_theta": (
        "train_data",
        "{} is a key of the model.json that --model names.",
    ),
    "seed workers": ("eval_yaml", "Scores depend on no {}; leave it out."),
}
"""Ours or theirs that a command with an option has no flag for: the option, and what is said."""


def names_elsewhere() -> dict[str, tuple[str, ...]]:
    """Their names, each with what of ours it may mean."""
    found: dict[str, tuple[str, ...]] = {}
    for ours, theirs in _OURS.items():
        for name in theirs.split():
            found[name] = (*found.get(name, ()), ours)
    return found


def meant(name: str, known: Mapping[str, str]) -> str:
    """What to type in the place of a name that another trainer has; nothing where that isn't one, or has no counterpart here.

    Args:
        name: in lower case, with underscores.
        known: what a command or file knows, from such a name to how it is written there.
    """
    ours = names_elsewhere().get(name, ())
    for one in ours:
        if one in known:
            remark = f" ({_REMARKS[one]})" if one in _REMARKS else ""
            return f" Did you mean {known[one]}?{remark}"
    said = [
        words.format(one) for names, (needs, words) in _NO_FLAG.items() if needs in known for one in (name, *ours) if one in names.split()
    ]
    return f" {said[0]}" if said else ""
