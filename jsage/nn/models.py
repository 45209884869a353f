"""The GraphSAGE model: convolutions with what users put between them."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take
from jsage.blocks.block import read_tables
from jsage.blocks.layout import Block
from jsage.blocks.sparse import sparse_product
from jsage.graph.sparse import is_sparse
from jsage.nn.activation import relu
from jsage.nn.conv.sage import SAGEConv
from jsage.nn.dense import Dense, Rows


class GraphSAGE(nn.Module):
    """A stack of GraphSAGE layers (Hamilton et al., 2017, Algorithm 1): conv, norm, activation, residual.

    The last layer is a plain convolution to `out`; with `jump` every layer is a hidden one and a dense
    layer reads what `jump` makes of all their outputs (Xu et al., 2018, "Jumping knowledge networks").
    The same parameters run on sampled blocks and on the whole graph. Raises ValueError for features of fewer
    columns than `in_features`, for neither features nor `identity`, and unless there is a block a layer.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> from jsage.sampling import sample_blocks
    >>> graph, features = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.eye(3)
    >>> blocks = sample_blocks(jax.random.key(0), graph, jnp.array([0, 2]), fanouts=(2, 3))
    >>> model = GraphSAGE(hidden=8, out=4)
    >>> params = model.init(jax.random.key(1), features, blocks)
    >>> model.apply(params, features, blocks).shape
    (2, 4)
    """

    hidden: int
    """Width of the hidden layers."""
    out: int
    """Width of the result: classes, targets, an embedding; twice that where the last layer has `concat`."""
    num_layers: int = 2
    conv: Callable[..., nn.Module] = SAGEConv
    """Makes a layer from `features=` and `dropout=`: `partial(SAGEConv, aggregate=aggregate.max)`."""
    last_conv: Callable[..., nn.Module] | None = None
    """Makes the last layer where that is another: `partial(GATConv, heads=8, concat=False)`; None: `conv`."""
    norm: Callable[[], nn.Module] | None = None
    """Makes a normalization: `nn.LayerNorm`, `nn.BatchNorm`. Batch statistics leave padded slots out."""
    act: Callable[[Array], Array] = relu
    dropout: float = 0.0
    """Rate on every layer's inputs; draws from the rng stream `"dropout"`."""
    input_dropout: float | None = None
    """Rate on the first layer's inputs, the features; None: as `dropout`."""
    residual: bool = False
    """Add a hidden layer's input to its output, through a dense layer where widths differ."""
    jump: Callable[[Sequence[Array]], Array] | None = None
    """Jumping knowledge: `jump_concat`, `jump_max`."""
    identity: tuple[int, int] | None = None
    """`(num_nodes, width)` of learned embeddings, one a node, beside the features or instead of them."""
    in_features: int | None = None
    """Columns of the features that are read: those after them are padding (`to_device_table`); None: all."""

    def setup(self) -> None:
        """Name the submodules; those that a setting leaves out hold no parameters."""
        hidden_layers = self.num_layers if self.jump else self.num_layers - 1
        widths = [self.hidden] * hidden_layers + [self.out] * (self.num_layers - hidden_layers)
        first = self.dropout if self.input_dropout is None else self.input_dropout
        rates = [first] + [self.dropout] * (self.num_layers - 1)
        makes = [self.conv] * (self.num_layers - 1) + [self.last_conv or self.conv]
        self.convs = [make(features=w, dropout=r) for make, w, r in zip(makes, widths, rates, strict=True)]
        self.norms = [self.norm() for _ in range(hidden_layers)] if self.norm else []
        self.skips = [Skip() for _ in range(hidden_layers * self.residual)]
        self.head = nn.Dense(self.out)
        if self.identity:
            self.embed = nn.Embed(*self.identity)

    def __call__(
        self,
        h: Rows | None,
        blocks: Sequence[Block],
        *,
        mask: Bool[Array, " num_seeds"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "num_seeds out"]:
        """Rows at the sources of `blocks[0]` to `[num_seeds, out]`, one block a layer.

        `h` is the feature table where `blocks` come from `sample_blocks` or `full_block`, and None for a
        model with identity embeddings alone. `mask` tells valid seeds from padding: batch norm needs it.
        """
        if len(blocks) != self.num_layers:
            raise ValueError(
                f"{self.num_layers} layers need as many blocks, got {len(blocks)}: one fanout a layer"
            )
        h, first = self._inputs(h, blocks[0])
        blocks = [first, *blocks[1:]]
        valid = [jnp.ones(blocks[-1].num_dst, bool) if mask is None else mask]
        for k in range(self.num_layers - 1, 0, -1):
            valid.insert(0, blocks[k].read(valid[0], blocks[k - 1].num_dst))
        kept: list[Array] = []
        for k, block in enumerate(blocks):
            h = self.layer(k, h, block, valid=valid[k], deterministic=deterministic)
            kept = [*(block.own(rows) for rows in kept), h] if self.jump else kept
        out: Any = h
        return self.finish(kept) if self.jump else out

    def layer(
        self,
        k: int,
        h: Rows,
        block: Block,
        *,
        valid: Bool[Array, " num_dst"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "num_dst d_out"]:
        """Layer `k` alone: rows at a block's sources to rows at its destinations."""
        out = self.convs[k](h, block, deterministic=deterministic)
        if k == self.num_layers - 1 and not self.jump:
            return out
        if self.norms:
            out = _normalized(self.norms[k], out, valid, deterministic)
        out = self.act(out)
        return self.skips[k](block.own(h), out) if self.residual else out

    def inputs(self, h: Rows, nodes: Int[Array, " rows"]) -> Rows:
        """What the first layer reads of these nodes: their features, identity embeddings, or both."""
        h = None if h is None else self._columns(h)
        if self.identity is None:
            return _present(h)
        table = take(self.embed.embedding, nodes)
        if is_sparse(h):
            raise TypeError(BESIDE)
        return table if h is None else jnp.concatenate([h, table.astype(h.dtype)], 1)

    def finish(self, kept: Sequence[Float[Array, "rows d"]]) -> Float[Array, "rows out"]:
        """The result of a model with `jump`, from every layer's rows."""
        if self.jump is None:
            raise ValueError("this model has no jump: its last layer's rows are the result")
        return self.head(self.jump(kept))

    def _inputs(self, h: Any, block: Block) -> tuple[Any, Block]:
        if self.identity is None:
            h = _present(h)
            if self.in_features in (None, h.shape[1]):
                return h, block
            rows, block = read_tables((h,), block)  # cut, and joined below, after they are read: no table is
            return self._columns(rows[0]), block
        table = self.embed.embedding
        if h is None:
            return table, block
        if is_sparse(h):
            raise TypeError(BESIDE)
        rows, block = read_tables((h, table), block)
        return jnp.concatenate([self._columns(rows[0]), rows[1].astype(h.dtype)], 1), block

    def _columns(self, h: Any) -> Any:
        if self.in_features in (None, h.shape[1]):
            return h
        if h.shape[1] < self.in_features:
            raise ValueError(
                f"features must have in_features={self.in_features} columns at least, got shape {h.shape}: "
                "pass those that the model was made for"
            )
        if is_sparse(h):
            raise ValueError(
                f"sparse features must have in_features={self.in_features} columns, got shape {h.shape}: "
                "nothing pads their rows, so pass those that the model was made for"
            )
        return h[:, : self.in_features]


BESIDE = (
    "identity embeddings beside features need dense ones, got SparseRows: leave identity out, or pass "
    "features.toarray()"
)


class Skip(nn.Module):
    """`out + own`, through a dense layer where widths differ.

    >>> import jax, jax.numpy as jnp
    >>> Skip().init_with_output(jax.random.key(0), jnp.ones((1, 3)), jnp.ones((1, 3)))[0]
    Array([[2., 2., 2.]], dtype=float32)
    """

    @nn.compact
    def __call__(self, own: Rows, out: Float[Array, "rows d_out"]) -> Float[Array, "rows d_out"]:
        """Add `[rows, d]` to `[rows, d_out]`, in the dtype of the latter."""
        if own.shape[1] != out.shape[1]:
            own = Dense(out.shape[1], use_bias=False, dtype=out.dtype, name="dense")(own)
        elif is_sparse(own):
            own = sparse_product(own, jnp.eye(out.shape[1], dtype=own.dtype))
        return out + own.astype(out.dtype)


def _present(h: Any) -> Any:
    if h is None:
        raise ValueError("no features and no identity=(num_nodes, width): pass one of them")
    return h


def _normalized(norm: Any, h: Array, valid: Array | None, deterministic: bool) -> Array:
    if not isinstance(norm, nn.BatchNorm):
        return norm(h).astype(h.dtype)
    mask = None if valid is None else valid[:, None]
    return norm(h, use_running_average=deterministic, mask=mask).astype(h.dtype)


def jump_concat(layers: Sequence[Float[Array, "rows d"]]) -> Float[Array, "rows d_all"]:
    """All layers' rows side by side.

    >>> import jax.numpy as jnp
    >>> jump_concat([jnp.ones((1, 2)), jnp.zeros((1, 2))])
    Array([[1., 1., 0., 0.]], dtype=float32)
    """
    return jnp.concatenate(list(layers), axis=1)


def jump_max(layers: Sequence[Float[Array, "rows d"]]) -> Float[Array, "rows d"]:
    """The elementwise maximum of all layers' rows.

    >>> import jax.numpy as jnp
    >>> jump_max([jnp.ones((1, 2)), jnp.zeros((1, 2))])
    Array([[1., 1.]], dtype=float32)
    """
    return jnp.stack(list(layers)).max(0)
