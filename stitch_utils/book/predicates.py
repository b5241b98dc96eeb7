"""Predicates: comparisons of named numbers, and nothing else that Python can do (no section of its own).

A claim of `book/published.yml` is decided by a line such as `a_to_b_to_a < 1.01 * a`. It is read as Python, whose
precedence everyone knows, and then only what it may hold is carried out: arithmetic, comparisons, and, or, not, abs,
min, max, over names that the claim declares. Whatever else it holds is an error, so a line of data cannot run code.

Offers `compile_predicate`.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}


def compile_predicate(text: str, names: Iterable[str]) -> Callable[[Mapping[str, float]], bool]:
    """Turns a predicate into a function of the values of `names`. ValueError or SyntaxError if it is none."""
    root = ast.parse(text, mode="eval").body
    decide = _compile(root, names)
    if not isinstance(root, ast.Compare | ast.BoolOp) and type(getattr(root, "op", None)) is not ast.Not:
        raise ValueError("expected a comparison, or several joined by and, or, not")
    return decide


def _compile(node: ast.expr, names: Iterable[str]) -> Callable[[Mapping[str, float]], float | bool]:
    """Turns a parsed predicate into a function of the values of `names`; whatever else it holds is a ValueError."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return lambda values: value
        case ast.Name(id=name) if name in names:
            return lambda values: values[name]
        case ast.Name(id=name):
            raise ValueError(f"{name} is not among its needs: {', '.join(names)}")
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            sides = [_compile(side, names) for side in (left, *others)]
            steps = [(_OPERATORS[type(op)], x, y) for op, x, y in zip(ops, sides, sides[1:], strict=False)]
            return lambda values: all(operation(x(values), y(values)) for operation, x, y in steps)
        case ast.BoolOp(op=op, values=parts):
            decide, sides = all if isinstance(op, ast.And) else any, [_compile(part, names) for part in parts]
            return lambda values: decide(side(values) for side in sides)
        case ast.UnaryOp(op=op, operand=part) if type(op) in _OPERATORS:
            operation, parts = _OPERATORS[type(op)], [part]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            operation, parts = _OPERATORS[type(op)], [left, right]
        case ast.Call(func=ast.Name(id="abs"), args=[_] as parts, keywords=[]):
            operation = abs
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[_, _, *_] as parts, keywords=[]):
            operation = max if name == "max" else min
        case _:
            raise ValueError(f"'{ast.unparse(node)}' is not arithmetic, a comparison, and, or, not, abs, min or max")
    operands = [_compile(part, names) for part in parts]
    return lambda values: operation(*(operand(values) for operand in operands))
