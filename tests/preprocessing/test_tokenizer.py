"""The tokenizer: cleaning, true lengths, cutting, words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vctool.errors import ModelError
from vctool.preprocessing.tokenizer import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "catch", "##ing", "fris", "##bee", "!", "[", "]", "sep", "red"]


def wordpiece_folder(folder: Path, *, kind: str = "bert", length: int = 8) -> Path:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    backend = Backend(models.WordPiece({w: i for i, w in enumerate(VOCAB)}, unk_token="[UNK]"))
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    backend.enable_truncation(3)  # a file may carry its own settings; ours win
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"kind": kind, "context_length": length, "pad_id": 0}))
    return folder


def test_pads_to_the_context_length_and_knows_the_true_length(tmp_path: Path) -> None:
    batch = Tokenizer.load(wordpiece_folder(tmp_path)).encode(["a dog", "A dog catching!"])
    assert batch.input_ids_BL.tolist() == [[2, 4, 5, 3, 0, 0, 0, 0], [2, 4, 5, 6, 7, 10, 3, 0]]
    assert batch.input_ids_BL.dtype == np.int64 and batch.attention_mask_BL.dtype == np.int64
    assert batch.length_B.tolist() == [4, 7] == batch.attention_mask_BL.sum(axis=1).tolist()
    assert batch.pieces[0] == ["[CLS]", "a", "dog", "[SEP]"] + ["[PAD]"] * 4
    assert batch.special[0] == [True, False, False, True] + [True] * 4
    assert batch.truncated == [False, False] and batch.dropped == ["", ""]


def test_cutting_keeps_the_end_token_and_says_what_was_cut(tmp_path: Path) -> None:
    batch = Tokenizer.load(wordpiece_folder(tmp_path, length=5)).encode(["a dog catching frisbee !", "a red dog"])
    assert batch.input_ids_BL.tolist() == [[2, 4, 5, 6, 3], [2, 4, 14, 5, 3]]
    assert batch.truncated == [True, False]
    assert batch.dropped == ["ing frisbee !", ""]


def test_word_pieces_are_joined_to_the_words_of_the_text(tmp_path: Path) -> None:
    batch = Tokenizer.load(wordpiece_folder(tmp_path, length=12)).encode(["A dog catching frisbee!"])
    words = [("A", 1, 2), ("dog", 2, 3), ("catching", 3, 5), ("frisbee", 5, 7), ("!", 7, 8)]
    assert [(w.text, w.start, w.stop) for w in batch.words[0]] == words


def test_a_control_token_typed_by_a_user_is_only_letters(tmp_path: Path) -> None:
    batch = Tokenizer.load(wordpiece_folder(tmp_path)).encode(["dog [SEP] a"])
    assert batch.input_ids_BL[0].tolist() == [2, 5, 11, 13, 12, 4, 3, 0]


@pytest.mark.parametrize("text", ["", "  ", "\0", "a\0dog", "\x1b[31m", "🐕‍🦺🥏", "كلب يلتقط", "word " * 500, "\ud83d alone", "x" * 5000])
def test_any_text_is_tokenized(tmp_path: Path, text: str) -> None:
    for kind in ("bert", "clip", "siglip"):
        batch = Tokenizer.load(wordpiece_folder(tmp_path / kind, kind=kind)).encode([text])
        assert batch.input_ids_BL.shape == (1, 8)
        assert 2 <= batch.length_B[0] <= 8
        assert batch.input_ids_BL[0, batch.length_B[0] - 1] == 3


def test_cleaning_follows_the_kind(tmp_path: Path) -> None:
    text = "  A&amp;amp;B  don’t_STOP, ｆｕｌｌ  "
    clean = {k: Tokenizer.load(wordpiece_folder(tmp_path / k, kind=k)).clean(text) for k in ("bert", "clip", "siglip")}
    assert clean == {"bert": text, "clip": "a&b don't_stop, full", "siglip": "ab dont stop full"}


def test_cleaning_equals_open_clip(tmp_path: Path) -> None:
    theirs = pytest.importorskip("open_clip.tokenizer", reason="open_clip is not installed")
    ours = {k: Tokenizer.load(wordpiece_folder(tmp_path / k, kind=k)) for k in ("clip", "siglip")}
    texts = [
        "no way!🥏",
        "Ünïcode &lt;b&gt; &amp;lt;",
        "l’été — ﬁn",
        "tab\tnew\nline\x07",
        "a_b c-d 'e'",
        "ⅫⅣ ＡＢＣ",
        "كلب\u200f x",
        "Ã©tÃ©",
    ]
    for text in texts:
        assert ours["clip"].clean(text) == theirs._clean_lower(text)
        assert ours["siglip"].clean(text) == theirs._clean_canonicalize(text)


def test_clip_ids_equal_open_clip(tmp_path: Path) -> None:
    theirs = pytest.importorskip("open_clip.tokenizer", reason="open_clip is not installed")
    from tokenizers import Regex, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    simple = theirs.SimpleTokenizer()
    vocab = dict(simple.encoder)
    backend = Backend(models.BPE(vocab=vocab, merges=list(simple.bpe_ranks), continuing_subword_prefix="", end_of_word_suffix="</w>"))
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start, end = "<start_of_text>", "<end_of_text>"
    backend.add_special_tokens([start, end])
    backend.post_processor = processors.TemplateProcessing(f"{start} $A {end}", special_tokens=[(s, vocab[s]) for s in (start, end)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "clip", "context_length": 77, "pad_id": 0}')
    texts = ["a dog catching a frisbee", "no way!🥏", "it's 1999, don't", "كلب يلتقط", "&lt;b&gt;", "very long " * 60, "日本語", ""]
    batch = Tokenizer.load(tmp_path).encode(texts)
    assert batch.input_ids_BL.tolist() == simple(texts).tolist()
    assert batch.words[0][-1].text == "frisbee"
    assert "🥏" in batch.words[1][-1].text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", None, "tokenizer_config.json is missing"),
        ("tokenizer_config.json", '{"kind": "bert", "context_length": 8, "pad_idd": 0}', "unknown key 'pad_idd'"),
        ("tokenizer_config.json", '{"kind": "bert"}', "context_length"),
        ("tokenizer_config.json", '{"kind": "bert", "context_length": 1, "pad_id": 0}', "at least 2"),
    ],
)
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    wordpiece_folder(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=said):
        Tokenizer.load(tmp_path)
