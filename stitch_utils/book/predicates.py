"""Predicates over named numbers, as `book/published.yml` writes them (no section of its own).

A predicate is written in Python, of which only arithmetic, comparisons, and, or, not, abs, min and max over names that
are given are let through, so that a line of data cannot run code.

Offers `compiled`, which checks and compiles one; `meets`, which asks it of numbers; and `FUNCTIONS`, which no number
may be called.
"""

import ast
from collections.abc import Iterable, Mapping
from types import CodeType

FUNCTIONS = {"abs": abs, "max": max, "min": min}
_LOGIC = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not)
_COMPARISONS = (ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_ARITHMETIC = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.Name, ast.Load)


def meets(predicate: str, values: Mapping[str, float]) -> bool:
    """Ask a predicate of numbers; ArithmeticError where it is undefined, such as in a division by zero."""
    return bool(eval(compiled(predicate, values), {"__builtins__": FUNCTIONS}, dict(values)))


def compiled(text: str, names: Iterable[str]) -> CodeType:
    """Compile a predicate over `names`; ValueError or SyntaxError for whatever else could be written in Python."""
    root, functions = ast.parse(text, mode="eval").body, []
    for node in ast.walk(root):  # parents before their children
        match node:
            case ast.Call(func=ast.Name(id=name), args=[_, *more], keywords=[]) if name in FUNCTIONS:
                if bool(more) == (name == "abs"):
                    raise ValueError(f"'{ast.unparse(node)}': abs takes one number, max and min take more")
                functions.append(node.func)
            case ast.Name(id=name) if name not in names and node not in functions:
                raise ValueError(f"{name} is not among its needs: {', '.join(names)}")
            case ast.Constant(value=value) if type(value) in (int, float):
                pass
            case _ if not isinstance(node, _LOGIC + _COMPARISONS + _ARITHMETIC):
                raise ValueError(f"{type(node).__name__} is no arithmetic, comparison, and, or, not, abs, min or max")
    if not isinstance(root, ast.Compare | ast.BoolOp) and type(getattr(root, "op", None)) is not ast.Not:
        raise ValueError("expected a comparison, or several joined by and, or, not")
    return compile(ast.Expression(root), "predicate", "eval")
