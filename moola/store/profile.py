"""What a provider can do: the profile kept in the store, and the probes it follows from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moola.errors import ArtifactError, DataError, MoolaError

PROFILE_KEY = "profile.json"
NOT_KNOWN = "the store cannot do this, `moola store check --save` finds what it can"

Integrity = Literal["crc64nvme", "md5"]


class Profile(BaseModel):
    """What a provider can do: `profile.json` in the store.

    The defaults are those of a complete S3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    integrity: Integrity = Field("crc64nvme", description="checksum that the server verifies")
    conditional: bool = Field(
        True, description="If-None-Match is honoured, so that one of several writers wins"
    )
    part_mib: int = Field(32, ge=5, le=5120, description="size of a part, and of a ranged read")
    workers: int = Field(3, ge=1, le=64, description="parts under way at a time")
    read_timeout_s: int = Field(120, ge=1, le=7200, description="longest wait for a response")


def parse_profile(data: bytes | None, url: str) -> Profile:
    """The profile in `profile.json`; the defaults if there is none. Raises DataError."""
    try:
        return Profile.model_validate_json(data or b"{}")
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            path = ".".join(map(str, fault["loc"]))
            faults.append(f"{path}: {fault['msg']}")
        raise DataError(
            f"the store's profile is not valid: {'; '.join(faults)} ({url}/{PROFILE_KEY})"
        ) from error


def profile_json(profile: Profile) -> bytes:
    """`profile.json` of a profile."""
    return profile.model_dump_json().encode()


@dataclass(frozen=True)
class Probe:
    """The result of one probe of `Store.check`; `error` is why it is not `ok`."""

    name: str
    ok: bool
    detail: str
    error: MoolaError | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Check:
    """What `Store.check` found.

    `profile` is what the store can be used with, None if it cannot be used: `refusal` says why.
    `limits` are the promises that it does not keep with that profile, one sentence each.
    """

    probes: Sequence[Probe]
    profile: Profile | None
    limits: Sequence[str] = ()
    refusal: MoolaError | None = None

    def usable_profile(self) -> Profile:
        """The profile. Raises the refusal."""
        if self.profile is None:
            raise self.refusal or DataError("the store cannot be used")
        return self.profile


def run_probe(name: str, probe: Callable[[], str]) -> Probe:
    """Run one probe, which returns what holds, or raises a MoolaError saying what does not."""
    try:
        detail = probe()
    except MoolaError as error:
        detail = str(error).removeprefix(f"{NOT_KNOWN}: ")  # that is being done
        return Probe(name, False, detail, error)
    return Probe(name, True, detail)


def require(condition: object, rule: str) -> None:
    """Raises ArtifactError that names the rule unless the condition holds."""
    if not condition:
        raise ArtifactError(f"it does not hold that {rule}")
