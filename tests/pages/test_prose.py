"""Docstrings begin as those of torch do: with a verb in the imperative, or with a plain noun."""

import ast

from support import pages

VERBS = {  # those in use; a new one is added here
    *("Add", "Bring", "Call", "Check", "Choose", "Clamp", "Clear", "Clip", "Collect", "Compare", "Convert", "Copy"),
    *("Count", "Divide", "Do", "Draw", "Estimate", "Evaluate", "Give", "Go", "Join", "Keep", "Label", "Let", "Load"),
    *("Log", "Make", "Map", "Mark", "Measure", "Move", "Multiply", "Observe", "Perform", "Play", "Print", "Put"),
    *("Raise", "Read", "Record", "Refuse", "Remove", "Restart", "Restore", "Return", "Run", "Sample", "Scatter"),
    *("Show", "Split", "Step", "Stop", "Summarize", "Take", "Time", "Train", "Turn", "Undo", "Update", "Warn"),
    *("Write", "Yield"),
}
NO_BEGINNING = {  # of a class or a module
    *("A", "All", "An", "Each", "Every", "How", "If", "In", "It", "Its", "Of", "One", "That", "The", "These", "This", "What"),
    *("When", "Where", "Whether", "Which", "Who"),
}
FILES = [path for folder in ("torch_clipped", "experiments") for path in sorted((pages.ROOT / folder).rglob("*.py"))]


def test_summaries_begin_with_a_verb_or_a_plain_noun():
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (words := ast.get_docstring(node)):
                first = words.split()[0].rstrip(",.:;")
                if first not in VERBS if isinstance(node, ast.FunctionDef) else first in NO_BEGINNING:
                    place = f"{path.relative_to(pages.ROOT)}:{getattr(node, 'lineno', 1)}"
                    wrong.append(f"{place} {getattr(node, 'name', 'module')}: {words.splitlines()[0]}")
    assert wrong == []
