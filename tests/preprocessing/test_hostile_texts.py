"""Token ids are open_clip's, one by one, on ten thousand texts that nobody should type."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hostile import ENTITIES, hostile_texts
from numpy.typing import NDArray

from vctool.preprocessing.tokenizer import Tokenizer

pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")


def tokenizer(folder: Path, content: str, kind: str, length: int, pad_id: int) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"kind": kind, "context_length": length, "pad_id": pad_id}))
    return Tokenizer.load(folder)


def expect_equal(ours: NDArray[np.int64], theirs: NDArray[np.int64], texts: list[str]) -> None:
    other = [texts[i] for i in (ours != theirs).any(axis=1).nonzero()[0]]
    assert not other, f"{len(other)} of {len(texts)} differ, the shortest: {sorted(other, key=len)[:5]!r}"


def test_the_texts_hold_every_kind_of_trouble_and_are_the_same_every_time() -> None:
    texts = hostile_texts()
    assert len(texts) == 10_000 and texts == hostile_texts() and len(set(texts)) > 9_800
    joined = "".join(texts)
    for trouble in ("\x00", "\u202e", "👨‍👩‍👧‍👦", "犬", "كلب", "ſ", "\u2028", "Ã©", "</s>", *ENTITIES):
        assert trouble in joined, trouble
    assert max(map(len, texts)) > 1_000 and max(ord(c) for c in joined) > 0x10_0000


@pytest.mark.parametrize("length", [77, 32])
def test_clip_ids_are_open_clips(length: int, tmp_path: Path) -> None:
    """CLIP, PE and MobileCLIP: the vocabulary that open_clip carries, at both of their lengths."""
    from open_clip.tokenizer import SimpleTokenizer

    from vctool.models.open_clip_backbone import clip_tokenizer_json

    texts = hostile_texts(10_000 if length == 77 else 500)
    ours = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", length, 0).encode(texts)
    theirs = SimpleTokenizer(context_length=length)(texts).numpy()
    expect_equal(ours.input_ids_BL, theirs, texts)
    # The true length: up to and with the first end token, which open_clip pools at.
    ends = (theirs == theirs.max(axis=1, keepdims=True)).argmax(axis=1)
    assert (ours.length_B == ends + 1).all() and sum(ours.truncated) > len(texts) // 20


def test_plain_text_takes_the_short_way_to_the_same_place(tmp_path: Path) -> None:
    """Without ftfy and regex, whose imports take longer than a query: only where these would change nothing."""
    import subprocess
    import sys

    import ftfy
    from open_clip.tokenizer import SimpleTokenizer

    from vctool.models.open_clip_backbone import clip_tokenizer_json

    rng = random.Random(3)
    printable = [chr(code) for code in range(32, 127) if chr(code) != "&"]
    texts = ["".join(rng.choices(printable, k=rng.randint(1, 60))) for _ in range(3_000)] + list(printable)
    texts += [f"{a}{b}" for a in "'_ <#" for b in printable]
    assert all(ftfy.fix_text(text) == text for text in texts)
    ours = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", 77, 0).encode(texts)
    expect_equal(ours.input_ids_BL, SimpleTokenizer()(texts).numpy(), texts)
    code = (
        "import sys; from vctool.preprocessing.tokenizer import Tokenizer\n"
        f"t = Tokenizer.load({str(tmp_path)!r}); t.encode(['a dog!'])\n"
        "assert not {'ftfy', 'regex'} & set(sys.modules); t.encode(['caf\\xe9'])\n"
        "assert {'ftfy', 'regex'} < set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_clip_ids_are_open_clips_on_every_character_there_is(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    from vctool.models.open_clip_backbone import clip_tokenizer_json

    ours, theirs = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", 77, 0), SimpleTokenizer()
    texts = [
        "".join(f"a'{chr(code)}7 " for code in range(start, min(start + 4, 0x110000)) if not 0xD800 <= code < 0xE000)
        for start in range(0, 0x110000, 4)
    ]
    for begin in range(0, len(texts), 5_000):
        part = texts[begin : begin + 5_000]
        expect_equal(ours.encode(part).input_ids_BL, theirs(part).numpy(), part)


def test_a_control_token_that_is_typed_is_letters_here_and_ends_the_text_there(tmp_path: Path) -> None:
    """The one departure: whoever types "<end_of_text>" means these letters; open_clip stops reading there."""
    from open_clip.tokenizer import SimpleTokenizer

    from vctool.models.open_clip_backbone import clip_tokenizer_json

    (ours,) = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", 77, 0).encode(["a <end_of_text> dog"]).input_ids_BL
    (theirs,) = SimpleTokenizer()(["a <end_of_text> dog"]).tolist()
    assert theirs[2] == 49407 and ours.tolist().count(49407) == 1 and ours.tolist().count(0) == 77 - 11


def test_half_a_character_is_read_as_the_sign_for_one_that_cannot_be_read(tmp_path: Path) -> None:
    from vctool.models.open_clip_backbone import clip_tokenizer_json

    both = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", 77, 0).encode(["\ud83d dog", "\ufffd dog"])
    assert both.input_ids_BL[0].tolist() == both.input_ids_BL[1].tolist()


def test_words_of_a_hostile_text_are_pieces_of_it_in_order(tmp_path: Path) -> None:
    from vctool.models.open_clip_backbone import clip_tokenizer_json

    reader = tokenizer(tmp_path, json.dumps(clip_tokenizer_json()), "clip", 77, 0)
    texts = hostile_texts(600)
    batch = reader.encode(texts)
    for row, text in enumerate(texts):
        clean, at = reader.clean(text), 0
        for word in batch.words[row]:
            at = clean.find(word.text, at)
            assert at >= 0, (text, word)
        stops = [0, *(word.stop for word in batch.words[row])]
        assert stops == sorted(stops) and stops[-1] <= batch.length_B[row]
        if batch.truncated[row]:
            assert batch.dropped[row] and clean.endswith(batch.dropped[row])


SENTENCES = "a dog catches the red frisbee|two children run on the beach|собака бежит по пляжу|犬が走る|größe élève naïve|1999 2024 cars"


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small SentencePiece models as SigLIP (T5's form: unigram) and SigLIP 2 (Gemma's: byte pairs, bytes as a fallback) have them,
    turned into `tokenizer.json` by the library that open_clip tokenizes with."""
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece trains the vocabularies of this test (the extra `dev`)")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is what open_clip tokenizes SigLIP's texts with (the extra `dev`)"
    )
    folder, rng = tmp_path_factory.mktemp("spm"), random.Random(0)
    words = [word for line in SENTENCES.split("|") for word in line.split()]
    corpus = [" ".join(rng.choices(words, k=8)) for _ in range(1_500)] + [
        "".join(chr(rng.randint(32, 600)) for _ in range(20)) for _ in range(400)
    ]
    train = spm.SentencePieceTrainer.train
    shared = {"minloglevel": 2, "hard_vocab_limit": False, "character_coverage": 0.9995}
    for name in ("siglip", "siglip2"):
        (folder / name).mkdir()
    train(
        sentence_iterator=iter(corpus), model_prefix=str(folder / "siglip" / "spiece"), vocab_size=800, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **shared,
    )  # fmt: skip
    train(
        sentence_iterator=iter(corpus), model_prefix=str(folder / "siglip2" / "tokenizer"), vocab_size=1_200, model_type="bpe",
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=["<mask>"], byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True, **shared,
    )  # fmt: skip
    settings = {
        "siglip": {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "legacy": False, "pad_token": "</s>", "eos_token": "</s>"},
        "siglip2": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "padding_side": "right"},
    }
    for name, values in settings.items():
        (folder / name / "tokenizer_config.json").write_text(json.dumps(values))
        transformers.AutoTokenizer.from_pretrained(str(folder / name)).save_pretrained(folder / f"{name}-saved")
    return folder


@pytest.mark.parametrize(("name", "pad_id"), [("siglip", 1), ("siglip2", 0)])
def test_siglip_ids_are_open_clips(name: str, pad_id: int, sentencepiece_folder: Path, tmp_path: Path) -> None:
    from open_clip.tokenizer import HFTokenizer

    texts = hostile_texts()
    theirs = HFTokenizer(str(sentencepiece_folder / f"{name}-saved"), context_length=64, clean="canonicalize")(texts).numpy()
    content = (sentencepiece_folder / f"{name}-saved" / "tokenizer.json").read_text(encoding="utf-8")
    ours = tokenizer(tmp_path, content, "siglip", 64, pad_id).encode(texts)
    expect_equal(ours.input_ids_BL, theirs, texts)
    assert (theirs[:, -1] == 1).sum() > 100 and sum(ours.truncated) > 500  # long ones are cut, and still end with the end token


def test_word_pieces_are_those_of_the_library_that_trained_with_them(tmp_path: Path) -> None:
    """BERT's, from the sentence encoder's own file; that encoder has no cleaning before its normaliser."""
    transformers = pytest.importorskip("transformers", reason="transformers reads the encoder's files as its authors did (the extra `dev`)")
    from vctool.data.pinned import MINILM_TOKENIZER, minilm_tokenizer
    from vctool.errors import ModelError

    try:
        source = MINILM_TOKENIZER.locate().parent
    except ModelError as problem:
        pytest.skip(str(problem))
    texts = hostile_texts()
    library = transformers.AutoTokenizer.from_pretrained(str(source))
    theirs = library(texts, padding="max_length", truncation=True, max_length=64, return_tensors="np")
    ours = tokenizer(tmp_path, minilm_tokenizer(), "bert", 64, 0).encode(texts)
    plain = [i for i, t in enumerate(texts) if not any(mark in t for mark in ("[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]"))]
    assert len(plain) > 8_000  # typed control tokens are letters here
    expect_equal(ours.input_ids_BL[plain], theirs["input_ids"][plain], [texts[i] for i in plain])
    expect_equal(ours.attention_mask_BL[plain], theirs["attention_mask"][plain], [texts[i] for i in plain])
