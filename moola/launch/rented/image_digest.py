"""The image of a rented machine, by digest, and whether the machine will be able to pull it.

Both are known before a machine is paid for: a host that cannot pull an image says so in no status.
"""

from moola.errors import DataError
from moola.providers.registry import (
    DIGEST,
    NOT_PUBLIC,
    Manifest,
    RegistryError,
    fetch_manifest,
    parse_image_name,
)
from moola.text import quoted

PLATFORM = "linux/amd64"  # of every host that can be rented


def with_digest(image: str | None, job: str, registry_id: str | None = None) -> str:
    """The image as NAME@sha256:..., once its registry has shown that everybody can pull it.

    With `registry_id` (machine.registry: the provider's credentials for a private image) a digest
    is taken as it is, and only a tag is looked up. Raises DataError that says what to do for an
    image that is missing, private, not for linux/amd64, or in a registry that does not answer.
    """
    if image is None:
        variable = "MOOLA_IMAGE_GPU" if job == "train" else "MOOLA_IMAGE_CPU"
        raise DataError(
            f"image: a rented machine needs the image of {job}: "
            f"--image NAME@sha256:..., or {variable}"
        )

    name, at, digest = image.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise DataError(f"image: a digest is sha256: and 64 hex digits, got {quoted(image)}")
    if at and registry_id is not None:
        return image

    manifest = _require_manifest(image, "gpu" if job == "train" else "cpu")
    if manifest.platforms and PLATFORM not in manifest.platforms:
        raise DataError(
            f"image: rented machines are {PLATFORM}, and {image} is for "
            f"{', '.join(manifest.platforms)} alone: build it with deploy/image/build.sh, which "
            f"builds for {PLATFORM} on every computer, and publish it again"
        )
    return image if at else f"{_without_tag(name)}@{manifest.digest}"


def _require_manifest(image: str, kind: str) -> Manifest:
    """The image's manifest. Raises DataError where an anonymous client does not get it.

    `kind` is cpu or gpu, as deploy/image/build.sh calls it.
    """
    name = parse_image_name(image)
    try:
        return fetch_manifest(name)
    except RegistryError as error:
        if error.status in NOT_PUBLIC:
            raise DataError(
                f"image: {image} must be one that everybody can pull, and {name.registry} gives it "
                f"to nobody without an account: it is private, or not there ({error}). Make it "
                "public; or store your registry's user and token with the provider (RunPod: "
                "Settings, Container registry auth), and give the id that they get there: "
                "--set machine.registry=ID, with the image by digest"
            ) from error
        if error.status == 404:
            raise DataError(
                f"image: {image} is not there ({error}): publish it with `bash "
                f"deploy/image/build.sh push {kind}`, or look for what is: {_inspect(image)}"
            ) from error
        raise DataError(
            f"image: it must be known that machines can pull {image} before one is paid for, and "
            f"its registry did not give the manifest ({error}). Try again, and see what you get "
            f"from: {_inspect(image)}"
        ) from error


def _inspect(image: str) -> str:
    return f"docker buildx imagetools inspect {image}"


def _without_tag(name: str) -> str:
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"
