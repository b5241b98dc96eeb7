"""Predicates over named numbers, as `book/published.yml` writes them (no section of its own).

A predicate is written in Python, of which only arithmetic, comparisons, and, or, not, abs, min and max over names that
are given are let through, so that a line of data cannot run code.

Offers `compiled`, which checks and compiles one; `meets`, which asks it of numbers; `in_words`, which says it in
English; and `FUNCTIONS`, which no number may be called.
"""

import ast
from collections.abc import Iterable, Mapping
from types import CodeType

FUNCTIONS = {"abs": abs, "max": max, "min": min}
_LOGIC = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not)
_COMPARISONS = (ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_SAID = {
    ast.Lt: "is below",
    ast.LtE: "is at most",
    ast.Gt: "is above",
    ast.GtE: "is at least",
    ast.Eq: "equals",
    ast.NotEq: "differs from",
}
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
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


def in_words(predicate: str) -> str:
    """Say a predicate in English, such as "each of a and b is at most 40%"; "" where words would be no clearer.

    A limit of a number whose name ends in "increase" is in percent, as on the pages.
    """
    root = ast.parse(predicate, mode="eval").body
    parts = root.values if isinstance(root, ast.BoolOp) else [root]
    calls = [node for node in ast.walk(root) if isinstance(node, ast.Call)]
    nested = any(
        isinstance(inner, ast.Call) for call in calls for argument in call.args for inner in ast.walk(argument)
    )
    if nested or any(not isinstance(part, ast.Compare) or len(part.ops) > 1 for part in parts):
        return ""
    word = ", and " if isinstance(root, ast.BoolOp) and isinstance(root.op, ast.And) else ", or "
    return word.join(_comparison(part) for part in parts if isinstance(part, ast.Compare))


def _comparison(node: ast.Compare) -> str:
    """Say one comparison. The least number is above a limit if each is, and below it if at least one is."""
    left, right = node.left, node.comparators[0]
    is_lower = isinstance(node.ops[0], ast.Lt | ast.LtE)
    match left:
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args) if type(node.ops[0]) in _ORDERS:
            subject = f"{'each' if is_lower == (name == 'max') else 'at least one'} of {_listed(args)}"
        case _:
            subject = _operand(left)
    names = [name.id for name in ast.walk(left) if isinstance(name, ast.Name) and name.id not in FUNCTIONS]
    limit, number = _operand(right), _number(right)
    if number is not None and names and all(name.endswith("increase") for name in names):
        limit = f"{number:.4g}" if number == 0 else f"{100 * number:.4g}%"
    return f"{subject} {_SAID[type(node.ops[0])]} {limit}"


def _operand(node: ast.expr) -> str:
    match node:
        case ast.Call(func=ast.Name(id="abs"), args=[inner]):
            return f"the size of {_operand(inner)}"
        case ast.Call(func=ast.Name(id=name), args=args):
            ending = "er" if len(args) == 2 else "est"
            return f"the {'small' if name == 'min' else 'larg'}{ending} of {_listed(args)}"
        case _:
            number = _number(node)
            return ast.unparse(node).replace(" * ", " times ") if number is None else f"{number:g}"


def _listed(nodes: list[ast.expr]) -> str:
    *first, last = map(_operand, nodes)
    return f"{', '.join(first)} and {last}"


def _number(node: ast.expr) -> float | None:
    """Return the number that a constant, with or without a sign, stands for."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Constant(value=int() | float() as value):
            return value
    return None
