"""Edge lists in text: names, headers, columns, and bad rows by line."""

import gzip

import numpy as np
import pytest

from jsage.data import read_edge_list
from jsage.graph import edges


def read(folder, text, **options):
    path = folder / "edges.csv"
    path.write_text(text, encoding="utf-8")
    graph, names = read_edge_list(path, **options)
    src, dst = edges(graph)
    pairs = [(names[u].item(), names[v].item()) for u, v in zip(src.tolist(), dst.tolist(), strict=True)]
    return graph, names, pairs


def test_names_are_sorted_and_every_edge_is_kept(tmp_path):
    graph, names, pairs = read(tmp_path, "bob,ann\nann,cy\nbob,ann\ncy,cy\n")
    assert names.tolist() == ["ann", "bob", "cy"]
    assert pairs == [("bob", "ann"), ("bob", "ann"), ("ann", "cy"), ("cy", "cy")]
    assert graph.edge_data == {}


def test_integer_names_are_sorted_as_numbers(tmp_path):
    _, names, pairs = read(tmp_path, "10,9\n9,100\n")
    assert names.tolist() == [9, 10, 100]
    assert pairs == [(10, 9), (9, 100)]


def test_num_nodes_keeps_the_ids(tmp_path):
    graph, names, pairs = read(tmp_path, "4,1\n1,3\n", num_nodes=6)
    assert graph.num_nodes == 6
    assert names.tolist() == list(range(6))
    assert pairs == [(4, 1), (1, 3)]


@pytest.mark.parametrize("head", ["src,dst", "Source,Target", "from, to"])
def test_header_names_the_columns(tmp_path, head):
    graph, _, _ = read(tmp_path, f"{head},weight,year\na,b,0.5,1999\nb,a,2,2001\n")
    assert graph.edge_data["weight"].tolist() == [2.0, 0.5]
    assert graph.edge_data["year"].tolist() == [2001, 1999]
    assert graph.edge_data["year"].dtype == np.int32


def test_without_header_the_columns_are_weight_and_time(tmp_path):
    graph, _, _ = read(tmp_path, "a,b,0.5,1082040961,7\n")
    assert {name: values.tolist() for name, values in graph.edge_data.items()} == {
        "weight": [0.5],
        "time": [1082040961],
        "column5": [7],
    }


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("# a comment\n\nx\ty z\n  \ny z\tx\n", {}),
        ("x,y z\r\ny z,x\r\n", {}),
        ('"x","y z"\n"y z","x"', {}),
        ("x;y z\ny z;x\n", {"delimiter": ";"}),
    ],
)
def test_delimiters_comments_and_quotes(tmp_path, text, options):
    assert read(tmp_path, text, **options)[2] == [("y z", "x"), ("x", "y z")]


@pytest.mark.parametrize(
    "text",
    [
        "id_1,id_2\n0,23\n0,5\n10,2\n",
        "src,dst\n0,23\n0,5\n10,2\n",
        "\ufeffsrc,dst\n0,23\n0,5\n10,2\n",
        "dst,src\n23,0\n5,0\n2,10\n",
        "target,user\n23,0\n5,0\n2,10\n",
        "\ufeff0,23\n0,5\n10,2\n",
        "% sym unweighted\n% 3 6 6\n0 23\n0 5\n10 2\n",
        "# made\n0  23\n 0 5 \n10\t2\n",
        "from;to\n0;23\n0;5\n10;2\n",
        "user friend\n0 23\n0 5\n10 2",
    ],
)
def test_headers_marks_and_delimiters_of_numbers(tmp_path, text):
    graph, names, pairs = read(tmp_path, text)
    assert names.tolist() == [0, 2, 5, 10, 23]
    assert sorted(pairs) == [(0, 5), (0, 23), (10, 2)]
    assert graph.edge_data == {}


def test_the_ends_are_where_the_header_says(tmp_path):
    graph, _, pairs = read(tmp_path, "weight,dst,year,src\n0.5,ann,1999,bob\n2,bob,2001,ann\n")
    assert pairs == [("bob", "ann"), ("ann", "bob")]
    assert {name: rows.tolist() for name, rows in graph.edge_data.items()} == {
        "weight": [0.5, 2.0],
        "year": [1999, 2001],
    }


def test_a_header_over_text_alone_is_told_from_numbers_or_said(tmp_path):
    assert read(tmp_path, "payer,payee,amount\nann,bob,3\n")[2] == [("ann", "bob")]
    text = "payer,payee\nann,bob\n"
    assert read(tmp_path, text, header=True)[2] == [("ann", "bob")]
    assert len(read(tmp_path, text)[2]) == 2
    assert read(tmp_path, "a,b\n1,2\n", header=False)[2] == [("1", "2"), ("a", "b")]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("src,dst\n007,12\n7,12\n12,0007\n", ["0007", "007", "12", "7"]),
        ("1_000,1000\n", ["1000", "1_000"]),
        ("+1,1\n", ["+1", "1"]),
        ("99999999999999999999,1\n", ["1", "99999999999999999999"]),
        ("-1,1\n", [-1, 1]),
    ],
)
def test_names_are_those_of_the_file(tmp_path, text, names):
    assert read(tmp_path, text)[1].tolist() == names


def test_a_file_of_gzip(tmp_path):
    path = tmp_path / "edges.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\nb,c\n"))
    assert read_edge_list(path)[1].tolist() == ["a", "b", "c"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"edges\.csv\.gz: a damaged or half-written file of gzip"):
        read_edge_list(path)


def test_times_and_weights_are_those_of_the_file(tmp_path):
    data = read(tmp_path, "a,b,0.1,1400000001.0\nb,a,1e-3,1400000000\n")[0].edge_data
    assert sorted(data["time"].tolist()) == [1_400_000_000, 1_400_000_001]
    assert sorted(data["weight"].tolist()) == np.float32([1e-3, 0.1]).tolist()


@pytest.mark.parametrize("text", ["", "# nothing\n", "src,dst\n"])
def test_no_edges(tmp_path, text):
    graph, names, _ = read(tmp_path, text)
    assert (graph.num_nodes, graph.num_edges, len(names)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\nb\n", {}, r"line 2: expected 2 columns \(src, dst\), got 'b'"),
        ("# one\na,b,1\n\nb,c\n", {}, r"line 4: expected 3 columns \(src, dst, weight\), got 'b,c'"),
        ("src,dst,year\na,b,1\na,b,1,2\n", {}, r"line 3: expected 3 columns \(src, dst, year\)"),
        ("a,b\n,c\n", {}, "line 2: expected 2 columns"),
        ("a,b,1\nb,c,heavy\n", {}, "line 2: weight must be a finite number, got 'heavy'"),
        ("a,b,1\nb,c,\n", {}, "line 2: weight must be a finite number, got ''"),
        ("a,b,nan\n", {}, "line 1: weight must be a finite number, got 'nan'"),
        ("a,b,1,99999999999\n", {}, "'time' must fit int32, got 99999999999"),
        ("0,1\n1,two\n", {"num_nodes": 3}, "line 2: with num_nodes, nodes must be ids 0, 1, ..., got 'two'"),
        ("0,1\n1,-2\n", {"num_nodes": 3}, "line 2: with num_nodes, nodes must be ids .* got '-2'"),
        ("0,1\n1,01\n", {"num_nodes": 3}, "line 2: with num_nodes, nodes must be ids .* got '01'"),
        ("0,1\n1,99999999999999999999\n", {"num_nodes": 3}, "nodes must be ids 0, 1, ..., below"),
        ("a,b,1_000\n", {}, "line 1: weight must be a finite number, got '1_000'"),
        ("a,b,1,1600000000.25\na,b,1,1600000000.5\n", {}, "'time' lose in float32"),
        ("a,b;1\n", {}, "commas and semicolons, .* pass delimiter"),
        ("0 1\n0 1 2\n", {}, r"line 2: expected 2 columns .*the delimiter is"),
        ("%%MatrixMarket matrix\n3 3 1\n1 2\n", {}, "Matrix Market, no edge list: read it by scipy"),
        ("src,dst,src\na,b,1\n", {}, "data of edges must have names of their own, got 'src'"),
        ("src,dst,w,w\na,b,1,2\n", {}, "data of edges must have names of their own, got 'w', 'w'"),
        ("0,1\n1,3\n", {"num_nodes": 3}, r"dst must be node ids in 0 \.\. 2, got 3"),
    ],
)
def test_bad_rows_name_the_file_and_line(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=rf"edges\.csv: .*{message}"):
        read(tmp_path, text, **options)


def test_a_binary_file_and_a_missing_one(tmp_path):
    (tmp_path / "edges.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"edges\.csv: .*utf-8"):
        read_edge_list(tmp_path / "edges.csv")
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_edge_list(tmp_path / "absent.csv")


@pytest.mark.parametrize("text", ["\x0b", "a,b\ra", "\x0c,\n"])
def test_lines_of_odd_characters_are_counted(text, tmp_path):
    (tmp_path / "edges.csv").write_text(text, newline="")
    with pytest.raises(ValueError, match=r"line [12]: expected 2 columns"):
        read_edge_list(tmp_path / "edges.csv")
