"""Prompts to token ids, from a tokenizer file on this machine; nothing is ever fetched.

Owns the cleaning that Wan applies to a prompt, the two file formats, and the padding. Does not know the encoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
import sentencepiece
import tokenizers

from wamjax.errors import DataError

MAX_TOKENS = 512  # Wan 2.1, wan/configs/shared_config.py: text_len
PAD_ID = 0  # google/umt5-xxl, config.json: pad_token_id
END_TOKEN = "</s>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")  # in a folder, the first that is there


def clean_prompt(prompt: str) -> str:
    """Returns ``prompt`` as Wan's tokenizer cleans it: broken Unicode repaired, HTML unescaped, whitespace collapsed.

    HTML is unescaped twice, because scraped captions are often escaped twice.

    Source: Wan 2.1, wan/modules/tokenizers.py, ``clean='whitespace'``; diffusers, ``prompt_clean`` of its pipelines.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", text).strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids of prompts.

    Attributes:
      input_ids: int32 ``[b l]``: tokens, the end token, then ``PAD_ID``.
      attention_mask: int32 ``[b l]``: 1 up to the end token, 0 after it.
      truncated: Places in the list of prompts of those that were too long and lost their end.
    """

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32]
    truncated: tuple[int, ...]


class PromptTokenizer:
    """Tokenises prompts as Wan does: cleaned, an end token appended, cut and padded to ``max_tokens``.

    Attributes:
      path: The file it was read from.
      max_tokens: Length l of every row.
      fingerprint: Hash of the file and the length: equal fingerprints give equal ids.
    """

    def __init__(self, path: str | Path, max_tokens: int = MAX_TOKENS) -> None:
        """Reads a tokenizer.

        Args:
          path: A ``tokenizer.json`` (of ``tokenizers``), a SentencePiece ``.model``, or a folder with one of them.
          max_tokens: Length of every row.

        Raises:
          DataError: There is no such file, it cannot be read, or it has no end token.
        """
        self.path, self.max_tokens = _find_file(Path(path)), max_tokens
        content = self.path.read_bytes()
        self.fingerprint = hashlib.sha256(content + f"\n{max_tokens}".encode()).hexdigest()
        read = _read_json if self.path.suffix == ".json" else _read_sentencepiece
        try:
            self._encode, end_id = read(content)
        except Exception as error:  # both libraries raise plain Exceptions for a damaged file
            kind = "a tokenizer.json" if self.path.suffix == ".json" else "a SentencePiece model"
            raise DataError(f"{self.path} cannot be read as {kind}: {' '.join(str(error).split())}") from error
        if end_id is None:
            raise DataError(f"{self.path} has no end token {END_TOKEN!r}; expected the tokenizer of UMT5 or another T5")
        self._end_id = end_id

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokenises ``prompts``; those of more than ``max_tokens - 1`` tokens keep their first ones."""
        input_ids = np.full((len(prompts), self.max_tokens), PAD_ID, np.int32)
        attention_mask = np.zeros_like(input_ids)
        truncated = []
        for row, prompt in enumerate(prompts):
            ids = self._encode(clean_prompt(prompt))
            if len(ids) > self.max_tokens - 1:
                truncated.append(row)
            ids = [*ids[: self.max_tokens - 1], self._end_id]
            input_ids[row, : len(ids)], attention_mask[row, : len(ids)] = ids, 1
        return Tokens(input_ids=input_ids, attention_mask=attention_mask, truncated=tuple(truncated))


def _find_file(path: Path) -> Path:
    """Returns the tokenizer file that ``path`` means."""
    if path.is_file():
        return path
    if path.is_dir():
        for name in TOKENIZER_FILES:
            if (path / name).is_file():
                return path / name
        raise DataError(f"folder {path} has no tokenizer; expected {' or '.join(TOKENIZER_FILES)} (of google/umt5-xxl)")
    raise DataError(f"tokenizer {path} does not exist; expected a {' or a '.join(TOKENIZER_FILES)}, or their folder")


def _read_json(content: bytes) -> tuple[Callable[[str], list[int]], int | None]:
    """Returns text -> ids without special tokens, and the end token's id."""
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    # The file may bring its own; what is cut and padded here must not depend on it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id(END_TOKEN)


def _read_sentencepiece(content: bytes) -> tuple[Callable[[str], list[int]], int | None]:
    """The same for a SentencePiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    end_id = processor.eos_id()
    return processor.encode, end_id if end_id >= 0 else None
