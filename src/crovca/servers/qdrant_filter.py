"""Conditions as Qdrant's filters: what of the grammar of ``index.conditions`` has one, and with the nulls of SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from crovca.index.conditions import checked_condition, refuse

if TYPE_CHECKING:
    from sqlglot import exp

_EXACT = 2**53  # Qdrant compares numbers as float64
_BOUNDS = {"LT": "lt", "LTE": "lte", "GT": "gt", "GTE": "gte"}
_TURNED = {"LT": "GT", "LTE": "GTE", "GT": "LT", "GTE": "LTE"}


def filter_of(where: str, columns: Sequence[str]) -> Any:
    """The filter of a condition; InvalidInputError where it cannot be used, or Qdrant has no such filter."""
    import sqlglot

    tree = sqlglot.parse_one(checked_condition(where, columns, "postgres"), dialect="postgres")
    return _Filters(where).of(tree, holds=True)


class _Filters:
    """Filters for the parts of a condition, each for where it holds or for where it does not (and is not null)."""

    def __init__(self, where: str) -> None:
        import qdrant_edge

        self._where = where
        self._qdrant: Any = qdrant_edge

    def of(self, node: Any, *, holds: bool) -> Any:
        from sqlglot import exp

        if isinstance(node, exp.Paren):
            return self.of(node.this, holds=holds)
        if isinstance(node, exp.Not):
            return self.of(node.this, holds=not holds)
        if isinstance(node, exp.And | exp.Or):
            both = [self.of(part, holds=holds) for part in (node.left, node.right)]
            return self._qdrant.Filter(**{"must" if isinstance(node, exp.And) == holds else "should": both})
        if isinstance(node, exp.Boolean):
            return self._qdrant.Filter(**({} if node.this == holds else {"must_not": [self._qdrant.Filter()]}))
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            empty = self._field(node.this, is_empty=True)
            null = holds != bool(node.args.get("negate"))
            return self._qdrant.Filter(**{"must" if null else "must_not": [empty]})
        column, found = self._leaf(node)
        kept = {"must": [found]} if holds else {"must_not": [self._field(column, is_empty=True), found]}
        return self._qdrant.Filter(**kept)

    def _leaf(self, node: Any) -> tuple[Any, Any]:
        """A column, and a filter that no null of it passes."""
        from sqlglot import exp

        kind = type(node).__name__
        if isinstance(node, exp.Column):  # booleans are 0 and 1
            return node, self._equal(node, 1)
        if isinstance(node, exp.In) and node.expressions:
            each = [self._equal(node.this, self._value(one)) for one in node.expressions]
            return node.this, self._qdrant.Filter(should=each)
        if isinstance(node, exp.Between):
            low, high = (self._number(node.args[name]) for name in ("low", "high"))
            return node.this, self._field(node.this, range=self._qdrant.RangeFloat(gte=low, lte=high))
        if isinstance(node, exp.Like):
            return node.this, self._like(node.this, self._value(node.expression))
        left, right = node.args.get("this"), node.args.get("expression")
        if isinstance(right, exp.Column):
            left, right, kind = right, left, _TURNED.get(kind, kind)
        if kind in _BOUNDS:
            return left, self._field(left, range=self._qdrant.RangeFloat(**{_BOUNDS[kind]: self._number(right)}))
        if kind == "EQ":
            return left, self._equal(left, self._value(right))
        if kind == "NEQ":
            other = self._equal(left, self._value(right))
            return left, self._qdrant.Filter(must_not=[self._field(left, is_empty=True), other])
        return self._refuse(node)

    def _equal(self, column: Any, value: float | str) -> Any:
        if isinstance(value, str):
            return self._field(column, match=self._qdrant.MatchValue(value))
        return self._field(column, range=self._qdrant.RangeFloat(gte=value, lte=value))

    def _like(self, column: Any, pattern: float | str) -> Any:
        text = str(pattern)
        start, end = text.startswith("%"), text.endswith("%")
        plain = text.strip("%")
        if set(plain) & set("%_\\") or not plain or (start and not end) or isinstance(pattern, float):
            refuse(self._where, f"Qdrant has LIKE 'text%' and LIKE '%text%' alone, got {text!r}")
        if not end:
            return self._equal(column, plain)
        match = self._qdrant.MatchSubstring if start else self._qdrant.MatchPrefix
        return self._field(column, match=match(plain))

    def _field(self, column: Any, **condition: Any) -> Any:
        from sqlglot import exp

        if not isinstance(column, exp.Column):
            self._refuse(column)
        return self._qdrant.FieldCondition(f'"{column.name}"', **condition)

    def _number(self, node: Any) -> float:
        value = self._value(node)
        if isinstance(value, str):
            refuse(self._where, f"Qdrant compares texts for equality alone, got {value!r}")
        return value

    def _value(self, node: Any) -> float | str:
        from sqlglot import exp

        if isinstance(node, exp.Boolean):
            return float(node.this)
        if isinstance(node, exp.Literal) and node.is_string:
            return str(node.this)
        if isinstance(node, exp.Neg):
            return -self._number(node.this)
        if not isinstance(node, exp.Literal):
            self._refuse(node)
        value = float(node.this)
        if abs(value) >= _EXACT:
            refuse(self._where, f"Qdrant compares numbers below 2^53, got {node.this}")
        return value

    def _refuse(self, node: exp.Expression) -> NoReturn:
        refuse(self._where, f"Qdrant has no filter for {node.sql()[:80]!r}; it compares a column with a value")
