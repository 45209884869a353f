"""One concept, one word: old words of code and documents that have a better one are gone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("jsage", "experiments", "benchmarks", "tests", "docs")
SUFFIXES = {".py", ".md", ".svg", ".txt", ".toml"}

OLD = (  # (what is searched for, as a regular expression; what to say instead)
    (r"\bNeighbours\b|\bAnyGraph\b", "Adjacency"),
    (r"\bBeside\b|\bJoined\b", "GraphOverlay"),
    (r"\b(Sharded)?Without\b[(.\]]|links\.Without\b", "GraphWithoutEdges"),
    (r"\bGaps\b|\bmake_gaps\b", "HiddenRuns, hide_runs"),
    (r"\bwhole_blocks\b", "exact_blocks"),
    (r"\bfit_rooms\b", "measure_hop_sizes"),
    (r"\bRoom\(", "HopSize"),
    (r"\breads_rows\b", "needs_edge_rows"),
    (r"\bPieces\b", "StreamedBlock, RowChunks"),
    (r"\bdegree_classes\b", "sliced_full_block"),
    (r"\bClasses\(", "SlicedBlock"),
    (r"\bLocated\b", "Location"),
    (r"\bplace_features\b", "to_device_table"),
    (r"\bto_names\b", "global_ids"),
    (r"\bto_words\b|\bto_place\b", "pack, unpack"),
    (r"(?<![.\w])tell\(", "scatter_add_remote"),
    (r"(?<![.\w])ask\(", "gather_remote"),
    (r"\bbill\(", "estimate_memory"),
    (r"\bexchanged\(", "exchange_bytes"),
    (r"\breckon\b", "say what is computed"),
    (r"\bhottest\b|\bcopy_hottest\b|\bnum_hot\b", "most_sampled, cache_rows, num_cached"),
    (r"\bacross\(", "global_loss"),
    (r"\bown_key\b", "per_device_key"),
    (r"\bown_draw\b", "local_share"),
    (r"\bheard\(", "trace_reductions"),
    (r"\banswered\(", "apply_reduced"),
    (r"\bgo_on\b", "read_more"),
    (r"\bwide\(", "accumulator_dtype"),
    (r"\bLEGAL\b", "IN_BOUNDS"),
    (r"\bamong\(|\bAmong\b(?!\s[a-z])", "choice, Choice"),
    (r"\bredraw\b", "resample"),
    (r"\bMirror\b", "DeviceMirror"),
    (r"\bscanned\(", "scan_group"),
    (r"\bcompacted\(", "deduplicated_loss"),
    (r"\bFrontier\b", "Distinct"),
    (r"\bBelow\(", "LayerInputs"),
    (r"\buntil_no_better\b", "train_until_stopped"),
    (r"\bJudge\b", "Evaluator"),
    (r"\blinger\b", "exit_after_peers"),
    (r"\b(live|dead) (slot|row|seed|node|pair|place|destination)s?\b", "valid; padding"),
    (r"\blive\b(?! in| behind)|\bLIVE\b|_live\b", "valid"),
    (r"(?i)labelled", "labeled"),
    (r"\bdead\b", "padding; invalid; gone"),
    (r"\bto be had\b", "available"),
    (r"\banew\b", "again"),
    (r"(?i)neighbour", "neighbor"),
    (r"(?i)behaviour|colour|favour|honour", "-or"),
    (r"(?i)(character|emphas|factor|general|initial|local|maxim|minim|normal|optim)is(e|ing|ation)", "-iz-"),
    (
        r"(?i)(parallel|penal|personal|quant|random|recogn|serial|summar|symmetr|token|vector)is(e|ing|ation)",
        "-iz-",
    ),
)


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    found += [*sorted(ROOT.glob("*.md")), ROOT / "pyproject.toml"]
    return [path for path in found if path.suffix in SUFFIXES and path != Path(__file__)]


TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}


@pytest.mark.parametrize(("old", "better"), OLD, ids=[old for old, _ in OLD])
def test_an_old_word_is_gone(old: str, better: str):
    places = [
        f"{name}:{number}: {line.strip()[:90]}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(old, line)
    ]
    assert not places, f"{len(places)} lines still say {old!r}; better: {better}\n" + "\n".join(places[:20])


def test_the_words_are_searched_for_in_the_whole_project():
    assert len(TEXTS) > 200
    assert {"README.md", "jsage/__init__.py", "docs/architecture.md"} <= TEXTS.keys()
