"""The models that a spec may name."""

from typing import Any

from moola.errors import DataError
from moola.models.jade_core import JadeCompact

MODELS = {"jade": JadeCompact}


def build_model(name: str, **arguments: Any) -> JadeCompact:
    """A new model. Raises DataError, listing the registered names, for a name that is not one."""
    if name not in MODELS:
        raise DataError(f"the model must be one of {', '.join(MODELS)}, got {name!r}")

    return MODELS[name](**arguments)


__all__ = ["MODELS", "JadeCompact", "build_model"]
