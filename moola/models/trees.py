"""Regression trees as tensors, and the sums of their leaves.

A tree is a row of nodes, its root the first. At a node a value above the threshold goes to the
second of its two children, which stand side by side; any other goes to the first. A leaf is its own
child, and its threshold is infinite, so that whoever has come to it stays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moola.models.quick_scorer import QuickTrees, add_leaves, quick_trees

ELEMENTS_AT_ONCE = 1 << 20  # rows x trees that are walked together
FIELDS = ("column", "threshold", "child", "value", "output")


class Trees(nn.Module):
    """M trees of at most `n_nodes` nodes over D columns, which add up to O outputs.

    column     [M, n_nodes] int64, which column a node looks at
    threshold  [M, n_nodes] float32
    child      [M, n_nodes] int64, the first of the two children
    value      [M, n_nodes] float64, of leaves
    output     [M] int64, to which of the outputs a tree adds

    It takes on the trees of a state dict, however many they are; none where the dict has none.
    """

    column: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor
    output: Tensor

    def __init__(self, n_columns: int, n_outputs: int) -> None:
        super().__init__()
        self.n_columns = n_columns
        self.n_outputs = n_outputs
        for name, tensor in no_trees().items():
            self.register_buffer(name, tensor)
        self.depth = 0
        self._quick = _quick(no_trees())

    @property
    def n_trees(self) -> int:
        return len(self.output)

    def plant(self, fields: Mapping[str, Tensor]) -> None:
        """Take on these trees. Raises ValueError where they are no trees over the columns."""
        self._check(fields)
        self._quick = _quick(fields)
        for name in FIELDS:
            setattr(self, name, fields[name].clone(memory_format=torch.contiguous_format))
        self.depth = _depth(self.child)

    def forward(self, x: Tensor) -> Tensor:
        """[R, D] -> [R, O] float64. A value that is not a number counts as 0."""
        total = x.new_zeros(len(x), self.n_outputs, dtype=torch.float64)
        if not self.n_trees:
            return total

        x = x.float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        if x.device.type == "cpu":
            columns = x.detach().T.contiguous()
            add_leaves(columns.numpy(), *self._quick, self.output.numpy(), total.numpy())
            return total
        return self._added_step_by_step(x, total)

    def _added_step_by_step(self, x: Tensor, total: Tensor) -> Tensor:
        """All rows take a step at a time, as a GPU likes it."""
        n_rows = max(1, ELEMENTS_AT_ONCE // self.n_trees)
        for first in range(0, len(x), n_rows):
            rows = slice(first, first + n_rows)
            total[rows].index_add_(1, self.output, self._leaves(x[rows]))

        return total

    def _leaves(self, x: Tensor) -> Tensor:
        """[R, D] -> [R, M] the value of the leaf that each row comes to in each tree."""
        n_nodes = self.child.shape[1]
        first_node = n_nodes * torch.arange(self.n_trees, device=x.device)
        node = first_node.expand(len(x), -1)  # [R, M] places in the flattened fields
        for _ in range(self.depth):
            is_above = x.gather(1, self.column.take(node)) > self.threshold.take(node)
            node = first_node + self.child.take(node) + is_above

        return self.value.take(node)

    def _check(self, fields: Mapping[str, Tensor]) -> None:
        wanted = no_trees()
        for name, tensor in fields.items():
            if tensor.dtype != wanted[name].dtype or tensor.ndim != wanted[name].ndim:
                raise ValueError(f"{name} of trees must be {wanted[name].dtype}")

        column, threshold, child, value, output = (fields[name] for name in FIELDS)
        shape = column.shape
        if {threshold.shape, child.shape, value.shape} != {shape} or len(output) != len(column):
            raise ValueError("the fields of trees must be of one shape")
        if not len(output):
            return

        node = torch.arange(shape[1])
        is_leaf = child.cpu() == node
        goes_on = (child.cpu() > node) & (child.cpu() + 1 < shape[1])
        if not bool((is_leaf | goes_on).all()):
            raise ValueError("the children of a tree's node must come after it")
        if not bool((threshold.cpu()[is_leaf] == torch.inf).all()):
            raise ValueError("the threshold of a leaf must be infinite")
        if not bool(((column >= 0) & (column < self.n_columns)).all()):
            raise ValueError(f"a tree's columns must be 0..{self.n_columns - 1}")
        if not bool(((output >= 0) & (output < self.n_outputs)).all()):
            raise ValueError(f"a tree's output must be 0..{self.n_outputs - 1}")

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],  # noqa: ARG002 - torch's own signature
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],
        unexpected_keys: list[str],  # noqa: ARG002
        error_msgs: list[str],
    ) -> None:
        """Buffers of any size, where torch wants those of the size that there is."""
        missing = [prefix + name for name in FIELDS if prefix + name not in state_dict]
        if missing:
            missing_keys += missing
            return

        device = self.output.device
        try:
            self.plant({name: state_dict[prefix + name].to(device) for name in FIELDS})
        except ValueError as error:
            error_msgs.append(f"{prefix[:-1]}: {error}")


def no_trees() -> dict[str, Tensor]:
    return {
        "column": torch.zeros(0, 1, dtype=torch.int64),
        "threshold": torch.zeros(0, 1),
        "child": torch.zeros(0, 1, dtype=torch.int64),
        "value": torch.zeros(0, 1, dtype=torch.float64),
        "output": torch.zeros(0, dtype=torch.int64),
    }


def _quick(fields: Mapping[str, Tensor]) -> QuickTrees:
    """The trees as a CPU asks them."""
    return quick_trees(*(fields[name].cpu().numpy() for name in FIELDS[:-1]))


def _depth(child: Tensor) -> int:
    """How many steps the longest way from a root to a leaf has."""
    n_trees, n_nodes = child.shape
    children = child.cpu().numpy()
    steps = np.zeros((n_trees, n_nodes), np.int64)
    tree = np.arange(n_trees)
    for node in range(n_nodes):  # a child comes after its parent
        first = children[:, node]
        for side in (0, 1):
            inner = first != node
            steps[tree[inner], first[inner] + side] = steps[inner, node] + 1

    return int(steps.max(initial=0))
