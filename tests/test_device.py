"""Why a GPU cannot be used, and whether torch can compile: both known before any work."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

import torch

from moola.errors import DataError, TryAgainError
from moola.jobs import train
from moola.training import device


@pytest.mark.parametrize(
    ("built_for", "driver", "words"),
    [
        (None, (13, 0), "built without CUDA"),
        ("13.0", None, "needs an NVIDIA driver >= 580; no driver is here"),
        ("12.6", None, "needs an NVIDIA driver >= 525"),
        ("13.0", (12, 8), "the driver here knows CUDA up to 12.8: take a host with a newer driver"),
        ("13.0", (13, 1), "new enough (CUDA 13.1), but no GPU answers"),
    ],
)
def test_the_reason_names_what_is_needed_and_what_is_here(
    built_for: str | None, driver: tuple[int, int] | None, words: str
) -> None:
    assert words in device.explain(built_for, driver)


def test_a_gpu_that_answers_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.cuda_problem() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.cuda_problem()


@pytest.mark.parametrize(
    ("requested", "rented", "gives"),
    [
        ("cpu", "1", "cpu"),
        ("auto", "0", "cpu"),
        ("auto", "1", "rented for 1 GPUs, but .*device: cpu"),
        ("cuda", "0", "cuda needs"),
    ],
)
def test_without_a_gpu_the_cpu_is_taken_only_where_that_is_allowed(
    requested: str, rented: str, gives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MOOLA_GPUS", rented)
    if gives == "cpu":
        assert device.choose_device(requested) == "cpu"
        return
    with pytest.raises(DataError, match=gives):
        device.choose_device(requested)


def test_a_gpu_that_is_there_is_used_unless_the_cpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.choose_device(requested) for requested in ("auto", "cuda", "cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


ones = torch.ones  # before a test replaces it


class BrokenGpuError(RuntimeError):
    """As torch.AcceleratorError is one."""


def answer(monkeypatch: pytest.MonkeyPatch, n_gpus: int, error: Exception | None = None) -> None:
    """GPUs that answer, on a machine that was rented for two, with the CPU in their place."""

    def ones_on_gpu(*shape: int, device: str = "cpu") -> torch.Tensor:
        if error is not None and device == "cuda:1":
            raise error
        return ones(*shape)

    monkeypatch.setenv("MOOLA_GPUS", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch, "ones", ones_on_gpu)


def test_a_broken_gpu_of_a_rented_host_asks_for_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, 2)
    assert device.choose_device("auto") == "cuda"

    answer(monkeypatch, 1)
    with pytest.raises(TryAgainError, match="rented for 2 GPUs, and 1 answer"):
        device.choose_device("auto")

    answer(monkeypatch, 2, BrokenGpuError("CUDA error: an illegal instruction was encountered"))
    with pytest.raises(TryAgainError, match="GPU 1 of this host is broken: CUDA error"):
        device.choose_device("auto")


def test_a_rented_host_whose_driver_is_too_old_asks_for_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOOLA_GPUS", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "driver_cuda", lambda: (12, 8))
    with pytest.raises(TryAgainError, match=r"cannot be used: .*CUDA up to 12\.8"):
        device.choose_device("auto")


@pytest.mark.parametrize(
    ("message", "is_host"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might", True),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_an_error_of_the_hardware_is_no_fault_of_the_run(message: str, is_host: bool) -> None:
    with pytest.raises(TryAgainError if is_host else BrokenGpuError), device.host_errors():
        raise BrokenGpuError(message)


@pytest.mark.parametrize("step", ["fit_run", "evaluate_and_write"])
def test_a_gpu_that_fails_at_any_step_of_the_job_asks_for_another_host(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise BrokenGpuError("CUDA error: uncorrectable ECC error encountered")

    data = SimpleNamespace(labels={"val": ()})
    succeed = {
        "load_data": lambda *_: data,
        "log_labels": lambda *_, **__: None,
        "score_on": lambda *_: None,
        "fit_run": lambda *_: (None, SimpleNamespace(history=[])),
    }
    for name, work in {**succeed, step: fail}.items():
        monkeypatch.setattr(train, name, work)
    attempt: Any = SimpleNamespace(run_id="train-1", stage=lambda _: None)
    document: Any = SimpleNamespace(spec={"device": "cpu"})
    with pytest.raises(TryAgainError, match="the GPU of this host failed: CUDA error: uncorr"):
        train.run_train_job(attempt, document)


def test_a_machine_without_a_driver_has_no_driver_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    assert device.driver_cuda() is None


def test_the_driver_is_asked_for_its_cuda_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuDriverGetVersion(self, version: object) -> int:  # noqa: N802
            version._obj.value = 12080  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: Driver())
    assert device.driver_cuda() == (12, 8)


def test_a_compiler_is_found_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.c_compiler() is None
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CC", "sh")  # any program will do
    assert device.c_compiler()
