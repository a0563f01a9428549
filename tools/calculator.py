"""Calculator: arithmetic on one expression, without `eval`.

The expression is parsed by Python's own parser and only the node types listed here are computed, with bounds on size
and on every intermediate result, so that no expression takes long or much memory.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from verl_toolrl.toolbox import ModelMistake, tool

_MAX_LENGTH = 500
_MAX_DIGITS = 300

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "gcd": math.gcd,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


@tool(domain="math", deterministic=True, isolation="inline", limits={"timeout": 1.0, "output_tokens": 128})
def calculate(expression: str) -> int | float:
    """Compute an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, pi, e, and the functions abs, ceil, cos, exp, floor,
            gcd, log, log10, max, min, round, sin, sqrt, tan. Example: "3 * (2 + 4) ** 2".
    """
    if len(expression) > _MAX_LENGTH:
        raise ModelMistake(f"The expression has {len(expression)} characters; at most {_MAX_LENGTH} are allowed.")
    try:
        # A caret is a power in every notebook; in Python it is a bit operation that nobody means.
        tree = ast.parse(expression.replace("^", "**").strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as err:
        raise ModelMistake(f"Not an arithmetic expression: {expression[:100]!r}.") from err
    try:
        result = _compute(tree.body)
    except ZeroDivisionError as err:
        raise ModelMistake("Division by zero.") from err
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        raise ModelMistake(f"Cannot be computed: {err}.") from err
    if isinstance(result, float):
        if not math.isfinite(result):
            raise ModelMistake("The result is not a finite number.")
        # 0.1 + 0.2 is 0.3 for whoever asks a calculator.
        result = float(f"{result:.12g}")
    return result


def _compute(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_compute(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _compute(node.left), _compute(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return _bounded(_FUNCTIONS[node.func.id](*(_compute(each) for each in node.args)))
    raise ModelMistake(f"Not allowed in an expression: {ast.unparse(node)[:100]!r}.")


def _power(base: Any, exponent: Any) -> Any:
    digits = abs(exponent) * math.log10(abs(base)) if abs(base) > 1 else 0
    if digits > _MAX_DIGITS:
        raise ModelMistake("The result of the power is too large.")
    result = base**exponent
    if isinstance(result, complex):
        raise ModelMistake("The result of the power is not a real number.")
    return result


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        raise ModelMistake("A number in the expression is too large.")
    return value
