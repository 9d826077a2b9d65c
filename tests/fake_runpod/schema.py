"""Bodies against RunPod's published OpenAPI file; where that is absent, against a list."""

import json
import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.shared import find_shared

OPENAPI = find_shared("reference/runpod-rest-v2-openapi.json")
CREATE_KEYS = {
    "name",
    "image",
    "args",
    "disk",
    "env",
    "ports",
    "registry",
    "cloud",
    "cpu",
    "dataCenterIds",
    "gpu",
}
CREATE_KEYS |= {"globalNetworking", "mounts", "startJupyter", "startSsh", "templateId"}


@cache
def validator(schema: str) -> Draft202012Validator | None:
    """Of one of the file's components; None where there is no file."""
    if OPENAPI is None:
        return None
    document = DRAFT202012.create_resource(json.loads(OPENAPI.read_text()))
    registry: Registry[Any] = Registry().with_resource("urn:runpod", document)
    return Draft202012Validator(
        {"$ref": f"urn:runpod#/components/schemas/{schema}"}, registry=registry
    )


def violations(schema: str, body: object) -> list[str]:
    """What the body breaks, in the API's words where they are known.

    Without the file no answer is checked.
    """
    check = validator(schema)
    if check is None:
        return _listed(body) if schema == "CreatePodRequest" else []
    return [line for error in check.iter_errors(body) for line in _lines(error)]


def _lines(error: ValidationError) -> list[str]:
    place = error.json_path
    if error.validator in ("unevaluatedProperties", "additionalProperties"):
        names = re.findall(r"'([^']*)'", error.message)
        return [f"{place}: additional properties {name!r} not allowed" for name in names]
    return [f"{place}: {error.message}"]


def _listed(body: object) -> list[str]:
    """The check without the file: allowed keys, and what is required."""
    if not isinstance(body, dict):
        return ["$: not an object"]
    extra = [
        f"$: additional properties {key!r} not allowed" for key in sorted(body.keys() - CREATE_KEYS)
    ]
    needed = {"name"} if "templateId" in body else {"name", "image"}
    return extra + [f"$: {key!r} is a required property" for key in sorted(needed - body.keys())]
