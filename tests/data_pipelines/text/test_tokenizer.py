"""Prompt cleaning and tokenisation, with tiny tokenizers trained and built on the spot."""

import importlib.util
import io

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from data_pipelines.text.tokenizer import PromptTokenizer, clean_prompt
from wamjax.errors import DataError

SENTENCES = [
    "the robot arm picks up the red cup and puts it on the table",
    "a robot opens the drawer, then closes the drawer with its gripper",
    "the arm moves to the left and the cup falls off the table",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a SentencePiece model and a ``tokenizer.json`` of the same pieces."""
    path = tmp_path_factory.mktemp("tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=36,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (path / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    # As published: the end token comes from the file. What else it says of length must not matter.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=7, pad_id=5)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a  cup\n\ton the\u00a0table \r\n", "a cup on the table"),
        ("salt &amp; pepper &amp;lt;shaker&amp;gt;", "salt & pepper <shaker>"),
        ("<i>cup</i> &amp;lt;3", "<i>cup</i> <3"),
        ("the cafÃ© robot", "the café robot"),
        ("“quoted”", '"quoted"'),
        ("\n", ""),
        ("机器人 抓取 杯子", "机器人 抓取 杯子"),
    ],
)
def test_clean_prompt_repairs_unescapes_and_collapses(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_tokenizer_appends_the_end_and_pads_with_zeros(folder, file):
    tokenizer = PromptTokenizer(folder / file, max_tokens=20)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    tokens = tokenizer(["the  red cup ", "", "a robot"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int32
    assert tokens.truncated == ()
    for row, text in enumerate(["the red cup", "", "a robot"]):
        expected = [*pieces.encode(text), 1]
        assert tokens.input_ids[row].tolist() == expected + [0] * (20 - len(expected))
        assert tokens.attention_mask[row].tolist() == [1] * len(expected) + [0] * (20 - len(expected))


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_tokenizer_cuts_a_long_prompt_and_keeps_the_end(folder, file):
    whole = PromptTokenizer(folder / file)(SENTENCES)
    tokens = PromptTokenizer(folder / file, max_tokens=8)([SENTENCES[0], "cup", SENTENCES[1]])
    assert tokens.truncated == (0, 2)
    assert tokens.input_ids[0].tolist() == [*whole.input_ids[0, :7], 1]
    assert tokens.attention_mask.sum(axis=1).tolist() == [8, whole_length(folder, file, "cup"), 8]
    assert whole.input_ids.shape == (3, 512)


def whole_length(folder, file, prompt):
    return int(PromptTokenizer(folder / file)([prompt]).attention_mask.sum())


def test_tokenizer_of_a_folder_prefers_the_json(folder, tmp_path):
    assert PromptTokenizer(folder).path == folder / "tokenizer.json"
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    assert PromptTokenizer(tmp_path).path == tmp_path / "spiece.model"


def test_tokenizer_fingerprint_is_of_the_content_and_the_length(folder, tmp_path):
    copy = tmp_path / "renamed.json"
    copy.write_bytes((folder / "tokenizer.json").read_bytes())
    original = PromptTokenizer(folder)
    assert PromptTokenizer(copy).fingerprint == original.fingerprint
    assert PromptTokenizer(copy, max_tokens=128).fingerprint != original.fingerprint
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert PromptTokenizer(copy).fingerprint != original.fingerprint


def test_tokenizer_missing_says_which_file_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"does not exist; expected a tokenizer\.json or a spiece\.model"):
        PromptTokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no tokenizer; expected tokenizer\.json or spiece\.model"):
        PromptTokenizer(tmp_path)


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_tokenizer_damaged_is_one_line_with_its_name(folder, tmp_path, file):
    (tmp_path / file).write_bytes((folder / file).read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{file} cannot be read as a") as caught:
        PromptTokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"cup": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(DataError, match="no end token '</s>'"):
        PromptTokenizer(tmp_path)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the parity extra (transformers)")
def test_tokenizer_equals_transformers(folder):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    prompts = [*SENTENCES, "", "cup", "an unknown Ü and </s> inside"]
    for max_tokens in (6, 64):
        expected = reference(prompts, padding="max_length", max_length=max_tokens, truncation=True)
        tokens = PromptTokenizer(folder, max_tokens=max_tokens)(prompts)
        np.testing.assert_array_equal(tokens.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(tokens.attention_mask, expected["attention_mask"])
