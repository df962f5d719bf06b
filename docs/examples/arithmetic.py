"""A tool of one's own: arithmetic, for questions such as how many years lie between two dates."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from sleuth.errors import ToolError
from sleuth.types import Turn

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Arithmetic:
    """Adds, subtracts, multiplies and divides; results are rounded to ``digits`` digits after the point."""

    def __init__(self, digits: int = 6) -> None:
        self.digits = digits
        self.schema = {
            "name": "arithmetic",
            "description": "Computes sums, differences, products and quotients of numbers.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "Such as (1906 - 1828) / 2."}},
                "required": ["expression"],
            },
        }

    def call(self, arguments: Mapping[str, Any], turns: Sequence[Turn]) -> str:
        """Raises ToolError, whose message the policy reads, for anything else than arithmetic."""
        del turns  # what the episode has found so far
        try:
            value = self._value(ast.parse(str(arguments["expression"]).strip(), mode="eval").body)
        except (SyntaxError, RecursionError):
            raise ToolError("this is no expression") from None
        return f"{round(value, self.digits):.15g}"

    def _value(self, node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return float(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return float(OPERATIONS[type(node.op)](self._value(node.left), self._value(node.right)))
        raise ToolError("only + - * / and numbers are understood")
