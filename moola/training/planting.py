"""LightGBM's trees, as it dumps them, turned into the tensors of `moola.models.trees`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Node = Mapping[str, Any]  # of a dump: a split, or a leaf


def tree_fields(dumps: Sequence[Mapping[str, Any]], n_outputs: int) -> dict[str, Tensor]:
    """The fields of `Trees`: of each output the mean over the boosters.

    A booster's trees take turns with the outputs.
    """
    roots = [(number, tree) for dump in dumps for number, tree in enumerate(dump["tree_info"])]
    n_nodes = max(2 * tree["num_leaves"] - 1 for _, tree in roots)
    shape = (len(roots), n_nodes)

    # Until told otherwise a node is a leaf that is worth nothing.
    column = np.zeros(shape, np.int64)
    threshold = np.full(shape, np.inf, np.float32)
    child = np.tile(np.arange(n_nodes), (len(roots), 1))
    value = np.zeros(shape)
    for row, (_, tree) in enumerate(roots):
        for place, (node, first_child) in enumerate(_by_level(tree["tree_structure"])):
            if first_child is None:
                value[row, place] = node["leaf_value"] / len(dumps)
                continue
            column[row, place] = node["split_feature"]
            threshold[row, place] = rounded_down(node["threshold"])
            child[row, place] = first_child

    return {
        "column": torch.from_numpy(column),
        "threshold": torch.from_numpy(threshold),
        "child": torch.from_numpy(child),
        "value": torch.from_numpy(value),
        "output": torch.tensor([number % n_outputs for number, _ in roots]),
    }


def _by_level(root: Node) -> list[tuple[Node, int | None]]:
    """The nodes from the root on, siblings side by side; with the place of the first child."""
    nodes: list[Node] = [root]
    placed: list[tuple[Node, int | None]] = []
    for node in nodes:  # which grows while it is walked
        if "split_feature" not in node:
            placed.append((node, None))
            continue
        placed.append((node, len(nodes)))
        nodes += [node["left_child"], node["right_child"]]

    return placed


def rounded_down(threshold: float) -> np.float32:
    """The largest float32 that is not above it: no float32 lies between the two."""
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.float32(np.nextafter(rounded, np.float32(-np.inf)))
    return rounded
