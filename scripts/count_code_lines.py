"""Count code lines of the package by folder: no blank, comment, docstring or import lines.

python scripts/count_code_lines.py [FOLDER ...]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


def code_lines(text: str) -> int:
    """Lines of a module that hold code; a statement over several lines counts each of them."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for token in tokens if token.type not in _NO_CODE for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print a table of the folders directly below each one given."""
    for root in map(Path, sys.argv[1:] or ["src/regrasp"]):
        counts: Counter[str] = Counter()
        for file in sorted(root.rglob("*.py")):
            inner = file.relative_to(root).parts
            counts[inner[0] if len(inner) > 1 else "."] += code_lines(file.read_text())
        for name, count in sorted(counts.items()):
            print(f"{count:7d}  {name}")
        print(f"{counts.total():7d}  {root}")


if __name__ == "__main__":
    main()
