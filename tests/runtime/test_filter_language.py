"""The filter language: what each comparison means, and where its errors point."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vctool.errors import UsageProblem
from vctool.runtime.filter_language import parse_filter

META: dict[str, Any] = {
    "duration": 42.5,
    "width": 640,
    "tag": "sport",
    "tags": ["sport", "Outdoor", 7],
    "indoor": False,
    "note": None,
    "camera": {"name": "Left one", "lens": {"mm": 35}},
    "odd key": 1,
    "a.b": "dotted",
    "title": "50% off_today",
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("duration < 60", True),
        ("duration<42.5", False),
        ("duration <= 42.5 and duration >= 4.25e1", True),
        ("width = 640", True),
        ("width == 640.0", True),
        ("width != 640", False),
        ("width <> 641", True),
        ("width > -1", True),
        ('tag = "sport"', True),
        ("tag = 'sport'", True),
        ('tag = "Sport"', False),
        ('tag > "soccer"', True),
        ("indoor = false", True),
        ("indoor = TRUE", False),
        # a value of another kind is never equal, smaller or larger
        ('width = "640"', False),
        ('width != "640"', True),
        ("indoor = 0", False),
        ("width < true", False),
        ("tag < 5", False),
        # nothing there: every comparison fails, also the negative ones
        ("missing_key = 1", False),
        ("missing_key != 1", False),
        ("missing_key not in (1, 2)", False),
        ("not missing_key = 1", True),
        ("note = 1", False),
        # lists: any element
        ('tags = "sport"', True),
        ("tags > 6", True),
        ('tags != "sport"', False),
        ('tags contains "door"', True),
        ("tags contains 7", True),
        ('tags not contains "rain"', True),
        # membership, text
        ('tag in ("news", "sport")', True),
        ("width in (1, 2)", False),
        ("width not in (1, 2)", True),
        ('tag contains "PORT"', True),
        ('tag like "s%t"', True),
        ('tag like "sp_rt"', True),
        ('tag like "port"', False),
        ('tag not like "%x%"', True),
        ('title like "50% off_today"', True),
        ('title like "%%today"', True),
        ('tag like "%"', True),
        ('tag like "sport%sport"', False),
        # presence
        ("note is missing", True),
        ("note is not missing", False),
        ("duration is not missing", True),
        ("camera.lens.mm is missing", False),
        ("camera.lens.f is missing", True),
        ("duration.x is missing", True),
        # keys
        ("camera.lens.mm = 35", True),
        ('camera.name contains "left"', True),
        ("`odd key` = 1", True),
        ('`a.b` = "dotted"', True),
        # order of binding, negation, parentheses, case of words
        ("width = 1 or width = 640 and indoor = false", True),
        ("(width = 1 or width = 640) and indoor = true", False),
        ("not width = 1 and width = 640", True),
        ("not (width = 640 and indoor = false)", False),
        ("NOT width = 1 AND Duration IS MISSING", True),
        ("not not width = 640", True),
    ],
)
def test_meaning(text: str, passes: bool) -> None:
    assert parse_filter(text)(META) is passes


@pytest.mark.parametrize(
    ("text", "caret", "told"),
    [
        ("", 0, "expected a key"),
        ("duration", 8, "expected a comparison"),
        ("duration <", 10, "expected a number, a text in quotes"),
        ("duration < sixty", 11, 'a text is written in quotes: "sixty"'),
        ("duration < 60 tag = 1", 14, "expected `and`, `or` or the end"),
        ("60 < duration", 0, "expected a key"),
        ("(a = 1", 6, "expected `and`, `or` or `)`"),
        ("a = 1)", 5, "expected `and`, `or` or the end"),
        ('tag = "sport', 6, "this quote is not closed"),
        ("a = 1 & b = 2", 6, "'&' has no meaning here"),
        ("a in 1", 5, "expected `(` and the values"),
        ("a in (1 2)", 8, "expected `,` or `)`"),
        ("a in ()", 6, "expected a number"),
        ("a is here", 5, "expected `missing`"),
        ("a like 5", 7, "expected a text in quotes"),
        ("a not = 5", 6, "expected `in`, `contains` or `like`"),
        ("a. = 5", 3, "expected a name after the dot"),
        ("a = 1 and", 9, "the filter ends here"),
        ("a = 1.2.3", 4, "has no meaning here"),
        ("a = __import__('os')", 4, "a text is written in quotes"),
    ],
)
def test_an_error_points_at_its_place(text: str, caret: int, told: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_filter(text)
    assert told in caught.value.message and f"at character {caret + 1}:" in caught.value.message
    assert caught.value.excerpt == f"  {text}\n{' ' * (caret + 2)}^"


def test_depth_and_length_have_an_end() -> None:
    assert parse_filter("(" * 40 + "a = 1" + ")" * 40)({"a": 1})
    for text in ("(" * 100_000, "(" * 60 + "a = 1" + ")" * 60, "not " * 60 + "a = 1", "a = 1 or " * 5000 + "a = 1"):
        with pytest.raises(UsageProblem):
            parse_filter(text)


def test_a_pattern_of_many_wildcards_takes_no_time() -> None:
    assert not parse_filter('t like "' + "%a" * 60 + '%b"')({"t": "a" * 20_000})


def test_escapes_in_texts() -> None:
    assert parse_filter(r'''t = "say \"hi\"\n"''')({"t": 'say "hi"\n'})
    assert parse_filter(r"t = 'it\'s'")({"t": "it's"})


def oracle(tree: Any, meta: dict[str, Any]) -> bool:
    """The same expression as nested tuples, by Python's own operators."""
    match tree:
        case ("and", left, right):
            return oracle(left, meta) and oracle(right, meta)
        case ("or", left, right):
            return oracle(left, meta) or oracle(right, meta)
        case ("not", inner):
            return not oracle(inner, meta)
        case (key, sign, number):
            compared = {"<": float.__lt__, ">=": float.__ge__, "=": float.__eq__, "!=": float.__ne__}
            return key in meta and compared[sign](float(meta[key]), float(number))
    raise AssertionError(tree)


def written(tree: Any, generator: random.Random) -> str:
    match tree:
        case ("not", inner):
            return f"not ({written(inner, generator)})"
        case ("and" | "or" as word, left, right):
            text = f"({written(left, generator)}) {word} ({written(right, generator)})"
            return f"({text})" if generator.random() < 0.5 else text
    return f"{tree[0]} {tree[1]} {tree[2]}"


def grown(generator: random.Random, depth: int) -> Any:
    kind = generator.random()
    if depth == 0 or kind < 0.3:
        return (generator.choice("abc"), generator.choice(["<", ">=", "=", "!="]), generator.randint(0, 3))
    if kind < 0.5:
        return ("not", grown(generator, depth - 1))
    return (generator.choice(["and", "or"]), grown(generator, depth - 1), grown(generator, depth - 1))


def test_random_expressions_mean_what_python_means() -> None:
    generator = random.Random(3)
    for _ in range(300):
        tree = grown(generator, 5)
        passes = parse_filter(written(tree, generator))
        for _ in range(5):
            meta = {key: generator.randint(0, 3) for key in "abc" if generator.random() < 0.7}
            assert passes(meta) == oracle(tree, meta), written(tree, generator)


def test_random_characters_are_an_expression_or_an_error() -> None:
    generator = random.Random(4)
    parts = ["a", "b.c", "and", "or", "not", "in", "is", "missing", "(", ")", ",", "=", "<", '"x"', "1", "'", "`k`", "%", "\n", "like", "é"]
    for _ in range(2000):
        text = " ".join(generator.choices(parts, k=generator.randint(1, 8)))
        try:
            passes = parse_filter(text)
        except UsageProblem:
            continue
        assert passes({"a": 1, "b": {"c": "x"}, "k": None}) in (True, False)
