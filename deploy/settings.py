"""Settings of the launcher: flags, then environment (MOOLA_*), then moola.toml in the working directory, then these."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class Settings(BaseSettings):
    """What holds for all commands; nothing secret belongs here."""

    model_config = SettingsConfigDict(env_prefix="MOOLA_", toml_file="moola.toml", extra="forbid")

    store: str = Field(
        "file://./moola-store", description="where runs and inputs are: s3://bucket/prefix or file:///dir"
    )
    work: Path = Field(Path("~/.cache/moola"), description="scratch: downloaded inputs, upload journals")
    on: Literal["local"] = Field("local", description="where jobs run")

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
