"""Settings of the launcher: flags, then environment (MOOLA_*), then moola.toml in the working directory, then these."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class WatchConfig(BaseModel):
    """How a rented machine is watched: how often, and for how long nothing may happen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    poll_s: float = Field(2.0, gt=0, description="between looks into the store")
    pod_poll_s: float = Field(15.0, gt=0, description="between questions to the provider, whose quota is 60 a minute")
    beat_s: float = Field(5.0, gt=0, description="between heartbeats and log chunks of a job")
    start_timeout_s: float = Field(1200.0, gt=0, description="from the machine's creation to the job's first word")
    stalled_after_s: float = Field(180.0, gt=0, description="without a new heartbeat")
    grace_s: float = Field(30.0, gt=0, description="for a machine to end itself before it is ended from outside")
    settle_s: float = Field(60.0, gt=0, description="until a machine that was asked for is in the provider's list")
    capacity_poll_s: float = Field(30.0, gt=0, description="between rounds through the candidates")


class Settings(BaseSettings):
    """What holds for all commands; nothing secret belongs here."""

    model_config = SettingsConfigDict(
        env_prefix="MOOLA_", env_nested_delimiter="__", toml_file="moola.toml", extra="forbid"
    )

    store: str = Field(
        "file://./moola-store", description="where runs and inputs are: s3://bucket/prefix or file:///dir"
    )
    work: Path = Field(Path("~/.cache/moola"), description="scratch: downloaded inputs, upload journals")
    on: Literal["local", "docker", "runpod"] = Field("local", description="where jobs run")
    image_cpu: str | None = Field(None, description="the image of precompute: NAME@sha256:..., or a tag to look up")
    image_gpu: str | None = Field(None, description="the image of train")
    pods: Literal["rest", "sdk"] = Field(
        "rest", description="RunPod's API: REST v2, or GraphQL by the package `runpod`"
    )
    watch: WatchConfig = Field(default_factory=WatchConfig)

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
