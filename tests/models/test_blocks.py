import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlavaConfig, PreTrainedConfig

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import Blocks, blocks, stack, text_config, vocabulary, width
from esa_ray.models.known import routed
from tests.tiny import tiny
from tests.tiny_layouts import tiny_layout


def block(size: int = 4) -> nn.Module:
    return nn.ModuleDict({"q_proj": nn.Linear(size, size, bias=False), "o_proj": nn.Linear(size, size, bias=False)})


class Somebodys(nn.Module):
    """A model of lists of blocks by name, with the depth that its config says, if it says one."""

    def __init__(self, lists: dict[str, nn.Module], depth: int | None):
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=depth) if depth is not None else PreTrainedConfig()
        self.words = nn.Embedding(8, 4)
        for path, found in lists.items():
            *parents, leaf = path.split("__")
            owner: nn.Module = self
            for parent in parents:
                if not hasattr(owner, parent):
                    setattr(owner, parent, nn.Module())
                owner = getattr(owner, parent)
            setattr(owner, leaf, found)

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return None


def several(n: int, size: int = 4) -> nn.ModuleList:
    return nn.ModuleList(block(size) for _ in range(n))


@pytest.mark.parametrize(
    ("lists", "depth", "wanted"),
    [
        ({"layers": several(3)}, 3, Blocks(("layers",), 3)),
        ({"short": several(2), "long": several(5)}, 2, Blocks(("short",), 2)),
        ({"short": several(2), "long": several(5)}, None, Blocks(("long",), 5)),
        ({"short": several(2), "long": several(5)}, 4, Blocks(("long",), 5)),
        ({"narrow": several(3, 2), "wide": several(3, 6)}, 3, Blocks(("wide", "narrow"), 3)),
        ({"vision__layers": several(3, 9), "text__layers": several(3)}, 3, Blocks(("text.layers",), 3)),
        ({"a__layers": several(3, 9), "b__layers": several(3)}, 3, Blocks(("a.layers",), 3)),
        ({"projections": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), "layers": several(3)}, 3,
         Blocks(("layers",), 3)),
        ({"stack": nn.Sequential(block(), block())}, 2, Blocks(("stack",), 2)),
        ({"nested__layers": nn.ModuleList(nn.ModuleDict({"inner": several(4)}) for _ in range(2))}, 2,
         Blocks(("nested.layers",), 2)),
        ({"only": block()}, 2, Blocks((), 0)),
    ],
)  # fmt: skip
def test_blocks_are_found_by_what_they_are(lists, depth, wanted):
    assert blocks(Somebodys(lists, depth)) == wanted


def test_a_model_whose_blocks_stand_in_no_list_is_addressed_and_run_whole():
    model = Somebodys({"only": block()}, 2)
    found = catalogue(model)
    assert found.layers == 0
    assert {t.name: t.parts[0].component for t in found.tensors} == {
        "words.weight": "embed", "only.q_proj.weight": "other", "only.o_proj.weight": "other",
    }  # fmt: skip
    with pytest.raises(EsaError, match="no list"):
        stack(model)


def test_parts_of_a_block_that_stand_in_several_lists_have_its_layer():
    model = tiny_layout("xlm")
    found = {t.name: t.layer for t in catalogue(model).tensors}
    assert found["transformer.attentions.1.q_lin.weight"] == found["transformer.ffns.1.lin1.weight"] == 1
    assert found["transformer.layer_norm1.1.weight"] == 1
    with pytest.raises(EsaError, match=r"several lists \(.*transformer\.attentions"):
        stack(model)


def test_what_reads_no_text_is_other_though_its_name_is_known():
    model = tiny("llama")
    model.model.vision_tower = nn.ModuleDict({"layers": several(2), "norm": nn.LayerNorm(4)})
    unknown = catalogue(model).unknown
    assert unknown == {
        "model.vision_tower.layers.*.q_proj.weight": 32, "model.vision_tower.layers.*.o_proj.weight": 32,
        "model.vision_tower.norm.weight": 4,
    }  # fmt: skip


def test_a_width_that_no_config_tells_is_the_embeddings():
    assert width(tiny("llama")) == 16
    assert width(Somebodys({"only": block()}, None)) == 4


def test_a_list_of_buffers_alone_is_no_list_of_blocks():
    model = Somebodys({"layers": several(2)}, 3)
    model.tables = nn.ModuleList(nn.Module() for _ in range(3))
    for table in model.tables:
        table.register_buffer("values", torch.zeros(3))
    assert blocks(model) == Blocks(("layers",), 2)


class TwoTexts(PreTrainedConfig):
    """A config of which two parts could be the text's: transformers refuses to choose."""

    def __init__(self, **given):
        super().__init__(**given)
        self.decoder, self.text_config, self.text_encoder = LlamaConfig(), LlamaConfig(), LlamaConfig()


def test_a_config_with_two_texts_and_no_vocabulary_of_its_own_leaves_the_embedding_to_tell():
    model = Somebodys({"layers": several(3)}, None)
    assert vocabulary(model) == 8  # its config says nothing
    model.config = TwoTexts()
    assert text_config(model.config) is model.config
    assert (vocabulary(model), width(model), routed(model)) == (8, 4, (1, 1))


def test_the_text_of_a_model_that_sees_is_its_language_models():
    llava = LlavaConfig(text_config=LlamaConfig(vocab_size=77))
    assert text_config(llava).vocab_size == 77


@pytest.mark.parametrize("layout", ["gpt_oss", "llama4_text", "bart"])
def test_every_model_tells_as_many_tokens_apart_as_its_logits_are_wide(layout):
    model = tiny_layout(layout)
    assert vocabulary(model) == model(torch.tensor([[1, 2]]), use_cache=False).logits.shape[-1]
