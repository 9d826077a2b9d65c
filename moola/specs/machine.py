"""The machine that a job rents, and what it may cost."""

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from moola.specs.base import Duration, Positive, Spec

RetryReason = Literal[
    "infra_lost",
    "preempted",
    "stalled",
    "crash_loop",
    "no_capacity",
    "try_again",
]

ONE_KIND = "exactly one of cpu and gpu is set"
PRICE_CAP = "USD; more expensive candidates are passed over"
RUNTIME_CAP = "of one attempt, including the download of the image"
SPEND_CAP = "USD, for all attempts of a run together"


class CpuMachine(Spec):
    """A rented machine without GPUs: flavors in the order they are tried, and a size."""

    flavors: tuple[str, ...] = Field(
        ("cpu5c", "cpu3c", "cpu5g", "cpu3g"),
        min_length=1,
        description="tried in this order",
    )
    vcpus: int = Field(
        4,
        ge=2,
        le=256,
        description="a power of two; the flavor decides the memory per vCPU",
    )

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.vcpus.bit_count() != 1:
            raise ValueError(f"vcpus must be a power of two, got {self.vcpus}")
        return self


class GpuMachine(Spec):
    """A rented machine with GPUs: types in the order they are tried, or any large enough one."""

    types: tuple[str, ...] | None = Field(
        ("NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090", "NVIDIA L4", "NVIDIA GeForce RTX 4090"),
        min_length=1,
        description="tried in this order; null: any type with min_memory_gb, cheapest first",
    )
    min_memory_gb: float = Field(
        16,
        gt=0,
        description="memory of one GPU; used only where types is null",
    )
    count: int = Field(1, ge=1, le=16)
    min_cuda: str | None = Field(
        "12.0",
        pattern=r"^\d+\.\d+$",
        description="CUDA version that the host's driver must support; the default image's torch "
        'is for CUDA 12, which every driver from 12.0 on runs; for the cu130 image: "13.0"',
    )


class RetryConfig(Spec):
    """What is retried with a further attempt. Bad input and divergence (exit 3, 5) never are."""

    on: tuple[RetryReason, ...] = Field(
        ("infra_lost", "preempted", "stalled", "no_capacity", "try_again")
    )
    times: int = Field(2, ge=0, le=20, description="further attempts after the first")


class MachineConfig(Spec):
    """The machine a job rents, and what it may cost.

    Nothing here changes a result: it is no part of a run's id.
    """

    cpu: CpuMachine | None = Field(None, description=ONE_KIND)
    gpu: GpuMachine | None = Field(None, description=ONE_KIND)
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    data_centers: tuple[str, ...] = Field(
        (),
        description="the only ones that are used; empty: any",
    )
    disk_gb: int = Field(
        20,
        ge=20,
        le=2000,
        description="container disk; smaller ones are refused as if out of stock",
    )
    registry: str | None = Field(
        None,
        description="id of the provider's credentials for a private image",
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="environment variable -> name of the provider's secret that fills it",
    )
    max_price_per_hour: Positive = Field(1.0, description=PRICE_CAP)
    max_runtime: Duration = Field(timedelta(hours=6), description=RUNTIME_CAP)
    max_wait_for_capacity: Duration = Field(
        timedelta(minutes=15),
        description="then the attempt ends as no_capacity",
    )
    max_spend: Positive = Field(5.0, description=SPEND_CAP)
    retry: RetryConfig = Field(default_factory=RetryConfig)

    @property
    def min_cuda(self) -> str | None:
        """CUDA version that the host's driver must support; None: any, or there is no GPU."""
        return None if self.gpu is None else self.gpu.min_cuda

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.cpu is None) == (self.gpu is None):
            raise ValueError("a machine has one of cpu and gpu; set the other to null")
        return self


class PrecomputeMachine(MachineConfig):
    """Precompute's machine: the highest clock there is, for two hours at most."""

    cpu: CpuMachine | None = Field(default_factory=CpuMachine, description=ONE_KIND)
    max_price_per_hour: Positive = Field(0.5, description=PRICE_CAP)
    max_runtime: Duration = Field(timedelta(hours=2), description=RUNTIME_CAP)
    max_spend: Positive = Field(1.0, description=SPEND_CAP)


class TrainMachine(MachineConfig):
    """Training's machine: one cheap GPU with 24 GB, and three types to fall back on."""

    gpu: GpuMachine | None = Field(default_factory=GpuMachine, description=ONE_KIND)
