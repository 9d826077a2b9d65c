"""Why a GPU cannot be used is said before any work; whether torch can compile is asked first."""

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

import torch

from moola.errors import DataError
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
    ("asked", "rented", "gives"),
    [
        ("cpu", "1", "cpu"),
        ("auto", "0", "cpu"),
        ("auto", "1", "rented for 1 GPUs, but .*device: cpu"),
        ("cuda", "0", "cuda needs"),
    ],
)
def test_without_a_gpu_the_cpu_is_taken_only_where_that_is_allowed(
    asked: str, rented: str, gives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MOOLA_GPUS", rented)
    if gives == "cpu":
        assert device.choose_device(asked) == "cpu"
        return
    with pytest.raises(DataError, match=gives):
        device.choose_device(asked)


def test_a_gpu_that_is_there_is_used_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.choose_device(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


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


def test_a_compiler_is_found_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.c_compiler() is None
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CC", "sh")  # any program will do
    assert device.c_compiler()
