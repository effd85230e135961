"""Texts that nobody should type and somebody will: the same ones every time."""

# ruff: noqa: SIM905  (the strings are read by people)
from __future__ import annotations

import random

WORDS = (
    "a dog catches the red frisbee on the beach at sunset while two children run past an old boat it's don't we'll they've i'm he'd you're "
    "naïve café größe élève señor ångström smørrebrød собака бежит по пляжу σκύλος τρέχει 犬が走る 개가 달린다 狗在海滩上跑 "
    "كلب يركض على الشاطئ כלב רץ कुत्ता दौड़ता है สุนัขวิ่ง"
).split()
EMOJI = "🐕 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🥏 ❤️ 🇫🇷 1️⃣ ☃ ™ ♥".split()
ENTITIES = "&amp; &lt;b&gt; &amp;lt; &#39; &#x1F600; &nbsp; &eacute; &amp;amp;amp; &bogus; &# &; &copy &notit;".split()
BROKEN = "Ã©tÃ© â€œquotedâ€\x9d donâ€™t schÃ¶n LÃ¶wenzahn Ð¿Ñ€Ð¸Ð²ÐµÑ‚ ï¬\x81ne".split(" ")
LIGATURES = "ﬁne ﬂower ﬅ ﬆ Ⅻ ①② ｆｕｌｌ　ｗｉｄｔｈ ½ ² ℡ ℌ ẞ ı İ ſ 'ſ 'S 'T K Å ͅ".split(" ")
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000\u200b\u2060\ufeff"
CONTROLS = "\x00\x01\x07\x08\x1b\x7f\x80\x9f\xad\u200c\u200d\u200e\u200f\u202a\u202e\u2066\ufff9\ufffc\ufffd"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿—–…“”‘’«»、。，！？"
MARKUP = [
    "<b>dog</b>",
    "</s>",
    "<pad>",
    "<unk>",
    "[PAD]",
    "[SEP]",
    "[CLS]",
    "<0x41>",
    "▁dog",
    "##ing",
    "<extra_id_0>",
    "http://a.b/c?d=e&f=g#h",
]


def hostile_texts(count: int = 10_000, seed: int = 20_000_101) -> list[str]:
    """`count` texts, no two kinds of trouble alike, some with several; the first ones are empty or all white space."""
    rng = random.Random(seed)
    found = ["", " ", "\n\t", "\x00", "_", "'", "''", "a", "\u200b", "\ufeff", "&", "&amp;", "▁", "_ _", " . "]
    while len(found) < count:
        found.append(_one(rng))
    return found


def _one(rng: random.Random) -> str:
    kind = rng.randrange(12)
    if kind == 0:  # any characters at all, assigned or not
        return "".join(_any(rng) for _ in range(rng.randint(1, 30)))
    if kind == 1:  # letters with heaps of marks
        return "".join(
            chr(rng.randint(0x61, 0x7A)) + "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(0, 4))) for _ in range(15)
        )
    if kind == 2:  # one word, far too long
        return rng.choice(WORDS) * rng.randint(20, 50) + rng.choice(WORDS)
    if kind == 3:  # far too many words
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(60, 200)))
    if kind == 4:  # digits and signs
        return "".join(rng.choice("0123456789.,:-/ %€$°×²٣४") for _ in range(rng.randint(1, 40)))
    pools = [WORDS, WORDS, EMOJI, ENTITIES, BROKEN, LIGATURES, list(PUNCTUATION), list(CONTROLS), MARKUP]
    parts: list[str] = []
    for _ in range(rng.randint(1, 14)):
        word = rng.choice(rng.choice(pools))
        if rng.random() < 0.15:
            word = rng.choice((str.upper, str.title, str.swapcase))(word)
        parts.append(word)
        parts.append(rng.choice(("", " ", " ", " ", "_", "'", rng.choice(SPACES), rng.choice(SPACES) * 3)))
    return "".join(parts)


def _any(rng: random.Random) -> str:
    while True:
        code = rng.choice((rng.randint(0, 0x24F), rng.randint(0, 0xFFFF), rng.randint(0, 0x10FFFF)))
        if not 0xD800 <= code < 0xE000:  # halves of characters: open_clip cannot take them, and a test of their own has them
            return chr(code)
