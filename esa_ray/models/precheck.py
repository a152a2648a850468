"""What a model's files tell before a cluster starts: whether they fit its config, and its tokenizer fits the model.

In a process of its own: whoever drives a study holds no model, and torch would cost it hundreds of megabytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from esa_ray import data
from esa_ray.errors import EsaError
from esa_ray.models.sources import Source
from esa_ray.spec import StudySpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(spec: StudySpec, source: Source) -> None:
    """See whether a study's model can be loaded and reads the study's text, without loading it.

    A GGUF file is converted first, and code of a model's own isn't run here: both are left to who loads the model.

    Raises
    ------
    EsaError
        If its files aren't those of the model that its config describes, its windows are longer than it
        reads, its tokenizer makes tokens that it has no embedding of, or it has no weights of the names in the study's
        lists.
    """
    from esa_ray.models.blocks import check_window
    from esa_ray.models.dry import check_fit
    from esa_ray.models.tokenizing import check_tokens, embedded, opened

    model = check_fit(source)
    if model is None:
        return
    check_window(source.name, model, spec.data.window)
    _check_lists(spec, model)
    tokenizer, rows = opened(source, source.path), embedded(model)
    if max(tokenizer.get_vocab().values(), default=0) < rows or data.is_large(spec.data):
        return
    windows = data.windows(spec.data, tokenizer, spec.seeds)
    check_tokens(source.name, [windows.evaluation, *(windows.calibration(seed) for seed in spec.seeds)], rows)


def _check_lists(spec: StudySpec, model: PreTrainedModel) -> None:
    """See whether a hollow model has the weights of the study's lists, where names alone tell what its tensors are.

    What only a forward pass tells is ``other`` in a hollow model, and may turn out to be stored the other way round.
    """
    from esa_ray.models.addressing import catalogue
    from esa_ray.models.naming import find_weight

    if not spec.lists:
        return
    found = catalogue(model)
    if any(part.component == "other" for tensor in found.tensors for part in tensor.parts):
        return
    for given in spec.lists:
        for weight in given.weights:
            find_weight(found, weight)


def check_apart(asked: Sequence[tuple[StudySpec, Source]]) -> None:
    """The same of several, in another process unless torch is here already.

    Raises
    ------
    EsaError
        For the first that is refused.
    """
    asked = [(spec, source) for spec, source in asked if source.tells]
    if "torch" in sys.modules or not asked:
        for spec, source in asked:
            check(spec, source)
        return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Without the working directory on its path (-P), which may be the model's own and hold Python files.
    ended = subprocess.run(
        [sys.executable, "-P", "-m", __name__], input=written(asked), capture_output=True, env=environment
    )
    # A process that dies of something else has told nothing; who loads the model will.
    if ended.returncode == 0 and (sentence := json.loads(ended.stdout.decode().splitlines()[-1])):
        raise EsaError(sentence)


def written(asked: Sequence[tuple[StudySpec, Source]]) -> bytes:
    """Studies and their models as JSON, for the process that checks them."""
    return json.dumps([[spec.model_dump(mode="json"), asdict(source)] for spec, source in asked]).encode()


def _main() -> None:
    sentence = None
    try:
        for spec, source in json.load(sys.stdin.buffer):
            check(StudySpec.model_validate(spec), Source(**source | {"trust": tuple(source["trust"])}))
    except EsaError as error:
        sentence = str(error)
    print(json.dumps(sentence))


if __name__ == "__main__":
    _main()
