"""The embedding cache: encoded once, kept exactly, never taken for another's."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from data_pipelines.text.embedding_cache import EmbeddingCache, encoder_fingerprint
from wamjax.errors import DataError

PROMPTS = ["pick up the cup", "open the drawer", "", "机器人 \n &amp;"]
IDENTITY = {"weights": "a1b2", "config": {"width": 4, "layers": 2}, "tokenizer": "c3", "dtype": "float32"}
FINGERPRINT = encoder_fingerprint(**IDENTITY)


class Encoder:
    """A stand-in: an embedding that depends on the prompt, and a list of what was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts):
        self.calls.append(list(prompts))
        return [self.embedding(prompt) for prompt in prompts]

    @staticmethod
    def embedding(prompt):
        rng = np.random.default_rng(list(prompt.encode()))
        return rng.standard_normal((len(prompt) + 1, 4)).astype(np.float32)


def _embed(folder, prompts=PROMPTS, fingerprint=FINGERPRINT, **kwargs):
    encoder = Encoder()
    embeddings, report = EmbeddingCache(folder, fingerprint).embed(prompts, encoder, **kwargs)
    return embeddings, report, encoder.calls


def test_cache_encodes_each_unique_prompt_once_in_batches(tmp_path):
    embeddings, report, calls = _embed(tmp_path, [*PROMPTS, PROMPTS[0], PROMPTS[1]], batch_size=3)
    assert calls == [PROMPTS[:3], PROMPTS[3:]]
    assert (report.found, report.computed, report.damaged) == (0, 4, {})
    assert list(embeddings) == PROMPTS
    again, report, calls = _embed(tmp_path)
    assert calls == []
    assert (report.found, report.computed) == (4, 0)
    for prompt in PROMPTS:
        assert embeddings[prompt].dtype == again[prompt].dtype == np.float32
        assert again[prompt].tobytes() == embeddings[prompt].tobytes() == Encoder.embedding(prompt).tobytes()


def test_cache_keeps_bfloat16_bit_for_bit(tmp_path):
    written, _ = EmbeddingCache(tmp_path, FINGERPRINT, "bfloat16").embed(PROMPTS, Encoder())
    read, report = EmbeddingCache(tmp_path, FINGERPRINT, "bfloat16").embed(PROMPTS, Encoder())
    assert report.found == len(PROMPTS)
    for prompt in PROMPTS:
        assert read[prompt].dtype.name == "bfloat16"
        assert read[prompt].tobytes() == written[prompt].tobytes()
        np.testing.assert_allclose(read[prompt].astype(np.float32), Encoder.embedding(prompt), rtol=2**-8)


@pytest.mark.parametrize("key", sorted(IDENTITY))
def test_cache_of_another_encoder_is_not_used(tmp_path, key):
    _embed(tmp_path)
    other = encoder_fingerprint(**{**IDENTITY, key: {"width": 5} if key == "config" else "other"})
    assert _embed(tmp_path, fingerprint=other)[1].computed == len(PROMPTS)
    assert _embed(tmp_path)[1].computed == 0  # and its own is still there


def test_cache_file_of_another_encoder_or_prompt_in_its_place_is_replaced_and_named(tmp_path):
    _embed(tmp_path)
    other = "0" * 64
    _embed(tmp_path, fingerprint=other)
    mine, theirs = EmbeddingCache(tmp_path, FINGERPRINT), EmbeddingCache(tmp_path, other)
    theirs.path_of(PROMPTS[0]).replace(mine.path_of(PROMPTS[0]))
    mine.path_of(PROMPTS[2]).replace(mine.path_of(PROMPTS[1]))
    _, report, calls = _embed(tmp_path)
    assert calls == [PROMPTS[:3]]
    reasons = [report.damaged[mine.path_of(prompt)] for prompt in PROMPTS[:2]]
    assert "fingerprint" in reasons[0]
    assert "prompt" in reasons[1]
    assert _embed(tmp_path)[1].computed == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign"])
def test_cache_damaged_file_is_encoded_again_and_named(tmp_path, damage):
    embeddings, _, _ = _embed(tmp_path)
    path = EmbeddingCache(tmp_path, FINGERPRINT).path_of(PROMPTS[1])
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-7],
            "empty": b"",
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "foreign": safetensors.numpy.save({"weight": np.zeros(3)}),
        }[damage]
    )
    repaired, report, calls = _embed(tmp_path)
    assert calls == [[PROMPTS[1]]]
    assert list(report.damaged) == [path]
    assert str(path) in report.damaged[path]
    assert _embed(tmp_path)[1].found == len(PROMPTS)
    np.testing.assert_array_equal(repaired[PROMPTS[1]], embeddings[PROMPTS[1]])


def test_cache_failing_encoder_leaves_no_file_behind(tmp_path):
    def fail(prompts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        EmbeddingCache(tmp_path, FINGERPRINT).embed(PROMPTS, fail)
    assert not list(tmp_path.rglob("*.safetensors*"))


@pytest.mark.parametrize(
    ("embedding", "reason"), [(np.full((2, 4), np.nan), "not finite"), (np.zeros(4), r"shape \(4,\)")]
)
def test_cache_refuses_what_is_no_embedding(tmp_path, embedding, reason):
    with pytest.raises(DataError, match=reason):
        EmbeddingCache(tmp_path, FINGERPRINT).embed(["cup"], lambda prompts: [embedding])
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_cache_of_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(DataError, match="float16"):
        EmbeddingCache(tmp_path, FINGERPRINT, "float16")


def test_cache_files_are_plain_safetensors_that_say_what_they_are(tmp_path):
    _embed(tmp_path)
    with safetensors.safe_open(EmbeddingCache(tmp_path, FINGERPRINT).path_of(PROMPTS[0]), framework="np") as file:
        metadata = file.metadata()
    assert metadata is not None
    assert metadata["prompt"] == PROMPTS[0]
    assert metadata["fingerprint"] == FINGERPRINT
