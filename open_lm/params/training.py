"""Options of the model, the optimizer and the way they are spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from open_lm.params.fields import Steps, flag


@dataclass(frozen=True)
class ArchitectureParams:
    """what a model.json may leave out"""

    model_norm: Literal[
        "default_layer_norm",
        "lp_layer_norm",
        "gain_only_lp_layer_norm",
        "gain_only_layer_norm",
        "no_wb_layer_norm",
        "rms_norm",
    ] = "default_layer_norm"
    """Normalisation layer."""
    ffn_type: Literal["swiglu", "swiglu_torch", "gelu", "gemma_geglu"] = "swiglu"
    """Feed-forward layer."""
    qk_norm: bool = False
    """Normalise queries and keys over all heads at once, before the split into heads."""
    positional_embedding_type: Literal["rotary", "head_rotary", "llama_rotary", "none"] = "rotary"
    """Position information. head_rotary is what the published 1B and 7B were trained with."""
    attn_name: Literal["auto", "torch_attn", "xformers_attn", "xformers_attn_variable_length", "custom_attn"] = flag(
        "auto", unbuilt={"custom_attn": "not built; use auto", "xformers_attn_variable_length": "not built yet; use xformers_attn or auto"}
    )
    """Attention kernel: auto and torch_attn are PyTorch's scaled_dot_product_attention."""


@dataclass(frozen=True)
class ModelParams(ArchitectureParams):
    """model"""

    model: str = flag("open_lm_11m", "--model-config", mapping=True)
    """A named size (open_lm_11m ... open_lm_7b) or the path of a model.json, whose keys are stronger than the flags above. A --config file
    may hold its keys in the place of the path."""
    pretrained: str | None = None
    """Checkpoint whose weights a new run starts from: a .pt file, a step_<n> folder or a run folder, local or behind a URL."""
    load_pretrained_state: bool = False
    """Go on from --pretrained in a new run: its optimizer, step and schedule too."""
    hf_model: str | None = flag(None, unbuilt="Hugging Face models are not trained yet; use --model")
    """Train a Hugging Face causal language model."""
    hf_seq_len: int | None = flag(None, unbuilt="Hugging Face models are not trained yet; use --model")
    """Sequence length of --hf-model."""
    hf_fsdp_block: str | None = flag(None, unbuilt="Hugging Face models are not trained yet; use --model")
    """Class of the blocks of --hf-model that FSDP shards."""


@dataclass(frozen=True)
class OptimizerParams:
    """optimizer and schedule"""

    optimizer: Literal["adamw"] = "adamw"
    """Optimizer."""
    lr: float = 5e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW beta1."""
    beta2: float = 0.95
    """AdamW beta2."""
    eps: float = 1e-8
    """AdamW epsilon."""
    wd: float = 0.2
    """Weight decay, decoupled."""
    wd_on: Literal["matrices", "all"] = "matrices"
    """Parameters that decay: those of two or more dimensions, or all (as OpenLM does)."""
    warmup: Steps | None = None
    """Steps of linear warm-up, or a share of the run such as 2%. Default: a resumed run keeps its own; else 10000 steps or 2% of the run,
    whichever is less."""
    lr_scheduler: Literal["cosine", "const", "const-cooldown"] = "cosine"
    """Schedule after the warm-up."""
    lr_cooldown_end: float = 0.0
    """Learning rate at the end of the cosine or the cooldown."""
    lr_cooldown_power: float = 1.0
    """Power of the polynomial of const-cooldown; 1 is linear."""
    epochs_cooldown: float | None = None
    """Epochs of cooldown at the end of the run, for const-cooldown; 0.5 is half an epoch."""
    force_min_lr: float = 0.0
    """Learning rate that the cosine never goes below."""
    skip_scheduler: bool = False
    """Keep the learning rate at --lr from the first step."""
    grad_clip_norm: float | None = None
    """Clip the gradient to this global norm."""
    z_loss_coefficient: float = 0.0
    """Weight of the mean squared logsumexp of the logits in the loss."""
    log_logit_mean: bool = flag(False, unbuilt="the mean of the logits is not logged yet; leave the flag out")
    """Log the mean of the logits."""


@dataclass(frozen=True)
class AveragingParams:
    """weight averaging"""

    average: tuple[str, ...] = ()
    """Checkpoints whose average a new run starts from; each as for --pretrained."""
    average_coefficients: tuple[float, ...] = ()
    """Weight of each checkpoint of --average; default 1/n each."""
    averagers: str | None = None
    """Running averages of the weights, e.g. ema_0.999_1,poly_16_1: `ema_<gamma>_<freq>` keeps gamma of the old average every freq
    steps; `poly_<eta>_<freq>` weighs the weights of the n-th update by about n^eta."""
    log_avg_model_training_loss: int = 0
    """Steps between measurements of each average's loss on the training batch, one forward pass each, told at log steps; 0: none."""


@dataclass(frozen=True)
class ParallelParams:
    """precision and parallelism"""

    precision: Literal["amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "fp32"] = flag(
        "amp_bfloat16",
        unbuilt={
            "amp": "fp16 with a loss scaler is not built yet; use amp_bfloat16",
            "fp16": "fp16 is not built yet; use bf16 or amp_bfloat16",
        },
    )
    """amp_*: fp32 weights and autocast; bf16, fp32: everything in that type."""
    deterministic: bool = False
    """The same command gives the same weights to the bit on a GPU too, also over a resume on the same number of processes; slower."""
    grad_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    torchcompile: bool = False
    """Compile each block with torch.compile."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over the processes (FSDP2)."""
    fsdp_amp: bool = False
    """With --fsdp: gather weights in bf16, keep fp32 shards and reduction."""
    fsdp_pure_bf16: bool = False
    """With --fsdp: the same as --precision bf16."""
    fsdp_hybrid: bool = flag(False, unbuilt="hybrid sharding is not built yet; use --fsdp")
    """Shard inside a node, replicate between nodes."""
    fsdp_hybrid_o2: bool = flag(False, unbuilt="hybrid sharding is not built yet; use --fsdp")
    """As --fsdp-hybrid, with the gathered weights kept until the backward pass."""
    fsdp_cpu_offload: bool = flag(False, hidden=True)
    """With --fsdp: keep shards in host memory."""
    fsdp_use_orig_params: bool = False
    """Accepted; FSDP2 always keeps the original parameters."""
    fsdp_backward_prefetch: bool = False
    """Accepted; FSDP2 always prefetches in the backward pass."""
    fsdp_limit_all_gathers: bool = False
    """Accepted; FSDP2 always limits its all-gathers."""
    ddp_static_graph: bool = False
    """Tell DistributedDataParallel that the graph never changes."""
    dist_url: str = "env://"
    """Where the processes meet."""
    dist_backend: str | None = None
    """Process-group backend. Default: nccl with CUDA, else gloo."""
    no_set_device_rank: bool = False
    """Use the current CUDA device instead of cuda:LOCAL_RANK."""
    force_distributed: bool = False
    """Make a process group even for one process."""
    preset_world_size: int | None = None
    """World size that the launcher must give; another one is an error."""
    experimental_meta_device: bool = flag(False, unbuilt="the model is always built on the CPU yet; leave the flag out")
    """Build the model on the meta device and initialise its shards."""
