"""From text to token ids, without torch: a Hugging Face `tokenizer.json` plus the cleaning its model was trained with.

Cleaning is part of a tokenizer: CLIP's ids differ on a third of unusual captions if ftfy and HTML unescaping are left out.
So is the splitting into words: CLIP's is a pattern of the `regex` module that ignores case, and the engine inside `tokenizers` knows other
letters (of an older Unicode) and other folds ("'ſ"), so for CLIP the words are split here and handed over split. Padding and cutting are
done here, so that the true length is known and never guessed from `ids != pad` (CLIP's pad id 0 is also the token "!").

Shape letters: B texts, L padded length (`context_length`).
"""

from __future__ import annotations

import dataclasses
import html
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool import config
from vctool.errors import ModelError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PAD_PIECE = "[PAD]"
# As open_clip's, without its two control tokens: a user who types "<end_of_text>" means these letters.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The same on plain text, as most queries are: it needs no `regex`, whose import takes longer than a query's tokens.
PLAIN_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")


@dataclass(frozen=True)
class TokenizerConfig:
    """`tokenizer_config.json`: what `tokenizer.json` does not say.

    kind: the cleaning before tokenization. `clip`: ftfy, HTML unescaping, single spaces, lower case. `siglip`: the same, and
    punctuation removed. `bert`: none (the tokenizer's own normaliser does it). context_length: padded length L in tokens.
    pad_id: the id at positions past the text.
    """

    kind: Literal["bert", "clip", "siglip"]
    context_length: int
    pad_id: int


@dataclass(frozen=True)
class Word:
    """One word of a text as a reader sees it: the tokens `start <= t < stop` together."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized texts, padded to L.

    input_ids_BL, attention_mask_BL: int64, mask 1 on true tokens. length_B: true lengths, special tokens included.
    pieces: L strings a text, pads as "[PAD]". special: L flags a text, true on start/end tokens and pads. words: the words of
    each text. truncated: whether the end was cut off; dropped: the text that was cut ("" where nothing was).
    """

    input_ids_BL: NDArray[np.int64]
    attention_mask_BL: NDArray[np.int64]
    length_B: NDArray[np.int64]
    pieces: list[list[str]]
    special: list[list[bool]]
    words: list[list[Word]]
    truncated: list[bool]
    dropped: list[str]


@dataclass(frozen=True)
class _Encoded:
    """One text's tokens: where each lies in the cleaned text, and the number of its word (None for start and end)."""

    ids: Sequence[int]
    tokens: Sequence[str]
    offsets: Sequence[tuple[int, int]]
    word_ids: Sequence[int | None]
    special: Sequence[int]


class Tokenizer:
    """A model directory's tokenizer. Build it with `Tokenizer.load`."""

    def __init__(self, backend: Any, settings: TokenizerConfig) -> None:
        if settings.context_length < 2:
            raise ModelError(f"{CONFIG_FILE}: context_length is {settings.context_length}, expected at least 2")
        backend.no_padding()
        backend.no_truncation()
        # A user who types "<end_of_text>" means these letters: read as the control token it would end the query there.
        backend.encode_special_tokens = True
        self._backend = backend
        self._splits = settings.kind == "clip" and type(backend.model).__name__ == "BPE"
        if self._splits:
            from tokenizers import pre_tokenizers

            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        self.settings = settings

    @classmethod
    def load(cls, model_dir: str | Path) -> Tokenizer:
        """Read `tokenizer.json` and `tokenizer_config.json` of a model directory. Raises ModelError if either is unusable."""
        from tokenizers import Tokenizer as Backend

        folder = Path(model_dir)
        try:
            settings = config.read_json(TokenizerConfig, folder / CONFIG_FILE)
        except TypeError:
            wanted = ", ".join(f.name for f in dataclasses.fields(TokenizerConfig))
            raise ModelError(f"{folder / CONFIG_FILE}: a key is missing", f"it needs {wanted}: export the model again") from None
        path = folder / TOKENIZER_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ModelError(f"{path} is missing", "the model directory is incomplete: fetch or export it again") from None
        except (OSError, UnicodeDecodeError) as problem:
            raise ModelError(f"{path} cannot be read: {problem}", "fetch or export the model directory again") from None
        try:
            backend = Backend.from_str(text)
        except Exception as problem:  # the library raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {problem}", "fetch or export the model directory again") from None
        return cls(backend, settings)

    def clean(self, text: str) -> str:
        """The text as the tokenizer sees it, cleaned the way `settings.kind` was trained."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # argv may hold lone surrogates
        if self.settings.kind == "bert":
            return text
        if not (text.isascii() and text.isprintable() and "&" not in text):  # plain text needs no mending: ftfy is slow to import
            import ftfy

            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = text.strip()
        if self.settings.kind == "siglip":
            text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.split()).lower()

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenize; each text is padded or cut to L, keeping its end token (EOS, SEP) last when cut.

        Accepts any string, an empty one too (it becomes special tokens alone).
        """
        cleaned = [self.clean(text) for text in texts]
        encodings = self._encodings(cleaned)
        length = self.settings.context_length
        count = len(cleaned)
        input_ids_BL = np.full((count, length), self.settings.pad_id, dtype=np.int64)
        attention_mask_BL = np.zeros((count, length), dtype=np.int64)
        pieces, special, words, dropped = [], [], [], []
        for row, (text, encoding) in enumerate(zip(cleaned, encodings, strict=True)):
            kept = _kept(encoding.special, length)
            ids = encoding.ids
            input_ids_BL[row, : len(kept)] = [ids[t] for t in kept]
            attention_mask_BL[row, : len(kept)] = 1
            pads = length - len(kept)
            pieces.append([encoding.tokens[t] for t in kept] + [PAD_PIECE] * pads)
            special.append([bool(encoding.special[t]) for t in kept] + [True] * pads)
            words.append(_words(text, encoding, kept))
            dropped.append(_dropped(text, encoding, kept))
        return TokenBatch(
            input_ids_BL=input_ids_BL,
            attention_mask_BL=attention_mask_BL,
            length_B=attention_mask_BL.sum(axis=1),
            pieces=pieces,
            special=special,
            words=words,
            truncated=[len(e.ids) > length for e in encodings],
            dropped=dropped,
        )

    def _encodings(self, cleaned: Sequence[str]) -> list[_Encoded]:
        if not self._splits:
            return [
                _Encoded(e.ids, e.tokens, e.offsets, e.word_ids, e.special_tokens_mask) for e in self._backend.encode_batch(list(cleaned))
            ]
        spans = [[match.span() for match in _clip_words(text).finditer(text)] for text in cleaned]
        words = [[text[begin:end] for begin, end in row] for text, row in zip(cleaned, spans, strict=True)]
        found = []
        for row, e in zip(spans, self._backend.encode_batch(words, is_pretokenized=True), strict=True):
            starts = [0 if word is None else row[word][0] for word in e.word_ids]  # it counts from the start of each word
            offsets = [(start + begin, start + end) for start, (begin, end) in zip(starts, e.offsets, strict=True)]
            found.append(_Encoded(e.ids, e.tokens, offsets, e.word_ids, e.special_tokens_mask))
        return found


def _clip_words(text: str) -> Any:
    """The pattern that splits a cleaned text into words as open_clip does."""
    if text.isascii():
        return PLAIN_WORDS
    import regex

    return regex.compile(CLIP_WORDS, regex.IGNORECASE)  # it keeps compiled patterns


def _kept(special_mask: Sequence[int], length: int) -> list[int]:
    """Indices of the tokens that stay: all, or the first L - n and the n trailing special tokens."""
    total = len(special_mask)
    if total <= length:
        return list(range(total))
    trailing = 0
    while trailing < min(total, length - 1) and special_mask[total - 1 - trailing]:
        trailing += 1
    return list(range(length - trailing)) + list(range(total - trailing, total))


def _words(text: str, encoding: _Encoded, kept: Sequence[int]) -> list[Word]:
    """Join word pieces. A word ends at white space or where the tokenizer's own word number changes."""
    found: list[Word] = []
    spans: list[tuple[int, int]] = []
    last_id: int | None = None
    for position, token in enumerate(kept):
        if encoding.special[token]:
            last_id = None
            continue
        begin, end = encoding.offsets[token]
        gap = (bool(spans) and any(c.isspace() for c in text[spans[-1][1] : begin])) or text[begin : begin + 1].isspace()
        joins = bool(found) and encoding.word_ids[token] is not None and encoding.word_ids[token] == last_id and not gap
        if joins:
            begin, end = spans[-1][0], max(spans[-1][1], end)
            spans[-1] = (begin, end)
            found[-1] = Word(text[begin:end].strip(), found[-1].start, position + 1)
        else:
            spans.append((begin, end))
            found.append(Word(text[begin:end].strip() or encoding.tokens[token], position, position + 1))
        last_id = encoding.word_ids[token]
    return found


def _dropped(text: str, encoding: _Encoded, kept: Sequence[int]) -> str:
    if len(kept) == len(encoding.ids):
        return ""
    inside = set(kept)
    lost = [t for t in range(len(encoding.ids)) if t not in inside and not encoding.special[t]]
    return text[encoding.offsets[lost[0]][0] :].strip() if lost else ""
