"""Lists of weights: every format reads as the same list, and each mistake is one sentence."""

import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.naming import find_weight
from esa_ray.models.units import Units
from esa_ray.schema import RANKINGS
from esa_ray.spec import ModelSpec, StudySpec, WeightList, WeightName
from esa_ray.storage.store import Store
from esa_ray.weights import read_weights
from tests.tiny import tiny

ROWS = [
    {"tensor": "a.weight", "row": 5, "col": 7, "note": "first"},
    {"tensor": "experts", "row": 0, "col": 1, "expert": 3, "note": "second"},
]
WANTED = (WeightName(tensor="a.weight", row=5, col=7), WeightName(tensor="experts", row=0, col=1, expert=3))


def write(path, kind):
    file = path / f"my list.{kind}"
    if kind == "csv":
        file.write_text("tensor,row,col,expert,note\na.weight,5,7,,first\nexperts,0,1,3,second\n")
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        pq.write_table(pa.Table.from_pylist([ROWS[0] | {"expert": None}, ROWS[1]]), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_is_the_same_list_in_the_order_of_the_file(tmp_path, kind):
    found = read_weights(write(tmp_path, kind))
    assert (found.name, found.weights) == ("my-list", WANTED)


def _study(directory, ranks=((1, 4), (1, 9), (2, 8), (3, 1))):
    store = Store(directory)
    spec = StudySpec(name="other", model=ModelSpec(source="m"), topk=(2,), seeds=(9, 1))
    store.save_study(spec, {}, {})
    rows = [
        {"metric": "grad_x_weight", "mode": "per_layer", "seed": 9, "group": group, "rank": rank, "tensor": f"t{i}",
         "layer": i, "row": 0, "col": col, "flat": col, "score": 1.0}
        for group in ("super", "random_k") for i, (rank, col) in enumerate(ranks)
    ]  # fmt: skip
    store.write("rankings", "grad_x_weight-per_layer-s9", pa.Table.from_pylist(rows, schema=RANKINGS))
    return directory


def test_a_study_gives_the_super_weights_of_its_first_seed_down_to_its_largest_k(tmp_path):
    found = read_weights(_study(tmp_path / "base"))
    assert found.name == "base"
    assert [(w.tensor, w.col) for w in found.weights] == [("t0", 4), ("t1", 9), ("t2", 8)]


def test_of_a_table_of_rankings_the_super_weights_are_taken_by_rank_and_no_controls(tmp_path):
    file = _study(tmp_path / "base") / "rankings" / "grad_x_weight-per_layer-s9.parquet"
    assert [(w.tensor, w.col) for w in read_weights(file).weights] == [("t0", 4), ("t1", 9), ("t2", 8), ("t3", 1)]


THREE = (WeightName(tensor="model.layers.1.mlp.down_proj.weight", row=5, col=7),)


@pytest.mark.parametrize(
    "text",
    [
        "layer,row,col\n1,5,7\n",
        "Layer, Row, Col\n1,5,7\n",
        "tensor,row,col\nmodel.layers.1.mlp.down_proj,5,7\n",  # the module's name
        "Block,Output,Input,Score\n1,5,7,0.3\n",
        "layer,module,row,column\n1,mlp.down_proj.weight,5,7\n",
        "\ufeffTENSOR,ROW,COL\nmodel.layers.1.mlp.down_proj.weight,5,7\n",
        "name,out,in\nmodel.layers.1.mlp.down_proj.weight,5,7\n",
        "tensor;row;col;score\nmodel.layers.1.mlp.down_proj.weight;5;7;0,25\n",  # a spreadsheet where 1/4 is 0,25
        "tensor\trow\tcol\nmodel.layers.1.mlp.down_proj.weight\t5\t7\n",
        "sep=;\nlayer;row;col\n1;5;7\n",
        "layer,row,col,expert\n1.0,5.0,7.0,nan\n",  # pandas, of columns with gaps
        "layer,tensor,row,col\n0,model.layers.1.mlp.down_proj.weight,5,7\n",  # a full name tells its own block
    ],
)
def test_columns_may_be_spelled_as_papers_and_tools_do_and_are_one_list(tmp_path, text):
    file = tmp_path / "a.CSV"
    file.write_text(text, encoding="utf-8")
    assert read_weights(file).weights == THREE
    assert read_weights(file).digest == "d6c1897a1550a26b"


def test_json_under_either_name_and_packed_files_are_the_same_list(tmp_path):
    (array := tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (packed := tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert read_weights(array).weights == read_weights(packed).weights == WANTED


def test_a_boolean_in_a_table_is_no_row_and_its_number_is_told(tmp_path):
    pq.write_table(pa.table({"tensor": ["x", "y"], "row": [True, False], "col": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(EsaError, match=r"a\.parquet, row 1 has True in 'row'"):
        read_weights(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.gate_up_proj", "backbone.layers.0.mixer.A_log",
     "model.layers.1.mlp.down_proj.weight", "lm_head.weight", "transformer.h.0.attn.c_attn.weight"],
)  # fmt: skip
def test_a_parameters_own_name_stays_as_it_is(tmp_path, name):
    file = tmp_path / "a.csv"
    file.write_text(f"tensor,row,col,layer\n{name},5,7,0\n")
    assert read_weights(file).weights == (WeightName(tensor=name, row=5, col=7),)


def test_our_own_columns_win_over_their_synonyms(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("name,tensor,in,row,col\nmine,a.weight,9,5,7\n")
    assert read_weights(file).weights == (WeightName(tensor="a.weight", row=5, col=7),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "tensor,col\nx,1\n", "no column 'row'"),
        ("a.csv", "tensor,row,place\nx,5,7\n", "no column 'col'"),
        ("a.csv", "row,col\n5,7\n", r"no column 'tensor' but .*; it needs tensor \(or layer\)"),
        ("a.csv", "tensor,row,col\ny,1,2\nx,5,\n", "line 3 leaves 'col' empty"),
        ("a.csv", "tensor,row,col\n,1,2\n", "line 2 leaves 'tensor' empty"),
        ("a.csv", "layer,row,col\n,1,2\n", "line 2 leaves 'layer' empty"),
        ("a.csv", "tensor,row,col\n\nx,-1,0\n", r"line 3 has '-1' in 'row', .* whole number from 0 on"),
        ("a.csv", "tensor,row,col\nx,1,0\ny,1,0\nx,1,0\n", "line 4 lists .*stands twice: first in line 2"),
        ("a.csv", "tensor,row,col\n", "lists no weights"),
        ("a.csv", "", "lists no weights"),
        ("a.jsonl", "\n", "lists no weights"),
        ("a.json", "[]", "lists no weights"),
        ("a.csv", "tensor,row,col\nx,one,0\n", "line 2 has 'one' in 'row'"),
        ("a.csv", "tensor,row,col\nx,2.5,0\n", "line 2 has '2.5' in 'row'"),
        ("a.csv", "tensor,row,col\nx,true,0\n", "line 2 has 'true' in 'row'"),
        ("a.csv", "tensor,row,col\n1,5,7\n", "line 2 has '1' in 'tensor', which is no parameter's name"),
        ("a.csv", "layer,row,col\ntrue,5,7\n", "line 2 has 'true' in 'layer'"),
        ("a.csv", "x.weight,5,7\ny.weight,0,1\n", "line 1 holds values.* put a line tensor,row,col"),
        ("a.csv", "1,5,7\n", "line 1 holds values.*layer,row,col"),
        ("a.csv", "tensor,row,row,col\nx,5,6,7\n", "line 1 has the column 'row' twice"),
        ("a.csv", "tensor,row,col\nx,5\n", "line 2 has 2 fields and the header 3"),
        (
            "a.jsonl",
            '{"tensor": "x", "row": 1, "col": 1}\n{"tensor": "y", "row": true, "col": 1}',
            "line 2 has True in 'row'",
        ),
        ("a.jsonl", '{"tensor": "x", "row": 1, "col": 1, "expert": false}', "line 1 has False in 'expert'"),
        ("a.jsonl", '{"tensor": true, "row": 1, "col": 1}', "line 1 has True in 'tensor'"),
        ("a.jsonl", '{"tensor": "x", "row": 1, "row": 2, "col": 1}', "line 1 isn't JSON: 'row' stands twice"),
        ("a.jsonl", '["x", 1, 2]', "line 1 holds .* no JSON object"),
        ("a.json", '[{"tensor": "x", "row": 1, "col": 1}, {"tensor": "y", "row": true, "col": 1}]', "row 2 has True"),
        ("a.json", '[\n{"tensor": "x", "row": 1, "col": 1}\n{}]', "line 3 isn't JSON"),
        ("a.jsonl", "{", "line 1 isn't JSON"),
        ("a.parquet", "no parquet", "can't be read"),
        ("a.txt", "x", "no .csv, .json, .jsonl or .parquet"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_file(tmp_path, name, text, words):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(EsaError, match=words) as error:
        read_weights(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "row", "col"),
    [
        ("a.csv", "tensor,row,col\nx.weight,5,\ny.weight,0,\n", (5, 0), (None, None)),
        ("a.csv", "tensor,row,col\nx.weight,,5\ny.weight,nan,0\n", (None, None), (5, 0)),
        (
            "a.jsonl",
            '{"tensor": "x.weight", "row": 5, "col": null}\n{"tensor": "y.weight", "row": 0, "col": null}',
            (5, 0), (None, None),
        ),
    ],
)  # fmt: skip
def test_a_file_whose_every_row_leaves_one_of_the_two_empty_lists_whole_lines(tmp_path, name, text, row, col):
    file = tmp_path / name
    file.write_text(text)
    found = read_weights(file)
    assert [(w.tensor, w.row, w.col) for w in found.weights] == list(
        zip(("x.weight", "y.weight"), row, col, strict=True)
    )
    assert found.unit == ("col" if row[0] is None else "row")


def test_a_file_of_neither_rows_nor_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("tensor,row,col,unit\nx.weight,,,neuron\n")
    with pytest.raises(EsaError, match=r"names neither rows nor columns \(a ranking of neurons\)"):
        read_weights(tmp_path / "a.csv")


def test_a_list_is_of_weights_or_of_lines():
    with pytest.raises(ValueError, match="a list names rows and weights; make it two lists"):
        WeightList(name="l", weights=(WeightName(tensor="t", row=1, col=None), WeightName(tensor="t", row=1)))
    with pytest.raises(ValueError, match="t is named without a row and without a column"):
        WeightName(tensor="t", row=None, col=None)


def test_a_column_of_a_fused_matrix_is_that_of_one_component():
    found = catalogue(tiny("phi3"))
    fused = "model.layers.0.mlp.gate_up_proj.weight"
    with pytest.raises(EsaError, match="holds gate and up, each with columns of its own; name one of them"):
        find_weight(found, WeightName(tensor=fused, row=None, col=3))
    tensor, flat = find_weight(found, WeightName(tensor="model.layers.0.mlp.up_proj", row=None, col=3))
    assert (tensor.name, tensor.locate(np.array([flat]))["component"]) == (fused, ["up"])
    units = Units(tiny("phi3"), found, "col")
    assert units.find(tensor.name, flat)[1] == 3


def test_a_missing_file_and_a_directory_without_a_study_are_named(tmp_path):
    with pytest.raises(EsaError, match="can't be read"):
        read_weights(tmp_path / "none.csv")
    with pytest.raises(EsaError, match="holds no study"):
        read_weights(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(EsaError, match=r"a\.csv is a pipe or a device, and a list is read more than once; write it to"):
        read_weights(tmp_path / "a.csv")
