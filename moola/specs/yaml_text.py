"""YAML from a person, within bounds: size, depth, and no value that stands for another."""

import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml

from moola.errors import DataError
from moola.text import shortened

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_DIGITS = 400  # of a number: more than a float can hold


class BoundedLoader(yaml.SafeLoader):
    """Refuses aliases, by which a short text becomes a value of any size, and deep nesting."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._refuse("aliases (*name) are not taken")
        if self._depth >= MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels")

        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and _is_long_number(node):
            problem = f"a number of more than {MAX_DIGITS} digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def _refuse(self, problem: str) -> NoReturn:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _is_long_number(node: yaml.ScalarNode) -> bool:
    is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    return is_number and len(node.value) > MAX_DIGITS


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises DataError that names the fault, its line and column."""
    if len(text) > MAX_FILE_BYTES:
        raise DataError(f"YAML of at most {MAX_FILE_BYTES:,} characters, got {len(text):,}")
    try:
        return yaml.load(text, BoundedLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise DataError(f"{shortened(problem)}{place}") from error
    except yaml.YAMLError as error:
        raise DataError(shortened(str(error))) from error
    # The loader raises these for a tag that its value does not fit, such as `!!bool x`.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"a value does not fit its type: {shortened(str(error))}") from error


def read_small_text(path: Path) -> str:
    """The text of a regular file of at most a megabyte. Raises DataError, without the path."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it must be a regular file, no folder, pipe or device")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(
                f"it must have at most {MAX_FILE_BYTES:,} bytes, it has {status.st_size:,}"
            )
        return path.read_bytes()[: MAX_FILE_BYTES + 1].decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(shortened(str(error))) from error
