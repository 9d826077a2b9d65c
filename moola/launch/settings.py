"""Settings of the command line.

Flags come first, then the environment (MOOLA_*), then moola.toml in the working directory, then
these defaults.
"""

import tomllib
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from moola.errors import DataError
from moola.launch import Backend
from moola.runs.redaction import NOTIFY, TRACKING
from moola.runs.workdir import DEFAULT_WORK, DEFAULT_WORK_LIMIT_GB
from moola.specs.yaml_text import read_small_text
from moola.store import DEFAULT_STORE

SETTINGS_FILE = "moola.toml"  # in the working directory
LONGEST_WAIT_S = 30 * 86_400.0


class WatchConfig(BaseModel):
    """How a rented machine is watched: how often, and for how long nothing may happen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    poll_s: float = Field(2.0, gt=0, description="between looks into the store")
    pod_poll_s: float = Field(
        15.0,
        gt=0,
        description="between requests to the provider, whose quota is 60 a minute",
    )
    beat_s: float = Field(5.0, gt=0, description="between heartbeats and log chunks of a job")
    start_timeout_s: float = Field(
        1200.0,
        gt=0,
        description="from the machine's creation to the job's first heartbeat",
    )
    stalled_after_s: float = Field(180.0, gt=0, description="without a new heartbeat")
    grace_s: float = Field(
        30.0,
        gt=0,
        description="for a machine to end itself before it is ended from outside",
    )
    settle_s: float = Field(
        60.0,
        gt=0,
        description="until a machine that was requested is in the provider's list",
    )
    capacity_poll_s: float = Field(30.0, gt=0, description="between rounds through the candidates")
    longest_run_s: float = Field(
        86_400.0,
        gt=0,
        description="of a machine whose launch carries no proof by a holder of the account's key",
    )

    @field_validator("*")
    @classmethod
    def _bounded(cls, seconds: float) -> float:
        if seconds > LONGEST_WAIT_S:
            raise ValueError(f"at most {LONGEST_WAIT_S:,.0f} s")
        return seconds


class TrackingConfig(BaseModel):
    """Where runs are told when they have ended, for people who compare them there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mlflow: SecretStr = Field(SecretStr(""), description="address of an MLflow server")
    experiment: str = Field(
        "moola",
        min_length=1,
        max_length=400,
        description="runs of a job are in the experiment EXPERIMENT/JOB",
    )

    @property
    def address(self) -> str:
        """Of the MLflow server, perhaps with a password in it; "" for none."""
        return self.mlflow.get_secret_value().strip()


class Settings(BaseSettings):
    """What holds for all commands; nothing secret belongs here."""

    model_config = SettingsConfigDict(
        env_prefix="MOOLA_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    store: str = Field(
        DEFAULT_STORE,
        description="where runs and inputs are: s3://bucket/prefix or file:///dir",
    )
    work: Path = Field(
        Path(DEFAULT_WORK),
        description="scratch: downloaded inputs, upload journals",
    )
    work_limit_gb: float = Field(
        DEFAULT_WORK_LIMIT_GB,
        gt=0,
        le=1e6,
        description="size of `work`: what was not used for longest is removed beyond it",
    )
    on: Backend = Field("local", description="where jobs run")
    image_cpu: str | None = Field(
        None,
        description="the image of precompute: NAME@sha256:..., or a tag to look up",
    )
    image_gpu: str | None = Field(None, description="the image of train")
    docker_memory: str = Field(
        "8g",  # what the default rented machine for precompute has
        pattern=r"^[1-9]\d*[bkmg]?$",
        description="memory limit of a container of --on docker, as in docker run --memory",
    )
    pods: Literal["rest", "sdk"] = Field(
        "rest",
        description="RunPod's API: REST v2, or GraphQL by the package `runpod`",
    )
    watch: WatchConfig = Field(default_factory=WatchConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def image(self, job: str) -> str | None:
        """The image of a job."""
        return self.image_gpu if job == "train" else self.image_cpu

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file_settings = InitSettingsSource(settings_cls, init_kwargs=read_settings_file())
        return init_settings, env_settings, file_settings


def read_settings_file(path: Path = Path(SETTINGS_FILE)) -> dict[str, object]:
    """What moola.toml sets; {} without the file. Raises ValueError where it cannot be read."""
    if not path.exists():
        return {}
    try:
        settings = tomllib.loads(read_small_text(path))
        if "notify" in settings:
            raise ValueError(f"{path}: addresses for notices are secrets: set {NOTIFY} instead")
        if _has_password(settings.get("tracking")):
            raise ValueError(f"{path}: a password is a secret: set {TRACKING} instead")
        return settings
    except DataError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep") from error


def _has_password(tracking: object) -> bool:
    """Has the address in this table of moola.toml a user or a key in it?"""
    address = tracking.get("mlflow") if isinstance(tracking, dict) else None
    if not isinstance(address, str):
        return False
    parts = urlsplit(address)
    return "@" in parts.netloc or bool(parts.query)
