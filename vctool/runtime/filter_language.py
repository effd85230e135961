"""The language of `--where`: comparisons of a clip's metadata, joined by and, or, not. Parsed here, never evaluated as code.

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | comparison
    comparison  = key ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | key [ "not" ] "in" "(" value { "," value } ")"
                | key [ "not" ] ( "contains" | "like" ) text
                | key "is" [ "not" ] "missing"
    key         = name { "." name }        name = letters, digits, _ and - | `anything`
    value       = number | text | "true" | "false"

docs/guide.md says what each of them means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vctool.errors import UsageProblem

Value = float | str | bool
Test = Callable[[Mapping[str, Any]], bool]

_LONGEST = 10_000  # characters
_DEEPEST = 50  # parentheses and nots in one another
_KEYWORDS = ("and", "or", "not", "in", "contains", "like", "is", "missing", "true", "false")
_OPERATORS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<name>[^\W\d][\w-]*|`[^`]+`)
    |(?P<sign><=|>=|<>|!=|==|[=<>().,]))""",
    re.VERBOSE | re.DOTALL,
)
_ABSENT = object()


@dataclass(frozen=True)
class Filter:
    """A parsed expression. keys: the metadata it asks for, each as the names on the way down; call it with a clip's metadata."""

    text: str
    keys: tuple[tuple[str, ...], ...]
    test: Test

    def __call__(self, meta: Mapping[str, Any]) -> bool:
        return self.test(meta)


def parse_filter(text: str) -> Filter:
    """Parse an expression. Raises UsageProblem, with a caret under the place, for anything that is not one."""
    if len(text) > _LONGEST:
        raise UsageProblem(f"the filter has {len(text):,} characters", f"at most {_LONGEST:,}; give a list of clips with --ids")
    parser = _Parser(text)
    test = parser.expression(0)
    parser.end()
    return Filter(text, tuple(dict.fromkeys(parser.keys)), test)


def look_up(meta: Mapping[str, Any], key: tuple[str, ...]) -> Any:
    """The value at `key`; a marker that equals nothing if there is none. null counts as none."""
    value: Any = meta
    for name in key:
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return _ABSENT if value is None else value


def has(meta: Mapping[str, Any], key: tuple[str, ...]) -> bool:
    """Whether there is a value at `key`."""
    return look_up(meta, key) is not _ABSENT


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, keyword, sign, end
    text: str
    start: int
    value: Value = ""


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._next = 0
        self.keys: list[tuple[str, ...]] = []

    def expression(self, depth: int) -> Test:
        return self._joined("or", depth, any)

    def end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            raise self._problem(token, "expected `and`, `or` or the end")

    def _joined(self, word: str, depth: int, fold: Callable[[Iterator[bool]], bool]) -> Test:
        def part() -> Test:
            return self._joined("and", depth, all) if word == "or" else self._negation(depth)

        tests = [part()]
        while self._accept("keyword", word):
            tests.append(part())
        return tests[0] if len(tests) == 1 else lambda meta: fold(test(meta) for test in tests)

    def _negation(self, depth: int) -> Test:
        token = self._peek()
        if depth > _DEEPEST:
            raise self._problem(token, f"more than {_DEEPEST} parentheses in one another")
        if self._accept("keyword", "not"):
            inner = self._negation(depth + 1)
            return lambda meta: not inner(meta)
        if self._accept("sign", "("):
            inner = self.expression(depth + 1)
            self._require("sign", ")", "expected `and`, `or` or `)`")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        key = self._key()
        token = self._peek()
        if token.kind == "sign" and token.text in _OPERATORS:
            self._next += 1
            return _compared(key, _OPERATORS[token.text], self._value())
        if self._accept("keyword", "is"):
            wanted = self._accept("keyword", "not")
            self._require("keyword", "missing", "expected `missing` (or `not missing`)")
            return lambda meta: has(meta, key) == wanted
        negated = self._accept("keyword", "not")
        test = self._membership(key, negated)
        return (lambda meta: has(meta, key) and not test(meta)) if negated else test

    def _membership(self, key: tuple[str, ...], negated: bool) -> Test:
        if self._accept("keyword", "in"):
            self._require("sign", "(", "expected `(` and the values")
            tests = [_compared(key, "=", self._value())]
            while self._accept("sign", ","):
                tests.append(_compared(key, "=", self._value()))
            self._require("sign", ")", "expected `,` or `)`")
            return lambda meta: any(test(meta) for test in tests)
        if self._accept("keyword", "contains"):
            return _contains(key, self._value())
        if self._accept("keyword", "like"):
            return _like(key, self._text_value())
        choice = "`in`, `contains` or `like`"
        raise self._problem(self._peek(), f"expected {choice}" if negated else f"expected a comparison: =, !=, <, <=, >, >=, is, {choice}")

    def _key(self) -> tuple[str, ...]:
        names = [self._name("expected a key of the metadata, or `not` or `(`")]
        while self._accept("sign", "."):
            names.append(self._name("expected a name after the dot"))
        self.keys.append(tuple(names))
        return tuple(names)

    def _name(self, problem: str) -> str:
        token = self._peek()
        if token.kind != "name":
            raise self._problem(token, problem)
        self._next += 1
        return token.text.strip("`")

    def _value(self) -> Value:
        token = self._peek()
        if token.kind == "name":
            raise self._problem(token, f'expected a value; a text is written in quotes: "{token.text}"')
        if token.kind not in ("number", "text") and token.text.lower() not in ("true", "false"):
            raise self._problem(token, "expected a number, a text in quotes, true or false")
        self._next += 1
        return token.value

    def _text_value(self) -> str:
        token = self._peek()
        if token.kind != "text":
            raise self._problem(token, 'expected a text in quotes, like "holiday/%"')
        self._next += 1
        return str(token.value)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _accept(self, kind: str, text: str) -> bool:
        token = self._peek()
        found = token.kind == kind and token.text.lower() == text
        self._next += found
        return found

    def _require(self, kind: str, text: str, problem: str) -> None:
        if not self._accept(kind, text):
            raise self._problem(self._peek(), problem)

    def _problem(self, token: _Token, problem: str) -> UsageProblem:
        return self._problem_at(token.start, problem if token.kind != "end" else f"{problem}, the filter ends here")

    def _problem_at(self, place: int, problem: str) -> UsageProblem:
        # One line of the filter, with its line ends and tabs as blanks: the caret must stand below the place.
        line = "".join(" " if c.isspace() else c for c in self._text)
        told = f"the filter is not understood, at character {place + 1}: {problem}"
        found = UsageProblem(told, 'for example: duration < 60 and tag = "sport"')
        found.excerpt = f"  {line}\n  {' ' * place}^"
        return found

    def _scan(self) -> Iterator[_Token]:
        place, end = 0, len(self._text.rstrip())
        while place < end:
            match = _TOKEN.match(self._text, place)
            if match is None:
                start = place + len(self._text[place:]) - len(self._text[place:].lstrip())
                quote = self._text[start] in "\"'`"
                raise self._problem_at(start, "this quote is not closed" if quote else f"{self._text[start]!r} has no meaning here")
            kind, start = str(match.lastgroup), match.start(str(match.lastgroup))
            yield self._token(kind, match[kind], start)
            place = match.end()
        yield _Token("end", "", end)

    @staticmethod
    def _token(kind: str, text: str, start: int) -> _Token:
        if kind == "number":
            return _Token(kind, text, start, float(text))
        if kind == "text":
            return _Token(
                kind, text, start, re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text[1:-1], flags=re.DOTALL)
            )
        if kind == "name" and text.lower() in _KEYWORDS:
            return _Token("keyword", text, start, text.lower() == "true")
        return _Token(kind, text, start)


# --- what the comparisons mean ---------------------------------------------------------------------------------------------


def _each(value: Any) -> list[Any]:
    """A list is tested element by element; anything else is its only element."""
    return value if isinstance(value, list) else [] if value is _ABSENT else [value]


def _compared(key: tuple[str, ...], operator: str, wanted: Value) -> Test:
    kind = bool if isinstance(wanted, bool) else str if isinstance(wanted, str) else (int, float)

    def alike(value: Any) -> bool:
        return isinstance(value, kind) and isinstance(value, bool) == isinstance(wanted, bool)

    tests: dict[str, Callable[[Any], bool]] = {
        "=": lambda value: alike(value) and value == wanted,
        "<": lambda value: alike(value) and value < wanted,
        "<=": lambda value: alike(value) and value <= wanted,
        ">": lambda value: alike(value) and value > wanted,
        ">=": lambda value: alike(value) and value >= wanted,
    }
    if operator == "!=":
        equal = tests["="]
        return lambda meta: has(meta, key) and not any(equal(value) for value in _each(look_up(meta, key)))
    test = tests[operator]
    return lambda meta: any(test(value) for value in _each(look_up(meta, key)))


def _contains(key: tuple[str, ...], wanted: Value) -> Test:
    if not isinstance(wanted, str):
        return _compared(key, "=", wanted)
    part = wanted.casefold()
    return lambda meta: any(isinstance(value, str) and part in value.casefold() for value in _each(look_up(meta, key)))


def _like(key: tuple[str, ...], pattern: str) -> Test:
    matches = _glob(pattern)
    return lambda meta: any(isinstance(value, str) and matches(value) for value in _each(look_up(meta, key)))


def _glob(pattern: str) -> Callable[[str], bool]:
    """Whether a whole text is `pattern`, where % is any text and _ any character; upper and lower case are one.

    Piece by piece from the left, each at its first place: one expression of many `.*` could take forever.
    """
    pieces = [re.compile("".join("." if c == "_" else re.escape(c) for c in p), re.IGNORECASE | re.DOTALL) for p in pattern.split("%")]
    if len(pieces) == 1:
        return lambda text: pieces[0].fullmatch(text) is not None
    lengths = [len(piece) for piece in pattern.split("%")]

    def matches(text: str) -> bool:
        end = len(text) - lengths[-1]
        found = pieces[0].match(text)
        if found is None or end < found.end() or pieces[-1].match(text, end) is None:
            return False
        place = found.end()
        for piece in pieces[1:-1]:
            found = piece.search(text, place, end)
            if found is None:
                return False
            place = found.end()
        return True

    return matches
