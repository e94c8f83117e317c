"""MFU against a peak that is known, and no other."""

from __future__ import annotations

import pytest
import torch

from open_lm.train.throughput import Peak, Throughput, datasheet_tflops, find_peak, memory


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_known_devices(name: str, tflops: float) -> None:
    assert datasheet_tflops(name) == tflops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla V100-SXM2-16GB",
        "",
        "cpu",
    ],
)
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert datasheet_tflops(name) is None


def test_a_stated_peak_is_stronger_and_a_cpu_has_none() -> None:
    cpu = torch.device("cpu")
    assert find_peak(cpu, None) is None
    assert find_peak(cpu, 1.5) == Peak(1.5, "--peak-tflops")


def test_rates_of_a_run() -> None:
    used = Throughput(processes=4, seq_len=2048, flops_per_token=10**9, peak=Peak(100.0, "x"))
    assert used.rates(204_800.0) == {
        "tokens_per_second": 204_800.0,
        "tokens_per_second_per_process": 51_200.0,
        "samples_per_second": 100.0,
        "mfu": pytest.approx(204_800 * 1e9 / 400e12),
    }
    assert "mfu" not in Throughput(4, 2048, 10**9, None).rates(1.0)


def test_memory_of_this_process() -> None:
    before = memory(torch.device("cpu"))["host_memory_gb"]
    held = torch.ones(50_000_000)
    assert memory(torch.device("cpu"))["host_memory_gb"] - before > 0.15
    del held
