"""One-line mutations of the library, each of which the named tests must catch.

`python tests/mutations.py` copies the tracked files to a temporary folder, runs the named tests there as they
are, and then once for each mutation; the checkout is not touched. It ends with status 1 if a mutation
survives. `--only TEXT` takes those whose line has the text, `--json FILE` writes what came of them.
`tests/test_mutations.py` keeps the table in step with the source.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 600
"""Seconds that the tests of a mutation may take: one that never ends belongs in no table."""


class Mutation(NamedTuple):
    """A small mistake, and the tests that must fail where it is made."""

    file: str
    """Below `jsage/`."""
    before: str
    """Occurs once in the file."""
    after: str
    tests: str
    """A file below `tests/`, or a test of it."""
    what: str


MUTATIONS = (
    # The gradients of gathers
    Mutation(
        "blocks/gather.py",
        "lambda i: jnp.where(mask[:, i, None], cotangent, 0)",
        "lambda i: cotangent",
        "blocks/test_gather.py::test_gradients_are_those_of_the_dense_form",
        "a gradient of the sum into the padding",
    ),
    Mutation(
        "blocks/gather.py",
        "again = valid & (take(first, ids) != slot)",
        "again = take(first, ids) != slot",
        "blocks/test_gather.py::test_padding_is_never_spread",
        "padded slots added to a table",
    ),
    Mutation(
        "blocks/gather.py",
        "return mask[:, i, None] & (_message(table, src, weight, i) == top)",
        "return _message(table, src, weight, i) == top",
        "blocks/test_gather.py::test_ties_share_the_gradient_equally",
        "padded slots win the maximum of gathered rows",
    ),
    Mutation(
        "blocks/gather.py",
        "won = jax.lax.optimization_barrier(mask[..., None] & (rows == top[:, None]))",
        "won = jax.lax.optimization_barrier(rows == top[:, None])",
        "blocks/test_gather.py::test_the_maximum_over_slots_shares_its_gradient_between_valid_ties_and_reads_no_padding",
        "padded slots win the maximum of slots",
    ),
    Mutation(
        "blocks/gather.py",
        "    )\n    share = cotangent / jnp.maximum(ties, 1).astype(cotangent.dtype)",
        "    )\n    share = cotangent",
        "blocks/test_gather.py::test_ties_share_the_gradient_equally",
        "every tie gets the whole gradient",
    ),
    Mutation(
        "blocks/gather.py",
        "d_row = jnp.where(unread, 0, d_row * scale)",
        "d_row = jnp.where(unread, 0, d_row)",
        "blocks/test_gather.py::test_gradients_are_those_of_the_dense_form",
        "a gradient without the edge's weight",
    ),
    # Reductions on all layouts
    Mutation(
        "blocks/block.py",
        "return slot_max(*aligned(self._messages(h), self.mask))",
        "return slot_max(*aligned(self.slot_rows(h), self.mask))",
        "blocks/test_block.py::test_every_answer_is_that_of_a_loop",
        "a maximum without the weights",
    ),
    Mutation(
        "blocks/block.py",
        'self.mask.sum(1, dtype=jnp.int32)\n\n    def sources(self, h: Any) -> tuple[Any, "B',
        'jnp.full(self.num_dst, self.mask.shape[1])\n\n    def sources(self, h: Any) -> tuple[Any, "B',
        "blocks/test_aggregate.py::test_values_and_gradients",
        "degrees that count the padding",
    ),
    Mutation(
        "blocks/block.py",
        "slots = self.mask & valid[:, None]",
        "slots = self.mask",
        "blocks/test_block.py::test_read_marks_the_rows_of_valid_destinations",
        "rows marked as read that invalid destinations read",
    ),
    Mutation(
        "blocks/reductions.py",
        "lambda ct, n: ct.astype(n.dtype) / jnp.maximum(n, 1), cotangent, ties",
        "lambda ct, n: ct.astype(n.dtype), cotangent, ties",
        "blocks/test_reduce.py::test_ties_of_a_maximum_of_messages_share_the_gradient",
        "ties of a maximum of messages share nothing",
    ),
    Mutation(
        "blocks/reductions.py",
        "    top = jnp.maximum(a.top, b.top)\n",
        "    top = b.top\n",
        "blocks/test_reduce.py::test_a_softmax_of_logits_far_apart_in_any_order",
        "a softmax without the running maximum",
    ),
    Mutation(
        "blocks/reductions.py",
        "return Softmax(top, a.scale * one + b.scale * other, total)",
        "return Softmax(top, a.scale + b.scale * other, total)",
        "blocks/test_reduce.py::test_values_and_gradients_are_those_of_all_messages_at_once",
        "a softmax whose scale is not scaled again",
    ),
    Mutation(
        "blocks/reductions.py",
        "old = jnp.exp(state.top - top)",
        "old = jnp.ones_like(top)",
        "blocks/test_reduce.py::test_a_softmax_of_logits_far_apart_in_any_order",
        "a softmax in pieces that forgets to scale the pieces before",
    ),
    Mutation(
        "blocks/slotwise.py",
        "return where(mask, y.astype(x.dtype), 0)",
        "return y.astype(x.dtype)",
        "blocks/test_reduce.py::test_values_and_gradients_are_those_of_all_messages_at_once",
        "a message's gradient from padded slots",
    ),
    Mutation(
        "blocks/slotwise.py",
        "return apart(message, some) if compares else message",
        "return message",
        "blocks/test_messages.py::test_each_winner_of_a_maximum_gets_its_gradient_however_messages_are_rounded",
        "winners of a maximum by messages that are rounded otherwise",
    ),
    Mutation(
        "blocks/reductions.py",
        "jnp.where(column(mask, x), x, x[first])",
        "jnp.where(column(mask, x), x, 0)",
        "blocks/test_messages.py::test_padding_reaches_no_parameter_where_a_message_has_no_derivative_at_zero",
        "derivatives of messages at rows of zeros",
    ),
    Mutation(
        "blocks/slotwise.py",
        "more = where_float(mask.any(), more)",
        "pass",
        "blocks/test_messages.py::test_padding_reaches_no_parameter_where_a_message_has_no_derivative_at_zero",
        "derivatives of messages in a slot that no destination has",
    ),
    Mutation(
        "blocks/chunked.py",
        "new = at + jnp.arange(size) >= i * size",
        "new = at + jnp.arange(size) >= 0",
        "blocks/test_chunked.py::test_values_and_gradients_are_those_of_all_at_once",
        "rows that two chunks meet get their gradient twice",
    ),
    Mutation(
        "blocks/sliced.py",
        "full = first + degree.min()",
        "full = first + degree.max()",
        "blocks/test_sliced.py::test_a_fold_is_a_loop_over_the_neighbors",
        "padded slots of a chunk are read",
    ),
    Mutation(
        "blocks/full.py",
        "return jnp.where(won, _scaled(take(share, line.src), line.weight), 0)",
        "return jnp.where(won, take(share, line.src), 0)",
        "blocks/test_full.py::test_values_and_gradients_are_those_of_a_loop",
        "the gradient of the whole graph's maximum without the weights",
    ),
    Mutation(
        "blocks/full.py",
        "return _sum(cotangent, backward, forward), None, None",
        "return _sum(cotangent, forward, backward), None, None",
        "blocks/test_full.py::test_values_and_gradients_are_those_of_a_loop",
        "the gradient of the whole graph's sum along the edges",
    ),
    # Draws
    Mutation(
        "sampling/draws.py",
        "pick = below(bits[i], last + i + 1)",
        "pick = below(bits[i], last + i)",
        "sampling/test_draws.py::test_every_subset_is_equally_likely",
        "a draw without replacement that is off by one",
    ),
    Mutation(
        "_internal/arrays.py",
        "(low * top + (middle & 0xFFFF) >> 16)",
        "(low * top >> 16)",
        "sampling/test_draws.py::test_a_draw_is_the_high_word_of_a_product",
        "a carry lost in the draw of a large number",
    ),
    Mutation(
        "_internal/arrays.py",
        "middle = high * bottom + (low * bottom >> 16)",
        "middle = high * bottom",
        "sampling/test_draws.py::test_a_draw_is_the_high_word_of_a_product",
        "the low half of a random word left out",
    ),
    Mutation(
        "sampling/neighbors.py",
        "hop(jax.random.fold_in(key, number), frontier, fanout)",
        "hop(key, frontier, fanout)",
        "sampling/test_neighbors.py::test_hops_are_drawn_apart",
        "all hops drawn by one key",
    ),
    Mutation(
        "sampling/neighbors.py",
        "for number, fanout in enumerate(fanouts):",
        "for number, fanout in enumerate(fanouts[::-1]):",
        "sampling/test_neighbors.py::test_shapes_follow_from_seeds_and_fanouts",
        "the fanouts of the hops swapped",
    ),
    Mutation(
        "sampling/neighbors.py",
        "return Indexed(seeds, jnp.where(mask, src, seeds[:, None]), mask, edge_data)",
        "return Indexed(seeds, src, mask, edge_data)",
        "sampling/test_neighbors.py::test_valid_slots_are_edges_into_the_seed",
        "padded slots that point elsewhere",
    ),
    Mutation(
        "sampling/by_node.py",
        "ids = jnp.broadcast_to(nodes.astype(jnp.uint32)[None], shape)",
        "ids = jnp.zeros(shape, jnp.uint32)",
        "sampling/test_by_node.py::test_subsets_are_uniform_over_nodes_and_independent_of_each_other",
        "draws by node that ignore the node",
    ),
    Mutation(
        "graph/as_of.py",
        "_own_time = False",
        "_own_time = True",
        "sampling/test_temporal.py::test_no_slot_holds_what_is_not_yet",
        "edges of the seed's own time",
    ),
    Mutation(
        "graph/as_of.py",
        "_replace(first=start - weights.start, stop=stop - weights.start)",
        "_replace()",
        "sampling/test_weighted.py::TestBeforeATime::test_no_slot_holds_what_is_not_yet_and_all_is_taken_where_it_fits",
        "a weighted draw from edges that are not yet",
    ),
    Mutation(
        "sampling/weighted.py",
        "place = place.at[i].set(inside - (point - low))",
        "place = place.at[i].set(low)",
        "sampling/test_weighted.py::test_ordered_triples_are_those_of_successive_sampling",
        "an edge drawn by weight that is cut out where it was in the whole row",
    ),
    Mutation(
        "graph/weighted.py",
        "other[rest] = heavy[then]",
        "other[rest] = heavy[short]",
        "graph/test_weighted_graph.py::test_alias_tables_hold_each_rows_shares",
        "heavy edges that nothing fills up again in an alias table",
    ),
    Mutation(
        "sampling/labor.py",
        "rank, *first =",
        "*first, rank =",
        "sampling/test_labor.py::test_it_is_the_smallest_numbers_by_brute_force",
        "LABOR that ranks by other numbers than its own",
    ),
    Mutation(
        "sampling/labor.py",
        "key if self.key is None else self.key",
        "key",
        "sampling/test_labor.py::test_with_a_key_of_its_own_hops_and_batches_agree",
        "LABOR whose hops never agree",
    ),
    Mutation(
        "sampling/temporal.py",
        "jnp.repeat(time, block.mask.shape[1])",
        "jnp.tile(time, block.mask.shape[1])",
        "sampling/test_temporal.py::test_no_slot_holds_what_is_not_yet",
        "the next hop as of another seed's time",
    ),
    Mutation(
        "sampling/temporal.py",
        'jnp.where(block.mask.ravel(), block.edge_data["time"].ravel(), slots)',
        "slots",
        "sampling/test_temporal.py::test_causal_hops_find_the_latest_before_each_event",
        "causal hops as of the seed's time",
    ),
    Mutation(
        "graph/as_of.py",
        "jnp.where(low > time, start, first)",
        "first",
        "graph/test_as_of.py::test_rows_are_those_of_a_loop_at_the_ends_of_int32_too",
        "a window that begins before the least time there is",
    ),
    Mutation(
        "graph/as_of.py",
        "jnp.where(age < 0, jnp.iinfo(asked.dtype).max, age)",
        "age",
        "graph/test_as_of.py::test_rows_are_those_of_a_loop_at_the_ends_of_int32_too",
        "an age beyond int32 that is negative",
    ),
    Mutation(
        "graph/as_of.py",
        "bisect(times, start, end, low, after=self._own_time)",
        "bisect(times, start, end, low)",
        "graph/test_as_of.py::test_windows_that_follow_one_another_share_no_edge_and_leave_none_out",
        "windows that share their ends",
    ),
    Mutation(
        "graph/times.py",
        "np.maximum(time, since[src])",
        "time",
        "graph/test_times.py::test_an_edge_is_known_when_it_happened_and_its_source_was_known",
        "an edge that is known before its source",
    ),
    Mutation(
        "infer/embed_all.py",
        "return graph.bounds(nodes)",
        "return graph.events.runs(nodes)",
        "infer/test_infer_as_of.py::test_rows_are_those_of_the_graph_that_is_cut_there",
        "exact inference that reads what comes later",
    ),
    Mutation(
        "graph/overlay.py",
        'keep = graph.shows(data["time"])',
        'keep = graph.shows(data["time"]) | True',
        "infer/test_infer_as_of.py::test_new_nodes_read_what_is_visible_of_the_graph_and_of_their_own_events",
        "new edges that are not yet",
    ),
    Mutation(
        "sampling/link_batches.py",
        "jnp.concatenate([time, time, own])",
        "jnp.concatenate([time, time + 1, own])",
        "sampling/test_temporal_laws.py::test_own_events_of_a_batch_of_links_are_not_drawn",
        "a pair's own event at its destination",
    ),
    Mutation(
        "parallel/exchange.py",
        "(key[1:] != key[:-1] for key in keys)",
        "(key[1:] != key[:-1] for key in keys[:2])",
        "parallel/test_parallel_temporal.py::test_sampled_events_and_ids_are_those_of_one_device",
        "a node at two times that is asked for once",
    ),
    Mutation(
        "sampling/compact.py",
        "capacity - 1), rank[-1] + 1",
        "capacity - 1), rank[-1]",
        "sampling/test_compact.py::TestCompact::test_every_id_is_at_its_position",
        "a compacted frontier that counts one node too few",
    ),
    Mutation(
        "sampling/compact.py",
        "jnp.array([count <= limit for",
        "jnp.array([count < limit for",
        "sampling/test_compact.py::test_a_batch_fits_as_many_rows_as_it_has_nodes_and_no_fewer",
        "a compacted frontier that is full does not fit",
    ),
    Mutation(
        "sampling/compact.py",
        "jnp.arange(capacity) < found.size, found",
        "jnp.arange(capacity) <= found.size, found",
        "sampling/test_compact.py::TestSampling::test_rows_beyond_the_distinct_nodes_draw_nothing",
        "a row beyond the distinct nodes draws",
    ),
    Mutation(
        "sampling/compact.py",
        "same & (take(time, holder) == time)",
        "same",
        "sampling/test_compact_temporal.py::test_rows_are_those_of_trees",
        "a compacted row is of a node at any time",
    ),
    Mutation(
        "sampling/seeds.py",
        "mask = jnp.arange(num_nodes + padding) < num_nodes",
        "mask = jnp.arange(num_nodes + padding) <= num_nodes",
        "sampling/test_seeds.py::test_an_epoch_holds_every_node_once_and_pads_with_legal_ids",
        "a padded seed of an epoch is valid",
    ),
    Mutation(
        "sampling/host_loader.py",
        "step += _count(arguments[-1])",
        "step += 1",
        "sampling/test_host_loader.py::TestPrefetch",
        "a host loader that draws groups by the wrong step",
    ),
    Mutation(
        "_internal/row_reader.py",
        "rows[part] = self._table[ids[part]]",
        "rows[start : start + _PART] = self._table[ids[part]]",
        "_internal/test_row_reader.py",
        "rows on the host in the order of the table",
    ),
    Mutation(
        "sampling/exact.py",
        'jnp.searchsorted(ends, number, side="right"',
        'jnp.searchsorted(ends, number, side="left"',
        "sampling/test_exact.py::test_edges_come_in_order",
        "whole neighborhoods begin with the edge before",
    ),
    Mutation(
        "sampling/exact.py",
        "degree = jnp.where(jnp.arange(nodes.shape[0]) < count, graph.degrees(nodes), 0)\n        edges",
        "degree = graph.degrees(nodes)\n        edges",
        "sampling/test_exact.py::test_rows_to_spare_take_neither_edges_nor_nodes",
        "whole neighborhoods of rows that are padding",
    ),
    # Links, negatives, walks
    Mutation(
        "graph/without_edges.py",
        "ends = jnp.concatenate([src, dst]), jnp.concatenate([dst, src])",
        "ends = jnp.concatenate([src, src]), jnp.concatenate([dst, dst])",
        "sampling/test_link_batches.py::test_the_draw_is_that_of_the_graph_without_the_edges",
        "the reverse of an edge under supervision stays",
    ),
    Mutation(
        "graph/without_edges.py",
        "lengths = jnp.where(start == jnp.append(start[1:], -1), 0, lengths)",
        "lengths = jnp.where(start == num_edges, 0, lengths)",
        "sampling/test_link_batches.py::test_what_is_left_of_parallel_edges_and_self_loops",
        "edges of a pair that comes twice are hidden twice",
    ),
    Mutation(
        "graph/without_edges.py",
        "lengths = jnp.where(jnp.concatenate([mask, mask]), stop - start, 0)",
        "lengths = stop - start",
        "sampling/test_link_batches.py::test_padding_and_no_exclusion_draw_from_the_whole_graph",
        "edges of padded pairs are hidden",
    ),
    Mutation(
        "sampling/negatives.py",
        "    return kept, ~bad",
        "    return kept, jnp.ones_like(bad)",
        "sampling/test_negatives.py::test_what_is_left_is_uniform_over_non_edges",
        "negatives that are edges",
    ),
    Mutation(
        "sampling/negatives.py",
        "& ~positive[row][:, column]",
        "& ~jnp.eye(src.shape[0], dtype=bool)",
        "sampling/test_negatives.py::test_in_batch_negatives_are_no_pairs_of_the_batch",
        "negatives of the batch that are its pairs",
    ),
    Mutation(
        "sampling/negatives.py",
        "new = propose(jax.random.fold_in(key, trial))",
        "new = propose(key)",
        "sampling/test_negatives.py::test_what_is_left_is_uniform_over_non_edges",
        "a negative that is drawn again by the same key",
    ),
    Mutation(
        "sampling/negatives.py",
        'lack - (ONE - share[light]), "right")',
        'lack - (ONE - share[light]), "left")',
        "sampling/test_negatives.py::test_an_alias_table_holds_the_weights",
        "an alias table that fills from the heavy id before",
    ),
    Mutation(
        "sampling/negatives.py",
        "        slot = take(self.start, side) + jax.random.randint",
        "        slot = jax.random.randint",
        "sampling/test_negatives.py::test_a_node_is_drawn_from_the_side_of_the_one_that_it_stands_for",
        "negatives of the first side alone",
    ),
    Mutation(
        "graph/sides.py",
        "    return own != own[first][component]",
        "    return own != other[first][component]",
        "data/test_link_negatives.py::test_sides_are_those_of_a_search",
        "sides that change places",
    ),
    Mutation(
        "data/link_negatives.py",
        "known[inside] * len(nodes) + np.searchsorted",
        "known[inside] * len(nodes) + 1 + np.searchsorted",
        "data/test_link_negatives.py::test_another_destination_is_uniform_over_what_it_could_be",
        "destinations that are edges drawn as negatives",
    ),
    Mutation(
        "data/hist_rnd.py",
        "(base + rank)[is_old], (now - rank)[~is_old]",
        "(base + rank)[is_old], now[~is_old]",
        "data/test_hist_rnd.py::test_each_event_has_what_the_rules_give",
        "random negatives that the source has at that very time",
    ),
    Mutation(
        "data/edge_bank.py",
        "end = np.searchsorted(moments, when)",
        'end = np.searchsorted(moments, when, side="right")',
        "data/test_windows.py::test_edge_bank_is_a_loop_over_what_was_before",
        "a memory of pairs that has the event's own time",
    ),
    Mutation(
        "data/edge_split.py",
        "nodes[part[:, 0]] | nodes[part[:, 1]]",
        "nodes[part[:, 0]] & nodes[part[:, 1]]",
        "data/test_windows.py::test_the_inductive_part_is_what_touches_a_node_that_training_has_not",
        "an inductive part of events with two unseen nodes alone",
    ),
    Mutation(
        "data/windows.py",
        "windows[0 if past is None else max(i - past, 0)].start for i",
        "windows[0 if past is None else max(i - past - 1, 0)].start for i",
        "data/test_windows.py::test_rolling_forward_trains_on_what_is_before",
        "one window too many to train on",
    ),
    Mutation(
        "recipes/scaling.py",
        "size = np.abs(wide).sum(1) if",
        "size = wide.sum(1) if",
        "test_scaling.py::test_rows_have_size_1_by_their_norm",
        "rows scaled to sum 1 by signed numbers",
    ),
    Mutation(
        "recipes/tasks.py",
        "    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # the last of equal scores",
        "    last = np.arange(len(ranked))",
        "recipes/test_tasks.py::test_the_threshold_of_best_f1_is_that_of_scikit_learns_curve",
        "a threshold between equal scores",
    ),
    Mutation(
        "graph/clusters.py",
        "node_ptr, edge_ptr = (np.concatenate([[0], np.cumsum(count)]) for count in counts)",
        "node_ptr, edge_ptr = (np.concatenate([np.cumsum(count), [0]]) for count in counts)",
        "graph/test_clusters.py::test_every_edge_is_in_the_slice_of_its_destinations_cluster",
        "clusters that begin where they end",
    ),
    Mutation(
        "graph/clusters.py",
        "asks = asks[place < (limit",
        "asks = asks[place <= (limit",
        "graph/test_clusters.py::test_a_partition_is_balanced_and_finds_communities",
        "a part that lets one more in than it has room for",
    ),
    Mutation(
        "sampling/subgraph.py",
        "inside &= mask[:, None] & (take(key[rank], at) == owner)",
        "inside &= mask[:, None]",
        "sampling/test_subgraph.py::test_an_epoch_holds_each_node_once_and_each_edge_inside_its_batches",
        "edges from clusters that are not in the batch",
    ),
    Mutation(
        "sampling/subgraph.py",
        "mask = jnp.diff(nodes, prepend=-1) > 0",
        "mask = jnp.diff(nodes, prepend=-1) >= 0",
        "sampling/test_subgraph.py::test_a_batch_is_the_induced_subgraph_of_its_nodes_and_padding_is_never_read",
        "a node that is drawn twice is in a subgraph twice",
    ),
    Mutation(
        "sampling/subgraph.py",
        "jnp.sqrt((1 + degree) / (1 + take(out, block.src)))",
        "jnp.sqrt((1 + degree) / (1 + take(block.degree, block.src)))",
        "sampling/test_subgraph.py::test_a_batch_is_normalized_by_its_own_degrees",
        "a batch's symmetric weights by the in-degrees of both ends",
    ),
    Mutation(
        "sampling/saint.py",
        "EstimatedBlock(block.src, block.dst, saint.graph.degrees(nodes), data)",
        "EstimatedBlock(block.src, block.dst, block.degree, data)",
        "sampling/test_saint.py::test_sums_over_subgraphs_are_unbiased",
        "estimated means by the degrees in the subgraph",
    ),
    Mutation(
        "sampling/saint.py",
        "norm = jax.device_put(np.repeat(nodes, np.diff(graph.indptr)) / edges)",
        "norm = jax.device_put(nodes[np.asarray(graph.indices)] / edges)",
        "sampling/test_saint.py::test_norms_are_ratios_of_counts",
        "aggregator norms by the other end",
    ),
    Mutation(
        "sampling/walks.py",
        "return jnp.where(back | ~moved, starts, target), graph.degrees(starts) > 0",
        "return jnp.where(back, starts, target), graph.degrees(starts) > 0",
        "sampling/test_walks.py::test_the_restart_chain_is_the_one_described",
        "a walk with restart that stays where no edge leads on",
    ),
    Mutation(
        "sampling/walks.py",
        "jax.random.bernoulli(jax.random.fold_in(key, 1), float(restart)",
        "jax.random.bernoulli(key, float(restart)",
        "sampling/test_walks.py::test_the_restart_chain_is_the_one_described",
        "a restart that is drawn with the step's own key",
    ),
    Mutation(
        "sampling/walks.py",
        "edge += jnp.where(edge >= start, back, 0)",
        "edge += jnp.where(edge > start, back, 0)",
        "sampling/test_walks.py::test_node2vec_steps_are_those_of_the_paper",
        "node2vec's way back drawn among the others",
    ),
    Mutation(
        "sampling/importance.py",
        '{"weight": found.visits / total}',
        '{"weight": found.visits.astype(jnp.float32)}',
        "sampling/test_importance.py::test_the_top_are_the_most_visited_without_the_start",
        "importance weights that are not normalized",
    ),
    Mutation(
        "sampling/importance.py",
        "mask = mask & (nodes != seeds[:, None])",
        "mask = jnp.asarray(mask)",
        "sampling/test_importance.py::test_the_top_are_the_most_visited_without_the_start",
        "a node among its own important neighbors",
    ),
    # Graphs
    Mutation(
        "graph/graph.py",
        "first = np.diff(pair, prepend=-1) > 0",
        "first = np.diff(pair, prepend=-1) >= 0",
        "graph/test_graph.py::test_symmetrize_is_the_support_of_both_directions",
        "a symmetric graph with edges twice",
    ),
    Mutation(
        "graph/search.py",
        "inside = found < take(graph.indptr, dst + 1)",
        "inside = found <= take(graph.indptr, dst + 1)",
        "graph/test_search.py::test_every_pair_of_nodes_is_found_or_not",
        "an edge found in the next node's row",
    ),
    Mutation(
        "graph/weights.py",
        "weight = into[dst] / out[src]",
        "weight = into[src] / out[dst]",
        "graph/test_weights.py",
        "symmetric weights by the degrees of the other ends",
    ),
    Mutation(
        "graph/growing.py",
        "while capacity < self.num_nodes:",
        "while capacity < self.num_nodes - 1:",
        "graph/test_growing.py::test_any_history_leaves_the_graph_of_the_edges_that_are_left",
        "a growing graph with an id at its limit",
    ),
    Mutation(
        "graph/growing.py",
        "over = need > self._room[rows]",
        "over = need > self._room[rows] + 1",
        "graph/test_growing.py::test_any_history_leaves_the_graph_of_the_edges_that_are_left",
        "a growing graph's row that runs into the next one",
    ),
    Mutation(
        "graph/growing.py",
        'np.lexsort((data["time"], dst) if self._by_time else (dst,))',
        "np.lexsort((dst,))",
        "graph/test_stream.py::test_edges_of_one_call_come_in_any_order_and_new_nodes_with_theirs",
        "events of one call in the order they were given",
    ),
    Mutation(
        "graph/growing.py",
        "np.flatnonzero(time[known] < last)",
        "np.flatnonzero(time[known] < last - 1)",
        "graph/test_stream.py::test_an_event_that_comes_late_is_refused_and_nothing_changes",
        "an event that comes late by one tick",
    ),
    Mutation(
        "graph/growing.py",
        "return start, start + take(self.degree, nodes)",
        "return start, start + take(self.degree, nodes) + 1",
        "graph/test_stream.py::test_rows_are_those_of_the_rebuilt_graph_as_of_any_time",
        "a row as of a time that goes on beyond its edges",
    ),
    Mutation(
        "_internal/device_mirror.py",
        "self._changed.append(rows)",
        "self._changed = [rows]",
        "graph/test_growing.py::test_any_history_leaves_the_graph_of_the_edges_that_are_left",
        "changes on the host that do not reach the device",
    ),
    Mutation(
        "graph/overlay.py",
        "graph.id_limit - 1 - ids",
        "graph.id_limit - ids",
        "infer/test_new_nodes.py::test_a_graph_with_new_nodes_reads_as_the_rebuilt_one",
        "a new node taken for the one after it",
    ),
    Mutation(
        "graph/partition.py",
        'np.searchsorted(bounds[1:], ids, side="right")',
        'np.searchsorted(bounds[1:], ids, side="left")',
        "graph/test_partition.py::test_a_bijection",
        "a shard's first node taken for one of the shard before",
    ),
    Mutation(
        "graph/partition.py",
        'jnp.searchsorted(bounds[1:-1], ids, side="right"',
        'jnp.searchsorted(bounds[1:-1], ids, side="left"',
        "graph/test_partition.py::test_the_device_agrees",
        "a shard's first node misplaced on the device",
    ),
    Mutation(
        "graph/permutation.py",
        "for first, second in (keys[2:], keys[:2]):",
        "for first, second in (keys[:2], keys[2:]):",
        "graph/test_partition.py::test_a_bijection",
        "a permutation undone in its own order",
    ),
    Mutation(
        "graph/bipartite.py",
        "(row * num_items + other)[row != other]",
        "(row * num_items + other)[row >= 0]",
        "graph/test_bipartite.py",
        "an item joined to itself",
    ),
    Mutation(
        "_internal/checks.py",
        "if not -num_new <= extreme < limit:",
        "if not -num_new <= extreme <= limit:",
        "graph/test_graph.py::test_from_edges_refuses",
        "an id equal to the number of nodes",
    ),
    Mutation(
        "_internal/checks.py",
        "exact = len(np.unique(small)) == len(np.unique(array))",
        "exact = True",
        "data/test_boundary.py::test_data_of_edges_that_would_not_be_kept_are_refused",
        "times that float32 makes one",
    ),
    Mutation(
        "_internal/checks.py",
        "if array.ndim == 2 and array.shape[1] == 1:",
        "if array.ndim == 2 and array.shape[1] == 0:",
        "data/test_boundary.py::test_labels_that_would_not_be_kept_are_refused",
        "classes as a column taken for labels of 0 and 1",
    ),
    Mutation(
        "_internal/checks.py",
        "if len(found) != len(text):",
        "if len(found) > len(text):",
        "data/test_names.py::test_odd_names_are_refused",
        "two nodes of one name",
    ),
    # Inference
    Mutation(
        "infer/layer.py",
        "jax.lax.fori_loop(0, -(-total // rows), step, out)",
        "jax.lax.fori_loop(0, total // rows, step, out)",
        "infer/test_infer.py::test_rows_are_those_of_algorithm_1",
        "the last part of all nodes left out",
    ),
    Mutation(
        "infer/layer.py",
        "= offset < degree\n",
        "= offset <= degree\n",
        "infer/test_infer.py::test_rows_are_those_of_algorithm_1",
        "a hub that reads an edge of the next node",
    ),
    Mutation(
        "infer/embed_all.py",
        "read[ids[0]] = True",
        "read[ids[0]] = False",
        "infer/test_infer.py::test_rows_of_some_nodes",
        "rows of some nodes without their own layer below",
    ),
    Mutation(
        "infer/resumable.py",
        "if first < done:",
        "if last < done:",
        "infer/test_resumable.py",
        "a part written twice after a stop",
    ),
    Mutation(
        "infer/new_nodes.py",
        "(seeds[0], seeds[-1] + 1)",
        "(seeds[0], seeds[-1])",
        "infer/test_new_nodes.py::test_one_at_a_time_and_many_at_once_are_the_same_for_strangers",
        "no room for the last new node's neighbors",
    ),
    Mutation(
        "infer/nearest.py",
        "return _merge(best, queries, rows, (ids, ids >= first), (allow, recall_target)), None",
        "return _merge(best, queries, rows, (ids, ids >= start), (allow, recall_target)), None",
        "infer/test_nearest.py::test_exact_with_ties_to_the_lower_id_whatever_the_chunk",
        "rows that two chunks meet are near twice",
    ),
    Mutation(
        "infer/variance.py",
        "changed += (_choice(out) != _choice(truth))[real].sum()",
        "changed += (_choice(out) != _choice(truth)).sum()",
        "infer/test_variance.py::test_a_last_batch_that_is_not_full_counts_its_own_nodes_alone",
        "padded seeds in the report on sampling",
    ),
    # Training and scores
    Mutation(
        "train/update.py",
        "key = jax.random.fold_in(state.key, state.step)",
        "key = state.key",
        "train/test_update.py::test_the_step_is_what_optax_does_with_the_key_of_the_step",
        "every step drawn by one key",
    ),
    Mutation(
        "train/update.py",
        "if score > stopping.value:",
        "if score >= stopping.value:",
        "train/test_update.py::test_early_stopping_by_hand",
        "an equal score counts as better",
    ),
    Mutation(
        "train/checkpoint.py",
        "return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf)",
        "return leaf if _is_key(leaf)",
        "train/test_checkpoint.py::test_a_state_comes_back_bit_for_bit",
        "a resumed run with the key of a fresh one",
    ),
    Mutation(
        "train/update.py",
        "return TrainState(state.step + 1, params, opt_state,",
        "return TrainState(state.step + 1, params, state.opt_state,",
        "train/test_update.py::test_the_step_is_what_optax_does_with_the_key_of_the_step",
        "an optimizer that forgets its moments",
    ),
    Mutation(
        "train/update.py",
        "jax.tree.map(jnp.copy, (state.params,",
        "jax.tree.map(jnp.asarray, (state.params,",
        "train/test_update.py::test_the_best_parameters_survive_donation",
        "early stopping that keeps what is donated",
    ),
    Mutation(
        "train/update.py",
        "bool(stopping.since >= patience)",
        "bool(stopping.since > patience)",
        "train/test_update.py::test_early_stopping_by_hand",
        "patience that is one too long",
    ),
    Mutation(
        "train/checkpoint.py",
        "present[-1] if step is None else step",
        "present[0] if step is None else step",
        "train/test_checkpoint.py::test_the_newest_are_kept_and_any_can_be_asked_for",
        "the oldest checkpoint restored",
    ),
    Mutation(
        "train/checkpoint.py",
        "latest >= step",
        "latest > step",
        "train/test_checkpoint.py::test_refusals",
        "a checkpoint written over the latest",
    ),
    Mutation(
        "metrics/ranking.py",
        "+ 0.5 * self.tied.astype(jnp.float32)",
        "+ self.tied.astype(jnp.float32)",
        "metrics/test_ranking.py::test_ranks_mrr_and_hits_are_ogbs",
        "ties that all rank above",
    ),
    Mutation(
        "metrics/ranking.py",
        "after - jnp.maximum(first, invalid) - 1",
        "after - jnp.maximum(first, invalid)",
        "metrics/test_ranking.py::test_ranks_within_are_the_ranks_among_the_others",
        "an entry that ties with itself",
    ),
    Mutation(
        "metrics/ranking.py",
        " & (ids[None] != targets[:, None])",
        "",
        "metrics/test_ranking.py::test_rank_all_is_brute_force",
        "a target that competes with itself",
    ),
    Mutation(
        "metrics/ranking.py",
        "above, tied = valid & ~(others <= own),",
        "above, tied = valid & (others > own),",
        "metrics/test_ranking.py::test_nan_counts_against_the_target",
        "NaN that ranks below",
    ),
    Mutation(
        "metrics/ranking.py",
        " & ~_listed(known, rows, first, size)",
        " & True",
        "metrics/test_ranking.py::test_rank_all_is_brute_force",
        "known candidates that compete",
    ),
    Mutation(
        "metrics/ranking.py",
        "hit = (positive > jax.lax.top_k",
        "hit = (positive >= jax.lax.top_k",
        "metrics/test_ranking.py::test_hits_above_are_ogbs",
        "a hit that ties with the k-th best negative",
    ),
    Mutation(
        "metrics/ranking.py",
        "(ranks.above, ranks.above + ranks.tied + 1)",
        "(ranks.above, ranks.above + ranks.tied)",
        "metrics/test_ranking.py::test_ndcg_is_scikit_learns",
        "the worth of one place too few",
    ),
    Mutation(
        "metrics/prediction.py",
        "valid = labels >= 0 if mask is None else jnp.asarray(mask) & (labels >= 0)",
        "valid = labels >= 0",
        "metrics/test_prediction.py::test_counts_summed_in_a_scan_are_those_of_all_rows",
        "predictions of padded rows counted",
    ),
    Mutation(
        "metrics/prediction.py",
        "metric(y[y >= 0], s[y >= 0])",
        "metric(y != 0, s)",
        "metrics/test_prediction.py::test_unknown_labels_are_left_out_of_every_score",
        "unknown labels that count in the area under the curve",
    ),
    Mutation(
        "losses.py",
        "valid = mask & (labels >= 0)\n",
        "valid = labels >= 0\n",
        "test_losses.py::test_dead_rows_cost_nothing_whatever_they_hold",
        "a loss of padded rows",
    ),
    Mutation(
        "losses.py",
        "return jnp.where(valid, scores.astype(jnp.float32), 0.0)",
        "return scores.astype(jnp.float32)",
        "test_losses.py::test_dead_rows_cost_nothing_whatever_they_hold",
        "NaN in the padding that reaches a loss's gradient",
    ),
    Mutation(
        "losses.py",
        "/ jnp.maximum(mask.sum(), 1)",
        "/ jnp.maximum(mask.size, 1)",
        "test_losses.py::test_masked_mean_by_hand",
        "a mean that counts the padding",
    ),
    Mutation(
        "losses.py",
        "valid = valid & (negative_mask | own)",
        "valid = valid & negative_mask",
        "test_contrastive.py::test_info_nce_is_the_closed_form",
        "a positive that its own mask of negatives hides",
    ),
    Mutation(
        "nn/norm.py",
        "jnp.full(x.shape[1], mask.sum(), jnp.float32)",
        "jnp.full(x.shape[1], mask.size, jnp.float32)",
        "parallel/test_parallel.py::test_batch_norm_is_that_of_flax_on_one_device",
        "batch norm's mean over the padding too",
    ),
    Mutation(
        "nn/models.py",
        "mask = None if valid is None else valid[:, None]",
        "mask = None",
        "nn/test_models.py::test_batch_norm_in_training_takes_valid_rows_alone",
        "a model whose batch norm sees padded seeds",
    ),
    Mutation(
        "nn/aggregators.py",
        "return where(mask, new, state)",
        "return new",
        "nn/test_aggregators.py::test_values_and_gradients_on_every_layout",
        "an LSTM that reads the padding",
    ),
    Mutation(
        "blocks/shuffle.py",
        "jnp.where(mask, bits >> 1, jnp.uint32(1 << 31))",
        "bits >> 1",
        "nn/test_aggregators.py::test_every_order_of_the_valid_slots_is_equally_likely",
        "padding shuffled among the slots",
    ),
    Mutation(
        "nn/conv/pinsage.py",
        "aggregate.sum(h, block) / jnp.where(some, total, 1)",
        "aggregate.mean(h, block)",
        "nn/test_pinsage.py",
        "PinSage's mean divided by the number of neighbors",
    ),
    Mutation(
        "nn/conv/gatv2.py",
        "own = read(asked, source(rows), self.of_own(of_edge, block, h)) if self.own else None",
        "own = None",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "attention without the own slot",
    ),
    Mutation(
        "nn/conv/gatv2.py",
        "return head_sums(nn.leaky_relu(met, self.negative_slope), att)",
        "return head_sums(nn.leaky_relu(met), att)",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "attention with another slope than it was given",
    ),
    Mutation(
        "nn/conv/transformer.py",
        "key, value = key + more, value + more",
        "value = value + more",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "keys without the edges' features",
    ),
    Mutation(
        "nn/conv/transformer.py",
        "gate * own + (1 - gate) * out",
        "gate * out + (1 - gate) * own",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "a gate whose sides are swapped",
    ),
    Mutation(
        "nn/conv/gcn.py",
        "> 0, own, 1)",
        "> 0, own, 0)",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "a graph convolution that forgets a node without neighbors",
    ),
    Mutation(
        "nn/conv/sage.py",
        "out if of_edges is None else out + of_edges",
        "out",
        "nn/test_attention.py::test_values_and_gradients_are_those_of_the_formula",
        "a linear aggregator without the edges' features",
    ),
    Mutation(
        "nn/attention.py",
        "shape).astype(jnp.float32) / max(rate, 1e-6)",
        "shape).astype(jnp.float32)",
        "nn/test_attention.py::test_dropout_on_attention_is_right_on_average_and_the_same_in_value_and_gradient",
        "dropout on attention that is not scaled",
    ),
    Mutation(
        "blocks/edges.py",
        "slots = where(dst < num_dst, slots, 0)",
        "slots = slots",
        "nn/test_attention.py::test_attention_comes_in_the_order_of_the_slots_and_sums_to_1",
        "attention weights in the padding",
    ),
    Mutation(
        "blocks/aggregate.py",
        "jnp.sqrt(jnp.where(large, square, 1))",
        "jnp.sqrt(square)",
        "blocks/test_aggregate.py::test_values_and_gradients",
        "the root of a variance of 0 that has a gradient",
    ),
    Mutation(
        "graph/weights.py",
        "own * out * into",
        "own * into",
        "graph/test_weights.py::test_a_graph_convolution_is_the_normalized_adjacency",
        "a self-loop divided by one of its ends alone",
    ),
    # Data and serving
    Mutation(
        "data/formats/npz.py",
        "if mask.dtype != bool or mask.shape != (num_nodes,):",
        "if mask.shape != (num_nodes,):",
        "data/test_npz.py::test_refuses_bad_contents_and_names_the_file",
        "a split's mask of any dtype",
    ),
    Mutation(
        "data/formats/edge_list.py",
        "if (numbers.astype(str) == cells.astype(str)).all():",
        "if len(numbers):",
        "data/test_edge_list.py::test_names_are_those_of_the_file",
        "names with leading zeros that are one",
    ),
    Mutation(
        "data/edge_split.py",
        "np.sort(np.concatenate(parts[:2]))",
        "np.sort(parts[1])",
        "data/test_edge_split.py::test_every_pair_is_in_one_part",
        "validation edges in the training graph",
    ),
    Mutation(
        "data/split_check.py",
        "for name in names[1:3]:",
        "for name in names[2:3]:",
        "data/test_edge_split.py::test_the_check_refuses",
        "a check of splits that does not see validation edges",
    ),
    Mutation(
        "data/edge_split.py",
        "np.searchsorted(time, time[cut])",
        "np.searchsorted(time, time[cut], 'right')",
        "data/test_edge_split.py::test_events_are_split_in_order_of_time",
        "events of one time at the border in the earlier part",
    ),
    Mutation(
        "data/shards/edge_sort.py",
        "keep[1::2] = edges[:, 0] != edges[:, 1]",
        "keep[1::2] = True",
        "data/test_from_edges.py::test_symmetrized",
        "a self-loop twice in shards",
    ),
    Mutation(
        "serving/export.py",
        'jax.random.key(plan.seed), _graph(tables), inputs["seeds"]',
        'jax.random.key(0), _graph(tables), inputs["seeds"]',
        "serving/test_export.py::TestEmbed::test_another_seed_draws_other_neighbors",
        "an export that ignores its seed",
    ),
    Mutation(
        "serving/runtime/embedder.py",
        'inputs["dst"][edges:] = NO_NODE',
        'inputs["dst"][edges:] = self.num_nodes + size - 1',
        "serving/test_export.py::TestEmbedNew",
        "padded edges of an export's new nodes that count",
    ),
    Mutation(
        "serving/runtime/operations.py",
        "elif name not in ALLOWED",
        "elif False",
        "serving/test_damage.py::TestPrograms::test_an_operation_that_reaches_out",
        "a program that reaches out of its arrays",
    ),
    Mutation(
        "serving/runtime/meta.py",
        "_expect(plain,",
        "_expect(True,",
        "serving/test_damage.py::test_odd_metadata",
        "an artefact's file outside its folder",
    ),
    # Many devices
    Mutation(
        "parallel/exchange.py",
        "(route.most + capacity - 1) // capacity",
        "route.most // capacity",
        "parallel/test_exchange.py::test_copies_of_hot_rows_are_not_asked_for",
        "ids that do not fit the last round",
    ),
    Mutation(
        "parallel/exchange.py",
        "[None] + number * capacity",
        "[None] + number",
        "parallel/test_exchange.py::test_copies_of_hot_rows_are_not_asked_for",
        "rounds that ask for the same ids",
    ),
    Mutation(
        "parallel/exchange.py",
        "route.owner * capacity + slot",
        "slot * (route.start.shape[0] - 1) + route.owner",
        "parallel/test_exchange.py::test_rows_are_those_of_the_table_in_any_number_of_rounds",
        "answers read as if transposed",
    ),
    Mutation(
        "parallel/reduce.py",
        'share = 1 / jnp.maximum(metrics["weight"].astype(loss.dtype)',
        "share = 1 / jnp.maximum(weight * jax.lax.axis_size(axis)",
        "parallel/test_parallel.py::test_the_loss_is_the_mean_over_all_valid_seeds",
        "a mean of the devices' means",
    ),
    Mutation(
        "parallel/reduce.py",
        "return (jax.lax.psum(grads, axis),)",
        "return (grads,)",
        "parallel/test_parallel.py::test_the_loss_is_the_mean_over_all_valid_seeds",
        "gradients that are not summed over devices",
    ),
    Mutation(
        "parallel/features.py",
        "return inside & (take(hot.local, slot) == ids.local), slot",
        "return inside, slot",
        "parallel/test_exchange.py::test_copies_of_hot_rows_are_not_asked_for",
        "another row's copy taken for one's own",
    ),
    Mutation(
        "parallel/sample.py",
        "node_bits(key, low, fanout, *high)",
        "node_bits(key, local, fanout)",
        "parallel/test_parallel_sample.py::test_sampled_edges_and_ids_are_those_of_one_device",
        "a shard's draws by row, not by node",
    ),
    Mutation(
        "parallel/links.py",
        "& jnp.concatenate([valid, valid])",
        "& jnp.concatenate([valid, valid & False])",
        "parallel/test_parallel_links.py::test_no_edge_of_the_batch_is_drawn_unless_exclusion_is_off",
        "the reverse of an edge that stays on a mesh",
    ),
    Mutation(
        "parallel/infer.py",
        "over = edge == end",
        "over = edge >= end - 1",
        "parallel/test_parallel_infer.py",
        "a hub on a mesh without its last edge",
    ),
    Mutation(
        "infer/tracing.py",
        "levels[j] + 1 for j",
        "levels[j] for j",
        "infer/test_tracing.py::test_by_layers_on_the_device",
        "a reduction that reads rows of another before they are there",
    ),
    Mutation(
        "parallel/infer.py",
        "done = over & (work.level == levels - 1)",
        "done = over",
        "infer/test_tracing.py::test_on_a_mesh",
        "a hub on a mesh whose edges are read for the first of its reductions alone",
    ),
    # Locks, checksums, runs that go on
    Mutation(
        "_internal/files.py",
        "if os.path.samestat(os.fstat(file.fileno()), lock.stat()):",
        "if lock.stat():",
        "_internal/test_files.py::test_who_waits_comes_in_alone",
        "a lock that was removed while it was waited for",
    ),
    Mutation(
        "_internal/files.py",
        "        shutil.rmtree(part, ignore_errors=True)\n        try:\n            part.mkdir()",
        "        try:\n            part.mkdir(exist_ok=True)",
        "_internal/test_files.py::test_the_lock_of_a_killed_process_is_free",
        "what a killed process left of a folder is kept",
    ),
    Mutation(
        "_internal/checksums.py",
        "        piece += at.astype(np.uint64) * _B\n",
        "",
        "_internal/test_checksums.py::test_any_bit_and_any_two_places_count",
        "a checksum that does not know where a number is",
    ),
    Mutation(
        "_internal/checksums.py",
        "[i + s for i, s in",
        "[i for i, s in",
        "_internal/test_checksums.py::test_parts_add_up_to_the_whole",
        "a checksum of a part as if it were the first",
    ),
    Mutation(
        "train/checkpoint.py",
        "            _check_sums(sums, checksums(arrays))\n",
        "",
        "train/test_checkpoint.py::test_other_numbers_are_refused_by_name",
        "a checkpoint's checksums not compared",
    ),
    Mutation(
        "data/formats/directory.py",
        'verify=verify and "sha256" in entry',
        "verify=False",
        "data/test_directory.py::test_a_flipped_bit_anywhere_is_named",
        "a graph directory's checksums not compared",
    ),
    Mutation(
        "recipes/record.py",
        "        _check_same(self.folder, about)\n",
        "",
        "recipes/test_record.py::test_a_run_goes_on_with_the_same_options_and_data_alone",
        "a run that goes on with other options",
    ),
    Mutation(
        "recipes/record.py",
        '[row["epoch"] for row in rows] == list(range(1, epochs + 1))',
        "True",
        "recipes/test_record.py::test_damaged_metrics_beside_a_whole_checkpoint_are_refused",
        "a run that goes on with epochs missing",
    ),
    Mutation(
        "recipes/loop.py",
        '        _check_finite(row, {"loss", policy.loss}, state)\n',
        "",
        "recipes/test_loop.py::test_a_loss_that_is_not_finite_ends_the_run",
        "a run that trains on after a loss of NaN",
    ),
    Mutation(
        "infer/to_file.py",
        "values = [(name, x) for",
        "values = [(name, x[::2]) for",
        "infer/test_infer.py::test_other_numbers_in_any_row_are_another_run",
        "a fingerprint of every other row",
    ),
)


class Outcome(NamedTuple):
    """What came of a mutation."""

    what: str
    file: str
    caught_by: str | None
    """The first test that failed."""
    trouble: str | None
    """Why it says nothing."""
    seconds: float

    @property
    def verdict(self) -> str:
        return self.caught_by or self.trouble or "SURVIVED"


def copy_tracked(folder: Path) -> None:
    """The tracked files as they are, uncommitted changes included; tests may compile what they like there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    with (folder / "tests/budgets.py").open("a") as file:
        file.write("\nMOST, EXCEPTIONS = 10**9, {}\n")


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """pytest's exit status, and what it says."""
    flags = ["-x", "-m", "", "-n", "0", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *flags, *(f"tests/{test}" for test in tests)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "400"}
    try:
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {LONGEST} s"
    return ran.returncode, ran.stdout + ran.stderr


def mutate(folder: Path, mutation: Mutation, number: int) -> str:
    """Make the mistake; the text that was there. Bytecode goes by a file's time and size: give it a time."""
    path = folder / "jsage" / mutation.file
    text = path.read_text()
    if text.count(mutation.before) != 1:
        raise SystemExit(f"{mutation.file} has {mutation.before!r} {text.count(mutation.before)} times")
    path.write_text(text.replace(mutation.before, mutation.after))
    os.utime(path, (number, number))
    return text


def judge(mutation: Mutation, status: int, said: str, seconds: float) -> Outcome:
    """A test that fails catches a mutation; a module that cannot be imported says nothing of the tests."""
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - (.*))?$", said, re.MULTILINE)
    caught, trouble = None, None
    if status == 1 and failed:
        caught = failed[1]
    elif status != 0:
        trouble = f"pytest ended with {status}: {said.strip()[-300:]}"
    return Outcome(mutation.what, mutation.file, caught, trouble, round(seconds, 1))


def try_mutation(folder: Path, mutation: Mutation, number: int) -> Outcome:
    path, began = folder / "jsage" / mutation.file, time.monotonic()
    text = mutate(folder, mutation, number)
    try:
        status, said = run_tests(folder, [mutation.tests])
    finally:
        path.write_text(text)
    return judge(mutation, status, said, time.monotonic() - began)


def run(mutations: list[Mutation]) -> list[Outcome]:
    """Each mutation in turn, in a copy of the project whose tests pass without."""
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tracked(folder)
        began = time.monotonic()
        status, said = run_tests(folder, sorted({mutation.tests for mutation in mutations}))
        if status != 0:
            raise SystemExit(f"the tests fail without any mutation (pytest ended with {status}):\n{said}")
        print(f"{'without any mutation':60} all pass  {time.monotonic() - began:.0f} s", flush=True)
        for number, mutation in enumerate(mutations, 1):
            outcome = try_mutation(folder, mutation, number)
            outcomes.append(outcome)
            print(f"{outcome.what:60} {outcome.verdict}  {outcome.seconds:.0f} s", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose line has this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of them")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only in " ".join(mutation)]
    if not chosen:
        raise SystemExit(f"no mutation has {options.only!r}")
    outcomes = run(chosen)
    if options.json:
        options.json.write_text(json.dumps([outcome._asdict() for outcome in outcomes], indent=1) + "\n")
    missed = [outcome for outcome in outcomes if outcome.caught_by is None]
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} mutations caught, {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
