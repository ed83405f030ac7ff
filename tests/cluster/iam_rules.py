"""What an IAM policy allows: AWS's evaluation of one identity's policy, as far as ours go.

``allows`` knows the operators that ``pipelines/cluster/policies`` uses and raises ``KeyError`` for any other, so that
none is ever passed over. https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

Context = Mapping[str, str | list[str]]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _any_equal(value: Any, wanted: list[str]) -> bool:
    return isinstance(value, str) and value in wanted


def _any_like(value: Any, wanted: list[str]) -> bool:
    return isinstance(value, str) and any(fnmatch.fnmatchcase(value, pattern) for pattern in wanted)


_OPERATORS: dict[str, Callable[[Any, list[str]], bool]] = {
    "StringEquals": _any_equal,
    "ArnEquals": _any_like,
    "Bool": _any_equal,
    "ForAllValues:StringEquals": lambda values, wanted: all(one in wanted for one in values or []),
}


def allows(policy: dict[str, Any], action: str, resource: str, context: Context) -> bool:
    """Whether some statement allows ``action`` on the ARN ``resource`` with these condition keys."""
    return any(_matches(statement, action, resource, context) for statement in policy["Statement"])


def _matches(statement: dict[str, Any], action: str, resource: str, context: Context) -> bool:
    assert statement["Effect"] == "Allow"
    if action not in _as_list(statement["Action"]):  # ours name each action in full
        return False
    if not any(fnmatch.fnmatchcase(resource, pattern) for pattern in _as_list(statement["Resource"])):
        return False
    return all(
        _OPERATORS[operator](context.get(key), _as_list(wanted))
        for operator, keys in statement.get("Condition", {}).items()
        for key, wanted in keys.items()
    )
