"""The whole graph as one block, its nodes sorted by degree: exact aggregation without a scatter.

Values are folds over `jsage.blocks.sliced`; gradients are the same folds over the reversed graph.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num, PyTree

from jsage._internal.arrays import accumulator_dtype, aligned, take
from jsage._internal.checks import is_floating
from jsage.blocks.layout import Size, few_rows, plain_reduction
from jsage.blocks.reductions import MAX, SUM, Reduction, checked, filled, finished
from jsage.blocks.sliced import LIMIT, ROWS, Line, Message, Sliced, fold, fold_with, sliced
from jsage.blocks.slotwise import add_rows, blank, floats, hoist, like, pull_back, some_rows, steady
from jsage.graph import Graph, reverse
from jsage.graph.sparse import is_sparse, map_rows
from jsage.typing import EdgeData, HostArray, MessageFn

Rows: TypeAlias = Num[HostArray, "num_nodes *d"]
Pooled: TypeAlias = Num[Array, "num_nodes *d"]


class SlicedBlock(NamedTuple):
    """A block that holds every edge of a graph: all nodes read their whole neighborhoods.

    For full-batch training and exact inference. It holds no `[num_nodes, max degree]` table, so reductions
    whose order counts (the LSTM) are not available. Make one with `sliced_full_block`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> block = sliced_full_block(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3))
    >>> block.sum(jnp.eye(3))
    Array([[0., 1., 1.],
           [1., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    degree: Int[Array, " num_nodes"]
    forward: Sliced
    backward: Sliced
    """The same over the reversed graph, for the gradient."""
    edge_data: EdgeData = {}
    """One row an edge, in the order of the graph's; weights are read where the slots keep them."""

    @property
    def num_dst(self) -> int:
        """The number of nodes."""
        return self.degree.shape[0]

    def own(self, h: Any) -> Any:
        """`h` itself."""
        return map_rows(jnp.asarray, h)

    def sum(self, h: Rows) -> Pooled:
        """The sum over each node's neighbors, in float32 at least."""
        self._check(h)
        return _sum(*aligned(jnp.asarray(h), self.forward, self.backward))

    def max(self, h: Rows) -> Pooled:
        """The maximum over each node's neighbors, 0 where there are none."""
        self._check(h)
        return _max(*aligned(jnp.asarray(h), self))

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Messages reduced, chunk by chunk: nothing has a row for every edge."""
        self._check(dst)
        self._check(src)
        if (plain := plain_reduction(self, message, reduction, dst, src, own)) is not None:
            return plain(src)
        if reduction.join is None:
            raise TypeError(
                "a reduction whose order counts needs a [num_nodes, max degree] table, which degree classes "
                "are there to avoid: use full_block(graph, slots=True)"
            )
        run, consts = hoist(message, *_like(self, dst, src))
        return _reduced(run, reduction, *aligned((consts, dst, src, own), self))

    def by_slot(self, num_src: Size) -> bool:
        """Never: rows are read where they are."""
        return False

    def reads_again(self, num_src: Size) -> bool:
        """Always."""
        return few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_nodes"]:
        """The number of edges into each node."""
        return self.degree

    def sources(self, h: Any) -> tuple[Any, "SlicedBlock"]:
        """`h` itself: every row is read, if only by its own node."""
        self._check(h)
        return map_rows(jnp.asarray, h), self

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Valid nodes and the sources of their edges."""
        flags = valid[:, None].astype(jnp.float32)
        return valid | (fold(self.backward, lambda nodes: lambda line: take(flags, line.src), MAX)[:, 0] > 0)

    def _check(self, h: PyTree) -> None:
        for rows in {x.shape[0] for x in jax.tree.leaves(h, is_leaf=is_sparse)} - {self.num_dst}:
            raise ValueError(
                f"degree classes of {self.num_dst} nodes must have one row a node, got {rows} rows: "
                "pass all nodes' rows, in order"
            )


def sliced_full_block(graph: Graph, *, rows: int = ROWS, limit: int = LIMIT) -> SlicedBlock:
    """A graph as one block in degree classes, on the host, once; its `edge_data` goes with it.

    Chunks have `rows` rows of at most `limit` slots. An `edge_data["weight"]` gets no gradient here
    (`full_block` gives one). For a model of `L` layers pass `(sliced_full_block(graph),) * L`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3, weight=[1.0, 0.5, 2.0])
    >>> sliced_full_block(graph).sum(jnp.eye(3))
    Array([[0. , 1. , 0.5],
           [2. , 0. , 0. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    if rows < 1 or limit < 2:
        raise ValueError(f"chunks need rows of 1 or more and a limit of 2 or more, got {rows} and {limit}")
    if graph.num_nodes == 0:
        raise ValueError("degree classes need a graph with nodes, got one without any")
    weight = {name: x for name, x in graph.edge_data.items() if name == "weight"}
    data = {name: jnp.asarray(x) for name, x in graph.edge_data.items()}
    number = {"number": jnp.arange(graph.num_edges, dtype=jnp.int32)} if data.keys() - weight else {}
    graph = graph._replace(edge_data={**weight, **number})
    ways = [_host(graph), _host(reverse(graph))]
    forward = sliced(*ways[0], rows=rows, limit=limit)
    symmetric = all(a is b or (a is not None and np.array_equal(a, b)) for a, b in zip(*ways, strict=True))
    backward = forward if symmetric else sliced(*ways[1], rows=rows, limit=limit)
    return SlicedBlock(jnp.asarray(np.diff(ways[0][0])), forward, backward, data)


def _host(graph: Graph) -> tuple[Any, ...]:
    found = (graph.indptr, graph.indices, graph.edge_data.get("weight"), graph.edge_data.get("number"))
    return tuple(None if x is None else np.asarray(x) for x in found)


def _scaled(rows: Array, weight: Array | None) -> Array:
    return rows if weight is None else rows * weight.astype(rows.dtype)


@jax.custom_vjp
def _sum(h: Rows, forward: Sliced, backward: Sliced) -> Pooled:
    def read(nodes: Array) -> Message:
        return lambda line: _scaled(take(h, line.src), line.weight).astype(accumulator_dtype(h))

    return fold(forward, read, SUM).astype(h.dtype)


def _sum_forward(h: Rows, forward: Sliced, backward: Sliced):
    return _sum(h, forward, backward), (forward, backward)


def _sum_backward(saved: tuple[Sliced, Sliced], cotangent: Rows):
    forward, backward = saved
    return _sum(cotangent, backward, forward), None, None


_sum.defvjp(_sum_forward, _sum_backward)


@jax.custom_vjp
def _max(h: Rows, block: SlicedBlock) -> Pooled:
    top = fold(block.forward, lambda nodes: lambda line: _scaled(take(h, line.src), line.weight), MAX)
    return jnp.where(block.degree[:, None] > 0, top, 0)


def _max_forward(h: Rows, block: SlicedBlock):
    top = _max(h, block)
    return top, (h, top, block)


def _max_backward(saved: tuple[Rows, Rows, SlicedBlock], cotangent: Rows):
    h, top, block = saved

    def won(nodes: Array) -> Message:
        mine = take(top, nodes)
        return lambda line: (_scaled(take(h, line.src), line.weight) == mine).astype(accumulator_dtype(h))

    ties = fold(block.forward, won, SUM)
    share = cotangent.astype(ties.dtype) / jnp.maximum(ties, 1)

    def pull(nodes: Array) -> Message:
        mine = take(h, nodes)

        def message(line: Line) -> Array:
            won = _scaled(mine, line.weight) == take(top, line.src)
            return jnp.where(won, _scaled(take(share, line.src), line.weight), 0)

        return message

    return fold(block.backward, pull, SUM).astype(h.dtype), None


_max.defvjp(_max_forward, _max_backward)


def _like(block: SlicedBlock, dst: PyTree, src: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """The shapes of what a chunk's messages read."""
    rows, weight = block.forward.node.shape[1], block.forward.weight
    weights = {} if weight is None else {"weight": jax.ShapeDtypeStruct((rows,), weight.dtype)}
    return some_rows(dst, rows), some_rows(src, rows), {**some_rows(dict(block.edge_data), rows), **weights}


def _edge_rows(block: SlicedBlock, line: Line) -> dict[str, Array]:
    found = {} if line.weight is None else {"weight": line.weight[:, 0]}

    def rows(x: Array) -> Array:
        if line.edge is None or not x.shape[0]:
            return jnp.zeros((line.src.shape[0], *x.shape[1:]), x.dtype)
        return take(x, line.edge)

    return {name: rows(x) for name, x in block.edge_data.items() if name != "weight"} | found


def _rows(tree: PyTree, ids: Array) -> PyTree:
    return jax.tree.map(lambda x: take(x, ids), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reduced(message, reduction, given, block):
    return _forward(message, reduction, given, block)[0]


def _forward(message, reduction, given, block):
    consts, dst, src, own = given

    def read(nodes):
        mine = _rows(dst, nodes)

        def sent(line, _):
            send = steady(reduction, message, _some(line))
            return send(consts, mine, _rows(src, line.src), _edge_rows(block, line)), ()

        return sent

    state, _ = fold_with(block.forward, read, reduction, ())
    sent = checked(jax.eval_shape(message, consts, *_like(block, dst, src)), block.forward.node.shape[1])
    out = finished(reduction, state, block.degree, sent, own)
    state = state if own is None else reduction.step(state, own, None)
    return out, (given, block, state)


def _backward(message, reduction, saved, cotangent):
    (consts, dst, src, own), block, state = saved
    gradient = _gradient(reduction)
    tally = _tally(message, reduction, (consts, dst, src, own), block, state)
    settled = gradient.settle(state, tally, floats(cotangent))
    pull = partial(_pulled, message, reduction, consts)

    edges = {name: x for name, x in block.edge_data.items() if name != "weight"}

    def into(nodes):
        """Cotangents of the destinations' rows, with those of parameters and edges carried on."""
        mine, final = _rows(dst, nodes), _rows(settled, nodes)

        def read(line, carry):
            rows = mine, _rows(src, line.src), _edge_rows(block, line)
            more, to_dst, _, to_edge = pull(rows, final, line)
            to_edge = {name: to_edge[name] for name in edges}
            return _floats(to_dst), (add_rows(carry[0], more), add_rows(carry[1], to_edge, line.edge))

        return read

    def out_of(nodes):
        """Cotangents of the sources' rows: a line holds destinations."""
        mine = _rows(src, nodes)

        def read(line, _):
            rows = _rows(dst, line.src), mine, _edge_rows(block, line)
            return _floats(pull(rows, _rows(settled, line.src), line)[2]), ()

        return read

    d_dst, (d_consts, d_edges) = fold_with(block.forward, into, SUM, (blank(consts), blank(edges)))
    d_src, _ = fold_with(block.backward, out_of, SUM, ())
    d_own = None if own is None else like(gradient.pull(settled, own), own)
    none = jax.tree.map(lambda _: None, block)
    d_block = none._replace(edge_data={**none.edge_data, **like(d_edges, edges)})
    return (like(d_consts, consts), _placed(d_dst, dst), _placed(d_src, src), d_own), d_block


_reduced.defvjp(_forward, _backward)


def _gradient(reduction):
    """Its gradient; TypeError for a reduction without one."""
    if reduction.gradient is None:
        raise TypeError(
            "this reduction has no gradient of its own, and a SlicedBlock keeps no message that JAX could "
            "differentiate: give the Reduction a Gradient, or train on sampled blocks or full_block(graph)"
        )
    return reduction.gradient


def _some(line):
    """Whether any row has the slot; read of the data where all have, lest a compiler know."""
    return line.src[0] >= 0 if line.mask is None else line.mask.any()


def _tally(message, reduction, rows, block, state):
    """What `settle` needs of all messages beforehand, where it needs any."""
    (consts, dst, src, own), gradient = rows, reduction.gradient
    if gradient.tally is None:
        return None

    def ties(nodes):
        mine, top = _rows(dst, nodes), _rows(state, nodes)

        def read(line, _):
            send = steady(reduction, message, _some(line))
            sent = send(consts, mine, _rows(src, line.src), _edge_rows(block, line))
            return gradient.tally(top, sent), ()

        return read

    tally, _ = fold_with(block.forward, ties, SUM, ())
    return tally if own is None else jax.tree.map(jnp.add, tally, gradient.tally(state, own))


def _pulled(message, reduction, consts, rows, final, line):
    """Cotangents of parameters and of all rows; none from slots that are not there."""
    rows = filled(line.mask, rows)
    pulled = reduction.gradient.pull(final, steady(reduction, message, _some(line))(consts, *rows))
    return pull_back(message, (consts, rows), pulled, line.mask)


def _floats(tree: PyTree) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if is_floating(x.dtype)]


def _placed(found: list[Array], tree: PyTree) -> PyTree:
    """Cotangents of the arrays that have some, in their dtypes; None for the others."""
    given = iter(found)
    return jax.tree.map(lambda x: next(given).astype(x.dtype) if is_floating(x.dtype) else None, tree)
