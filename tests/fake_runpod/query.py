"""A reader for the part of GraphQL that the `runpod` package writes.

That is one operation with one root field.
"""

import re
from dataclasses import dataclass, field
from typing import Any

SKIP = r"(?:[\s,]|#[^\n]*)*"
TOKEN = re.compile(
    SKIP + r'("(?:[^"\\\n]|\\.)*"|-?\d+\.?\d*(?:[eE][+-]?\d+)?|[_A-Za-z]\w*|[{}()\[\]:!$=])'
)
WORDS = {"true": True, "false": False, "null": None}


class BadQueryError(Exception):
    """A query the server does not carry out at all: HTTP 400."""

    def __init__(self, message: str, code: str = "GRAPHQL_PARSE_FAILED") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Field:
    """A field with its arguments and what is selected of it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    selected: "list[Field]" = field(default_factory=list)

    @property
    def input(self) -> dict[str, Any]:
        return self.arguments.get("input") or {}


def parse(text: str, variables: dict[str, Any] | None = None) -> Field:
    """The root field. Raises BadQueryError with the place where the text is no GraphQL."""
    reader = _Reader(text, variables or {})
    root = reader.operation()
    if len(root) != 1:
        raise BadQueryError("the fake takes one root field", "FAKE")
    return root[0]


class _Reader:
    def __init__(self, text: str, variables: dict[str, Any]) -> None:
        self._variables = variables
        self._tokens, at = [], 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if not match:
                raise BadQueryError(
                    f"Syntax Error: Unexpected character: {text[at:].lstrip()[:1]!r}"
                )
            at = match.end()
            self._tokens.append(match[1])

    def _peek(self) -> str:
        return self._tokens[0] if self._tokens else "<EOF>"

    def _take(self, expected: str | None = None) -> str:
        token = self._peek()
        if token == "<EOF>" or expected not in (None, token):
            wanted = f"Expected {expected!r}, found" if expected else "Unexpected"
            raise BadQueryError(f"Syntax Error: {wanted} {token!r}")
        return self._tokens.pop(0)

    def _name(self) -> str:
        token = self._take()
        if not re.fullmatch(r"[_A-Za-z]\w*", token):
            raise BadQueryError(f"Syntax Error: Expected Name, found {token!r}")
        return token

    def operation(self) -> list[Field]:
        if self._peek() in ("query", "mutation"):
            self._take()
            if self._peek() not in ("{", "("):
                self._name()
            if self._peek() == "(":  # the types of the variables
                while self._take() != ")":
                    pass
        root = self._selection()
        if self._tokens:
            raise BadQueryError(f"Syntax Error: Unexpected {self._peek()!r}")
        return root

    def _selection(self) -> list[Field]:
        self._take("{")
        fields = []
        while self._peek() != "}":
            fields.append(self._field())
        self._take("}")
        return fields

    def _field(self) -> Field:
        one = Field(self._name())
        if self._peek() == "(":
            one.arguments = self._pairs("(", ")")
        if self._peek() == "{":
            one.selected = self._selection()
        return one

    def _pairs(self, opening: str, closing: str) -> dict[str, Any]:
        self._take(opening)
        pairs = {}
        while self._peek() != closing:
            name = self._name()
            self._take(":")
            pairs[name] = self._value()
        self._take(closing)
        return pairs

    def _value(self) -> Any:
        token = self._peek()
        if token == "{":
            return self._pairs("{", "}")
        if token == "[":
            self._take()
            items = []
            while self._peek() != "]":
                items.append(self._value())
            self._take()
            return items
        self._take()
        if token == "$":
            return self._variables.get(self._name())
        if token.startswith('"'):
            return token[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        if re.match(r"-?\d", token):
            return float(token) if re.search(r"[.eE]", token) else int(token)
        if re.fullmatch(r"[_A-Za-z]\w*", token):
            return WORDS.get(token, token)  # or an enum
        raise BadQueryError(f"Syntax Error: Unexpected {token!r}")
