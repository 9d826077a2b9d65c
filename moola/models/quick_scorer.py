"""The sums of trees' leaves on a CPU: QuickScorer (Lucchese et al., SIGIR 2015).

The leaves of a tree are bits, the leftmost the lowest. A node that sends a row to its second child
rules out the leaves below its first one. Once all nodes of a tree have been asked, in any order,
the lowest leaf that is left is the one to which a walk from the root would come. No step depends on
the one before it, so many rows are compared at a time.
"""

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from moola.features.arrays import Floats, Ints
from moola.features.zigzag import compiled

Float32s = NDArray[np.float32]
Bits = NDArray[np.uint64]

MOST_LEAVES = 64  # the bits of a word
ROWS_AT_ONCE = 512  # what is known of them stays in the nearest cache
EVERY_LEAF = np.uint64(2**64 - 1)

# A power of two times this number has its exponent's place in the table in its highest six bits.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
TO_PLACE = np.uint64(58)
EXPONENT = np.zeros(64, np.int64)
EXPONENT[[((int(DE_BRUIJN) << bit) % 2**64) >> 58 for bit in range(64)]] = np.arange(64)


class QuickTrees(NamedTuple):
    """M trees of N inner nodes in all.

    first_node  [M + 1] where the nodes of each tree begin
    column      [N] which column a node looks at
    threshold   [N] float32
    left_out    [N] uint64, without the leaves that a value above the threshold rules out
    value       [M, MOST_LEAVES] of the leaves
    """

    first_node: Ints
    column: Ints
    threshold: Float32s
    left_out: Bits
    value: Floats


def quick_trees(
    column: Ints,
    threshold: Float32s,
    child: Ints,
    value: Floats,
) -> QuickTrees:
    """From the fields of `moola.models.trees.Trees`, whose children come after their parents.

    Raises ValueError where a node has two parents, or a tree has more than MOST_LEAVES leaves.
    """
    n_trees, n_nodes = child.shape
    if n_nodes >= 2 * MOST_LEAVES:
        raise ValueError(f"a tree must have at most {MOST_LEAVES} leaves")

    tree = np.arange(n_trees)
    is_inner = child != np.arange(n_nodes)
    n_parents = np.zeros((n_trees, n_nodes), np.int64)
    n_parents[:, :1] = 1
    for node in range(n_nodes):
        inner = tree[is_inner[:, node] & (n_parents[:, node] > 0)]
        n_parents[inner, child[inner, node]] += 1
        n_parents[inner, child[inner, node] + 1] += 1
    if n_parents.max(initial=0) > 1:
        raise ValueError("a node of a tree must have one parent")

    is_reached = n_parents > 0
    first_leaf, n_left = _leaves_below(child, is_inner & is_reached)
    tree_of_leaf, leaf = np.nonzero(is_reached & ~is_inner)
    values = np.zeros((n_trees, MOST_LEAVES))
    values[tree_of_leaf, first_leaf[tree_of_leaf, leaf]] = value[tree_of_leaf, leaf]

    asked = np.nonzero(is_inner & is_reached)
    ruled_out = [
        ((1 << int(count)) - 1) << int(first)
        for first, count in zip(first_leaf[asked], n_left[asked], strict=True)
    ]
    return QuickTrees(
        np.searchsorted(asked[0], np.arange(n_trees + 1)),
        np.ascontiguousarray(column[asked]),
        np.ascontiguousarray(threshold[asked]),
        ~np.array(ruled_out, np.uint64),
        values,
    )


def _leaves_below(child: Ints, is_inner: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """[M, n_nodes] twice: the leftmost leaf below each node, and how many its first child has."""
    n_trees, n_nodes = child.shape
    n_leaves = np.ones((n_trees, n_nodes), np.int64)
    n_left = np.zeros((n_trees, n_nodes), np.int64)
    for node in reversed(range(n_nodes)):
        inner = np.flatnonzero(is_inner[:, node])
        first = child[inner, node]
        n_left[inner, node] = n_leaves[inner, first]
        n_leaves[inner, node] = n_leaves[inner, first] + n_leaves[inner, first + 1]

    first_leaf = np.zeros((n_trees, n_nodes), np.int64)
    for node in range(n_nodes):
        inner = np.flatnonzero(is_inner[:, node])
        first = child[inner, node]
        first_leaf[inner, first] = first_leaf[inner, node]
        first_leaf[inner, first + 1] = first_leaf[inner, node] + n_left[inner, node]

    return first_leaf, n_left


@compiled(
    nb.void(
        nb.float32[:, ::1],
        nb.int64[::1],
        nb.int64[::1],
        nb.float32[::1],
        nb.uint64[::1],
        nb.float64[:, ::1],
        nb.int64[::1],
        nb.float64[:, ::1],
    )
)
def add_leaves(
    x: Float32s,
    first_node: Ints,
    column: Ints,
    threshold: Float32s,
    left_out: Bits,
    value: Floats,
    output: Ints,
    total: Floats,
) -> None:
    """Add to total [R, O] the leaves that the columns of x [D, R] come to.

    `output` [M] is which of the O a tree adds to; the rest is as in `QuickTrees`.
    """
    n_rows = x.shape[1]
    left = np.empty(ROWS_AT_ONCE, np.uint64)
    for start in range(0, n_rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, n_rows - start)
        for tree in range(len(output)):
            left[:] = EVERY_LEAF
            for node in range(first_node[tree], first_node[tree + 1]):
                values = x[column[node], start : start + count]
                bound = threshold[node]  # taken out of the loop, which then takes many rows at once
                without = left_out[node]
                for row in range(count):
                    left[row] &= without if values[row] > bound else EVERY_LEAF

            for row in range(count):
                lowest = left[row] & (~left[row] + np.uint64(1))
                leaf = EXPONENT[(lowest * DE_BRUIJN) >> TO_PLACE]
                total[start + row, output[tree]] += value[tree, leaf]
