"""Equality of two SymPy values, in place of math-verify's `sympy_numeric_eq`. Imports nothing from metatune.

math-verify rounds to 6 decimals and drops what is below 1e-15: 1.6e-19 equals 3.2e-19, and 1.0000001 equals 1. Here

- a decimal is converted to the exact fraction, and fractions are compared exactly;
- other numbers are compared to `DIGITS` digits, relative to their size;
- a decimal of at least 6 digits also equals a value that rounds or truncates to it at its last digit;
- functions are compared at points where both are real: a difference at one point is decisive.
"""

from decimal import Decimal
from typing import Any

import sympy
from mpmath.libmp import prec_to_dps, to_str
from sympy import Rational
from sympy.core.function import AppliedUndef

DIGITS = 110
POINTS = [(-17, 11), (5, 13), (19, 7), (-3, 29), (31, 23), (-37, 5), (2, 41)]
ENOUGH_POINTS = 3
APPROXIMATE_DIGITS = 6
_HUNDREDTH = sympy.UnevaluatedExpr(Rational(1, 100))
# Equality at a few points is weak evidence for these, and some cannot be evaluated.
_OPAQUE = (
    *(sympy.floor, sympy.ceiling, sympy.sign, sympy.Min, sympy.Max, sympy.Mod, sympy.Piecewise),
    *(sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit, AppliedUndef),
    *(sympy.factorial, sympy.binomial, sympy.gamma),
)


class DifferentError(Exception):
    """Two values differ. math-verify treats this as "not equal" and does not try to simplify the difference."""


def equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """Compare two values that are not sets; `False` if only algebra can decide.

    Args:
        a, b (`sympy.Basic` or matrix): the values.
        float_rounding, numeric_precision (`int`): math-verify's; not used.

    Raises:
        DifferentError: the values differ.
    """
    if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(b, sympy.MatrixBase | sympy.MatrixExpr):
        a, b = a.doit(), b.doit()
        pairs = zip(a.flat(), b.flat(), strict=True)
        return a.shape == b.shape and all(equal(x, y, float_rounding, numeric_precision) for x, y in pairs)
    try:
        verdict = _compare(a, b)
    except (ArithmeticError, AttributeError, TypeError, ValueError):  # SymPy cannot evaluate it
        return False
    if verdict is False:
        raise DifferentError
    return bool(verdict)


def _compare(a: Any, b: Any) -> bool | None:
    percentages = _percentage(a), _percentage(b)
    if (percentages[0] is None) != (percentages[1] is None):  # 50% is 50 and 0.5, whichever was asked for
        forms, plain = ((b, percentages[1]), a) if percentages[0] is None else ((a, percentages[0]), b)
        return any(_exact(form) == _exact(plain) for form in forms)
    x, y = _exact(a), _exact(b)
    if x.free_symbols or y.free_symbols:
        return _same_function(x, y)
    return _same_number(x, y) or _approximates(a, y) or _approximates(b, x)


def _percentage(expression: Any) -> Any:
    """Return x of x%; `None` if it is not a percentage."""
    is_product = isinstance(expression, sympy.Mul) and len(expression.args) == 2
    return expression.args[0] if is_product and expression.args[1] == _HUNDREDTH else None


def _exact(expression: Any) -> Any:
    """Evaluate, with every decimal as an exact fraction."""
    return expression.xreplace({number: Rational(_decimal(number)) for number in expression.atoms(sympy.Float)}).doit()


def _decimal(number: Any) -> str:
    """Write a SymPy decimal with the digits that it was read from."""
    return to_str(number._mpf_, prec_to_dps(number._prec), min_fixed=0, max_fixed=0)


def _same_number(a: Any, b: Any) -> bool:
    if (a.is_Rational and b.is_Rational) or not (a.is_finite and b.is_finite):
        return bool(a == b)
    a, b = a.evalf(DIGITS), b.evalf(DIGITS)
    return bool(abs(a - b) <= Rational(1, 10 ** (DIGITS - 10)) * abs(b))


def _same_function(a: Any, b: Any) -> bool | None:
    """Compare at points where both are real; `None` if there are too few such points."""
    if _is_opaque(a) or _is_opaque(b):
        return None
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    compared = 0
    for number in range(len(POINTS)):
        point = {symbol: Rational(*POINTS[(number + 3 * i) % len(POINTS)]) for i, symbol in enumerate(symbols)}
        left, right = (side.subs(point).evalf(DIGITS) for side in (a, b))
        if left.is_Number and right.is_Number and left.is_finite and right.is_finite:
            if abs(left - right) > Rational(1, 10 ** (DIGITS - 20)) * abs(right):
                return False
            compared += 1
    return True if compared >= ENOUGH_POINTS else None


def _is_opaque(expression: Any) -> bool:
    # The points have both signs, so |x| can be compared, and |x - 100| cannot.
    return expression.has(*_OPAQUE) or any(not size.args[0].is_Symbol for size in expression.atoms(sympy.Abs))


def _approximates(given: Any, value: Any) -> bool:
    """Return whether a decimal is the value, rounded or truncated at its last digit."""
    power: Any = sympy.Integer(1)
    if isinstance(given, sympy.Mul) and len(given.args) == 2 and given.args[0].is_Float:  # 1.5 * 10^-7
        given, power = given.args[0], given.args[1].doit()
    if not given.is_Float or not power.is_Rational or not power.is_positive:
        return False
    written = Decimal(_decimal(given)).as_tuple()
    if len(written.digits) < APPROXIMATE_DIGITS:
        return False
    last_digit = Rational(10) ** int(written.exponent)
    distance = ((value / power - Rational(_decimal(given))) / last_digit).evalf(20) * (1 if given > 0 else -1)
    return bool(distance.is_comparable and Rational(-1, 2) <= distance < 1)
