"""How well devices are used: their peaks, model FLOPs utilisation, memory."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_DENSE_BF16_TFLOPS = {
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "A100 PCIe": 312.0,
    "A100 SXM4": 312.0,
    "A800 PCIe": 312.0,
    "A800 SXM4": 312.0,
    "B200": 2250.0,
    "GB200": 2500.0,
    "GH200": 989.4,
    "H20": 148.0,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H800": 989.4,
    "H800 PCIe": 756.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada Generation": 364.2,
    "GeForce RTX 3090": 71.0,
    "GeForce RTX 4090": 165.2,
    "GeForce RTX 5090": 209.5,
    "Instinct MI300X": 1307.4,
    "Instinct MI325X": 1307.4,
}
"""Peaks of the makers' data sheets, without sparsity, with fp32 accumulation. H100, H200 and H800 without a suffix are the SXM modules."""

_NOT_PART_OF_THE_NAME = re.compile(r"\b(NVIDIA|AMD|\d+\s?GB?|HBM3e?|OAM)\b")


def datasheet_tflops(device_name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device as `torch.cuda.get_device_name` calls it; None for one that the table lacks, or a slice of one."""
    words = _NOT_PART_OF_THE_NAME.sub(" ", device_name).replace("-", " ").split()
    name = " ".join(words).lower()
    return next((peak for known, peak in _DENSE_BF16_TFLOPS.items() if known.lower() == name), None)


@dataclass(frozen=True)
class Peak:
    """What one device could do at most."""

    tflops: float
    source: str
    """Where the number comes from, in words."""


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of a GPU as its driver tells it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def find_peak(device: torch.device, stated: float | None) -> Peak | None:
    """--peak-tflops, else the data sheet's; None where neither is known."""
    if stated is not None:
        return Peak(stated, "--peak-tflops")
    if device.type != "cuda":
        return None
    name = device_name(device)
    known = datasheet_tflops(name)
    return None if known is None else Peak(known, f"data sheet of the {name}, dense bf16")


@dataclass(frozen=True)
class Throughput:
    """Tokens per second of a run as what they mean for its processes and devices."""

    processes: int
    seq_len: int
    flops_per_token: int
    peak: Peak | None

    def rates(self, tokens_per_second: float) -> dict[str, float]:
        """The metrics: tokens and samples by second, those of one process, and `mfu` (0 to 1) against the peak of all devices, if known."""
        rates = {
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_process": tokens_per_second / self.processes,
            "samples_per_second": tokens_per_second / self.seq_len,
        }
        if self.peak is not None:
            rates["mfu"] = tokens_per_second * self.flops_per_token / (self.processes * self.peak.tflops * 1e12)
        return rates


def memory(device: torch.device) -> dict[str, float]:
    """GB (1e9 bytes) of this process: on the host now, and on the device the most since the start."""
    found = {"host_memory_gb": _resident_bytes() / 1e9}
    if device.type == "cuda":
        found["device_memory_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def _resident_bytes() -> int:
    """Resident bytes of this process; where the system doesn't tell, the most that they have been."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
