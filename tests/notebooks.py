"""The notebook of the pages: its code, and its outputs made anew.

python -m tests.notebooks    executes docs/pages/first-steps.ipynb and writes its outputs into it
"""

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "pages" / "first-steps.ipynb"


def code_cells(notebook: dict[str, Any]) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def execute(code: str, names: dict[str, Any]) -> tuple[str, object]:
    """Run a cell -> what it printed, and the value of its last expression (None without one)."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        value = None if last is None else eval(ast.unparse(last), names)
    return printed.getvalue(), value


def outputs_of(printed: str, value: object, count: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append(
            {"name": "stdout", "output_type": "stream", "text": printed.splitlines(True)}
        )
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
        make_html = getattr(value, "_repr_html_", None)
        if make_html is not None:
            data["text/html"] = make_html().splitlines(True)
        outputs.append(
            {
                "output_type": "execute_result",
                "execution_count": count,
                "data": data,
                "metadata": {},
            }
        )
    return outputs


def main() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    names: dict[str, Any] = {}
    count = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MOOLA_WORK"] = f"{folder}/work"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                printed, value = execute("".join(cell["source"]), names)
                cell["execution_count"] = count
                cell["outputs"] = outputs_of(printed, value, count)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
