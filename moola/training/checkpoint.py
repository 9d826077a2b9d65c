"""A checkpoint as named bytes: weights in safetensors, and all else a run needs to resume."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from moola.errors import ArtifactError, DataError
from moola.models.jade_core import RECIPE

WEIGHTS = "model.safetensors"  # of a checkpoint, and of a finished run
BEST = "best.safetensors"
STATE = "state.pt"
RECIPE_NAME = "recipe"  # of the weight that tells which recipe the others are of

SHOWN_CHARACTERS = 40  # of a value in a message

Files = Mapping[str, bytes]
Weights = Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """`best` are the weights of the best epoch so far; None before there is one."""

    weights: dict[str, Tensor]
    best: dict[str, Tensor] | None
    state: dict[str, Any]


def pack(
    weights: Weights,
    best: Weights | None,
    state: Mapping[str, Any],
) -> dict[str, bytes]:
    """name -> bytes.

    `state` may hold tensors, numbers, text, lists and mappings: no class of ours, so that reading
    it runs no code.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    files = {WEIGHTS: weights_bytes(weights), STATE: buffer.getvalue()}
    if best is not None:
        files[BEST] = weights_bytes(best)
    return files


def unpack(files: Files) -> Checkpoint:
    """The inverse of `pack`. Raises ArtifactError if a file is missing or cannot be read."""
    missing = [name for name in (WEIGHTS, STATE) if name not in files]
    if missing:
        raise ArtifactError(
            f"a checkpoint must have {WEIGHTS} and {STATE}; {', '.join(missing)} is missing"
        )

    try:
        state = torch.load(
            io.BytesIO(files[STATE]),
            weights_only=True,
            map_location="cpu",
        )
    except Exception as error:  # torch raises whatever its unpickler met
        raise ArtifactError(f"the checkpoint's {STATE} cannot be read: {error}") from error

    best = read_weights(files[BEST]) if BEST in files else None
    return Checkpoint(read_weights(files[WEIGHTS]), best, dict(state))


def weights_bytes(weights: Weights | nn.Module) -> bytes:
    """The safetensors bytes of a model or of a mapping of tensors."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(on_cpu))


def read_weights(data: bytes) -> dict[str, Tensor]:
    """name -> tensor, on the CPU. Raises ArtifactError unless it is a whole safetensors file."""
    try:
        return dict(load(data))
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"weights must be a whole safetensors file: {error}") from error


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put `weights` into `model`. Raises ArtifactError unless names and shapes are the model's, and

    DataError for those of another recipe.
    """
    for name in model.state_dict():
        if name.split(".")[-1] == RECIPE_NAME:
            require_recipe(weights, name)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"the weights must be of the same model: {error}") from error


def require_recipe(weights: Weights, name: str = RECIPE_NAME) -> None:
    """Raises DataError for weights whose inputs meant something else than they do now."""
    recipe = weights.get(name)
    if recipe is not None and recipe.shape == () and recipe == RECIPE:
        return

    theirs = "an older one" if recipe is None else str(recipe.tolist())[:SHOWN_CHARACTERS]
    raise DataError(
        f"the model's weights must be of recipe {RECIPE}, which is how this version of moola "
        f"computes what they read, and are of {theirs}: train again, or use the version that "
        "trained them"
    )
