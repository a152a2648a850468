import hashlib
import math
import pickle
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from esa_ray.data import opening, pack, packing, read_documents, split, splitting, text_fingerprint, windows
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec
from tests.tiny import BOS_ID, FIRST_BYTE, byte_tokenizer

PLAIN, WITH_BOS, WITHOUT = byte_tokenizer(adds_bos=False), byte_tokenizer(), byte_tokenizer(adds_bos=False, bos=False)
UNDECLARED = byte_tokenizer(bos=False)


def distinct_text(n: int) -> str:
    """n bytes in which no eight follow each other twice."""
    return "".join(f"{i:07d};" for i in range(n // 8 + 1))[:n]


def spec(**changes) -> DataSpec:
    return DataSpec(**({"window": 16, "calibration_windows": 4, "evaluation_windows": 3} | changes))


def content(tokens: np.ndarray) -> set[bytes]:
    return {row.astype("<i8").tobytes() for row in tokens}


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5), st.integers(2, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_windows_are_the_bytes_of_the_documents_joined_by_a_blank_line_and_cut(documents, width, bos):
    tokens = pack(documents, WITH_BOS if bos else PLAIN, DataSpec(window=width))
    raw = "\n\n".join(documents).encode()
    body = width - bos
    wanted = [[BOS_ID] * bos + [b + FIRST_BYTE for b in raw[i : i + body]] for i in range(0, len(raw), body)]
    wanted = [w for w in wanted if len(w) == width]
    assert tokens.dtype == np.int64
    assert tokens.shape == (len(wanted), width)
    assert tokens.tolist() == wanted


@pytest.mark.parametrize(
    ("asked", "tokenizer", "used"),
    [
        ("auto", WITH_BOS, True),
        ("auto", PLAIN, False),
        ("auto", WITHOUT, False),
        ("auto", UNDECLARED, True),
        ("always", UNDECLARED, True),
        ("never", UNDECLARED, False),
        ("always", PLAIN, True),
        ("always", WITH_BOS, True),
        ("never", WITH_BOS, False),
    ],
)
def test_bos_begins_every_window_where_asked_or_where_the_tokenizer_adds_it(asked, tokenizer, used):
    mine = spec(bos=asked)
    assert opening(mine, tokenizer) == [BOS_ID] * used
    found = windows(mine, tokenizer, (0,), [distinct_text(400)])
    assert found.bos is used
    assert found.tokens.shape[1] == 16
    assert set((found.tokens[:, 0] == BOS_ID).tolist()) == {used}
    assert not (found.tokens[:, 1:] == BOS_ID).any()


@pytest.mark.parametrize("template", ["</s> $A", "<s> </s> $A", "<s> <s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("declared", [None, "<s>"])
def test_windows_begin_with_what_the_post_processor_puts_first(template, declared):
    """Of a tokenizer that declares BOS and puts it first that alone, as ever; else all that stands before the text."""
    inner = byte_tokenizer()._tokenizer
    ids = {"<s>": BOS_ID, "</s>": 1}
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=declared)
    wanted = [ids[word] for word in template.split("$A")[0].split()]
    wanted = [BOS_ID] if declared and wanted[:1] == [BOS_ID] else wanted
    text = distinct_text(400)
    found = windows(spec(), tokenizer, (0,), [text])
    width = 16 - len(wanted)
    assert (found.tokens[:, : len(wanted)] == wanted).all()
    assert found.tokens[1, len(wanted) :].tolist() == [b + 2 for b in text.encode()[width : 2 * width]]
    assert found.opening == tuple({i: word for word, i in ids.items()}[i] for i in wanted)


def test_a_window_without_room_behind_what_begins_it_is_refused():
    inner = byte_tokenizer()._tokenizer
    inner.post_processor = processors.TemplateProcessing(
        single="<s> </s> $A", special_tokens=[("<s>", BOS_ID), ("</s>", 1)]
    )
    with pytest.raises(EsaError, match="--window 2 has no room for text behind the 2 tokens"):
        windows(spec(window=2), PreTrainedTokenizerFast(tokenizer_object=inner), (0,), [distinct_text(400)])


def test_bos_always_without_a_bos_token_is_refused():
    with pytest.raises(EsaError, match="BOS"):
        windows(spec(bos="always"), WITHOUT, (0,), [distinct_text(400)])


@given(st.integers(7, 60), st.integers(2, 4), st.integers(1, 3), st.lists(st.integers(0, 99), min_size=1, unique=True))
@settings(max_examples=60, deadline=None)
def test_calibration_windows_never_meet_evaluation_windows(n, evaluate, calibrate, seeds):
    tokens = np.arange(n * 16).reshape(n, 16)
    seeds = seeds[:5]
    # With few windows and many seeds two seeds may draw alike, which is refused.
    pool = n - evaluate
    assume(len(seeds) == 1 or math.comb(pool, calibrate) >= 100)
    found = split(tokens, spec(evaluation_windows=evaluate, calibration_windows=calibrate), tuple(seeds[:2]))
    assert len(found.evaluation) == len(content(found.evaluation)) == evaluate
    assert content(found.evaluation) <= content(tokens)
    for seed in seeds:
        mine = found.calibration(seed)
        assert len(mine) == len(content(mine)) == calibrate  # drawn without replacement
        assert content(mine) <= content(tokens)
        assert not content(mine) & content(found.evaluation)


def test_seeds_draw_different_windows_and_share_the_evaluation():
    tokens = np.arange(200 * 16).reshape(200, 16)
    mine = spec(calibration_windows=20)
    found = split(tokens, mine, tuple(range(10)))
    draws = [content(found.calibration(seed)) for seed in range(10)]
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(draws, 2)]
    assert max(overlaps) < 0.5
    # Each pair shares 20·20/197 ≈ 2 windows by chance: neither nothing nor everything.
    shared = np.mean([len(a & b) for a, b in combinations(draws, 2)])
    assert 1.0 < shared < 3.5
    other = split(tokens, mine, (99,))
    assert other.evaluation.tolist() == found.evaluation.tolist()
    assert other.calibration(3).tolist() == found.calibration(3).tolist()


def test_every_window_has_the_same_chance_to_calibrate():
    tokens = np.arange(23 * 16).reshape(23, 16)
    found = split(tokens, spec(calibration_windows=5), (0, 1))
    counts = np.bincount(np.concatenate([found.calibration_index(seed) for seed in range(400)]), minlength=23)
    assert set(counts[found.evaluation_index].tolist()) == {0}
    pool = counts[found.pool_index]
    assert len(pool) == 20
    sd = np.sqrt(400 * 0.25 * 0.75)
    assert np.abs(pool - 100).max() < 4.5 * sd


@pytest.mark.parametrize(("n", "seeds"), [(6, (0,)), (7, (0, 1)), (0, (0,))])
def test_a_text_too_short_for_both_or_for_different_seeds_is_refused(n, seeds):
    with pytest.raises(EsaError, match=f"holds {n} different windows"):
        split(np.arange(n * 16).reshape(n, 16), spec(), seeds)


def test_ten_sentences_repeated_are_refused_at_any_offset():
    # 37 bytes a sentence, 370 a round: no window length divides it, so no two windows are identical for long.
    text = "".join(f"Sentence number {i} of ten is here now. "[:37] for i in range(10)) * 300
    with pytest.raises(EsaError, match="repeats itself"):
        windows(spec(window=128, evaluation_windows=8, calibration_windows=8), PLAIN, (1, 2), [text])


def test_windows_that_repeat_count_once():
    with pytest.raises(EsaError, match="holds 2 different windows"):
        split(np.repeat(np.arange(2 * 16).reshape(2, 16), 10, axis=0), spec(), (0,))


def test_pythons_topics_lose_the_paragraphs_that_they_quote_from_each_other():
    paragraphs = [p for d in read_documents(spec(source="pydoc")) for p in d.split("\n\n")]
    words = [" ".join(p.split()) for p in paragraphs]
    assert len(words) == len(set(words))
    assert sum(map(len, paragraphs)) > 300_000


def test_one_seed_may_use_every_window_there_is():
    found = split(np.arange(7 * 16).reshape(7, 16), spec(), (0,))
    assert len(found.calibration(0)) == 4


def test_a_text_that_repeats_itself_never_puts_one_window_on_both_sides():
    # A known artefact: ten sentences, repeated, scored and evaluated on themselves.
    sentences = [f"Sentence number {i} is here.    "[:30] + "\n\n" for i in range(10)]
    assert {len(s) for s in sentences} == {32}
    try:
        found = windows(spec(), PLAIN, (1, 2), ["".join(sentences) * 10])
    except EsaError:
        return  # refusing such a text is as good
    for seed in (1, 2):
        assert not content(found.calibration(seed)) & content(found.evaluation)


def test_the_default_text_gives_the_same_windows_every_time_and_no_window_twice():
    mine = DataSpec(window=64, calibration_windows=8, evaluation_windows=4)
    a, b = (windows(mine, WITH_BOS, (0,)) for _ in range(2))
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.calibration(5).tolist() == b.calibration(5).tolist()
    assert not content(a.calibration(5)) & content(a.evaluation)


def test_the_fingerprint_sees_every_character_and_every_border():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "d"], ["ab", "c", ""]]
    assert len({text_fingerprint(t) for t in texts}) == len(texts)
    assert text_fingerprint(["ab", "c"]) == text_fingerprint(["ab", "c"])


def slow_split(tokens: list[tuple[int, ...]], mine: DataSpec, seeds: tuple[int, ...]) -> tuple | None:
    """Evaluation, pool and draws by the definition, window by window; None where the text isn't enough."""

    def shuffled(indices, salt):
        return sorted(indices, key=lambda i: hashlib.sha256(f"{salt}:{i}".encode()).digest())

    n = min(16, mine.window - 1)

    def runs(i):
        return [tokens[i][j : j + n] for j in range(1, mine.window - n + 1)]

    order = shuffled([i for i, window in enumerate(tokens) if tokens.index(window) == i], "split")
    evaluation, rest = order[: mine.evaluation_windows], sorted(order[mine.evaluation_windows :])
    known = {run for i in evaluation for run in runs(i)}
    pool = [i for i in rest if sum(run in known for run in runs(i)) * 2 < len(runs(i))]
    draws = {seed: shuffled(pool, f"seed {seed}")[: mine.calibration_windows] for seed in seeds}
    if len(pool) < mine.calibration_windows or len({tuple(sorted(d)) for d in draws.values()}) < len(seeds):
        return None
    return evaluation, pool, draws


@pytest.mark.parametrize("width", [2, 3, 5, 24])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_the_split_is_the_one_that_its_definition_gives(width, chunk, monkeypatch):
    monkeypatch.setattr(splitting, "CHUNK", chunk)
    kept_some = dropped_some = 0
    for case in range(25):
        rng = np.random.default_rng(case)
        # Few different sentences, so that windows are equal, or overlap at other offsets, or neither.
        sentences = rng.integers(0, 9 if width < 6 else 50, (30, width))
        stream = np.concatenate([np.roll(sentences[i], j) for i, j in rng.integers(0, [30, 3], (40, 2))])
        tokens = stream.reshape(-1, width)
        mine = spec(window=width)
        wanted = slow_split([tuple(row) for row in tokens.tolist()], mine, (1, 2))
        if wanted is None:
            with pytest.raises(EsaError, match="the text"):
                split(tokens, mine, (1, 2))
            continue
        found = split(tokens, mine, (1, 2))
        evaluation, pool, draws = wanted
        assert found.evaluation_index.tolist() == evaluation
        assert found.pool_index.tolist() == pool
        assert {seed: found.calibration_index(seed).tolist() for seed in (1, 2)} == draws
        assert (found.total, found.pool) == (len(tokens), len(pool))
        kept_some += 1
        dropped_some += len(set(map(tuple, tokens.tolist()))) > len(pool) + len(evaluation)
    assert kept_some
    assert dropped_some or width < 24  # the filter had something to do


def test_draws_and_fingerprints_are_those_of_earlier_versions():
    # Golden: studies of earlier versions go on, and their cells are found again.
    found = windows(spec(), PLAIN, (0,), [distinct_text(4000)])
    assert found.evaluation_index.tolist() == [2, 222, 244]
    assert found.calibration_index(0).tolist() == [61, 111, 231, 220]
    assert found.calibration_index(7).tolist() == [239, 140, 200, 212]
    assert text_fingerprint(["ab", "zweites ü"]) == "70b732432190296a"


@pytest.mark.parametrize("n", [7, 200])
def test_what_a_study_needs_of_the_windows_is_small_and_the_same(n):
    tokens = np.arange(n * 16, dtype=np.uint32).reshape(n, 16)
    whole = split(tokens, spec(), (3,))
    part = pickle.loads(pickle.dumps(whole.for_seeds((3, 99) if n > 7 else (3,))))
    assert part.evaluation.tolist() == whole.evaluation.tolist()
    for seed in (3, 99) if n > 7 else (3,):
        assert part.calibration(seed).tolist() == whole.calibration(seed).tolist()
    assert part.tokens.dtype == np.int64
    assert len(part.tokens) <= 3 + 4 * 2
    assert (part.total, part.pool) == (n, n - 3)
    with pytest.raises(EsaError, match="seeds"):  # never another draw in silence
        part.calibration(4)


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=8), st.integers(2, 5), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_encoded_documents_are_joined_and_cut_as_by_hand(encoded, width, gathered):
    stream = []
    for document in encoded:
        stream += ([7, 7] if stream else []) + document
    wanted = [[0, *stream[i : i + width - 1]] for i in range(0, len(stream), width - 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "GATHERED", gathered)
        parts = [np.array(document, np.uint32) for document in encoded]
        joined = packing._joined(parts, np.array([7, 7], np.uint32))
        found = np.concatenate([*packing._cut(joined, np.array([0], np.uint32), width)])
    assert found.tolist() == [w for w in wanted if len(w) == width]


@pytest.mark.parametrize("near", [0, 3, 1000])
def test_windows_in_a_file_are_those_that_were_written(tmp_path, near, monkeypatch):
    monkeypatch.setattr(packing, "NEAR", near)
    tokens = np.random.default_rng(0).integers(0, 2**32, (50, 6), dtype=np.uint32)
    tokens.tofile(tmp_path / "tokens")
    packed = packing.Packed(tmp_path / "tokens", (50, 6))
    assert len(packed) == 50
    for index in (slice(0, 50), slice(40, 60), np.array([49, 0, 7, 7]), np.arange(10, 20)):
        assert packed[index].tolist() == tokens[index].tolist()
