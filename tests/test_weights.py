"""Lists of weights: every format reads as the same list, and each mistake is one sentence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray.errors import EsaError
from esa_ray.schema import RANKINGS
from esa_ray.spec import ModelSpec, StudySpec, WeightName
from esa_ray.storage.store import Store
from esa_ray.weights import read_weights

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
        "layer,tensor,row,col\n0,model.layers.1.mlp.down_proj.weight,5,7\n",  # a full name tells its own block
    ],
)
def test_columns_may_be_spelled_as_papers_and_tools_do_and_are_one_list(tmp_path, text):
    file = tmp_path / "a.CSV"
    file.write_text(text, encoding="utf-8")
    assert read_weights(file).weights == THREE
    assert read_weights(file).digest == "f92bc6f39374c44e"


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
        ("a.csv", "row,col\n5,7\n", r"no column 'tensor'; it needs tensor \(or layer\)"),
        ("a.csv", "tensor,row,col\nx,5,\ny,1,2\n", "leaves 'col' empty in 1 rows"),
        ("a.csv", "tensor,row,col\nx,-1,0\n", "greater than or equal to 0"),
        ("a.csv", "tensor,row,col\nx,1,0\nx,1,0\n", "stands twice"),
        ("a.csv", "tensor,row,col\n", "at least 1 item"),
        ("a.csv", "tensor,row,col\nx,one,0\n", "valid integer"),
        ("a.jsonl", "{", "can't be read"),
        ("a.parquet", "no parquet", "can't be read"),
        ("a.txt", "x", "no .csv, .jsonl or .parquet"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_file(tmp_path, name, text, words):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(EsaError, match=words) as error:
        read_weights(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_directory_without_a_study_are_named(tmp_path):
    with pytest.raises(EsaError, match="can't be read"):
        read_weights(tmp_path / "none.csv")
    with pytest.raises(EsaError, match="holds no study"):
        read_weights(tmp_path)
