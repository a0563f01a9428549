"""Unit conversion over a fixed table. Factors are exact by definition (SI brochure; yard and pound of 1959)."""

from __future__ import annotations

from fractions import Fraction

from verl_toolrl.errors import nearest
from verl_toolrl.toolbox import ModelMistake, tool

# Each unit in terms of the first of its group.
_FACTORS: dict[str, dict[str, Fraction]] = {
    "length": {
        "m": Fraction(1),
        "km": Fraction(1000),
        "cm": Fraction(1, 100),
        "mm": Fraction(1, 1000),
        "mile": Fraction("1609.344"),
        "yard": Fraction("0.9144"),
        "foot": Fraction("0.3048"),
        "inch": Fraction("0.0254"),
        "nautical_mile": Fraction(1852),
    },
    "mass": {
        "kg": Fraction(1),
        "g": Fraction(1, 1000),
        "mg": Fraction(1, 1_000_000),
        "tonne": Fraction(1000),
        "pound": Fraction("0.45359237"),
        "ounce": Fraction("0.028349523125"),
    },
    "volume": {
        "l": Fraction(1),
        "ml": Fraction(1, 1000),
        "m3": Fraction(1000),
        "us_gallon": Fraction("3.785411784"),
        "us_pint": Fraction("0.473176473"),
    },
    "time": {
        "s": Fraction(1),
        "min": Fraction(60),
        "h": Fraction(3600),
        "day": Fraction(86400),
        "week": Fraction(604800),
    },
    "speed": {"m/s": Fraction(1), "km/h": Fraction(5, 18), "mph": Fraction("0.44704"), "knot": Fraction(1852, 3600)},
    "data": {
        "byte": Fraction(1),
        "kB": Fraction(1000),
        "MB": Fraction(10**6),
        "GB": Fraction(10**9),
        "KiB": Fraction(1024),
        "MiB": Fraction(1024**2),
        "GiB": Fraction(1024**3),
    },
}
# Kelvin = (value + offset) * factor
_TEMPERATURES = {
    "kelvin": (Fraction(0), Fraction(1)),
    "celsius": (Fraction("273.15"), Fraction(1)),
    "fahrenheit": (Fraction("459.67"), Fraction(5, 9)),
}
_GROUP = {unit: group for group, units in _FACTORS.items() for unit in units} | dict.fromkeys(
    _TEMPERATURES, "temperature"
)


@tool(domain="conversion", deterministic=True, isolation="inline", limits={"timeout": 1.0, "output_tokens": 128})
def convert_unit(value: float, from_unit: str, to_unit: str) -> float:
    """Convert a quantity from one unit to another of the same kind.

    Args:
        value: The number.
        from_unit: Its unit: m km cm mm mile yard foot inch nautical_mile, kg g mg tonne pound ounce, l ml m3 us_gallon
            us_pint, s min h day week, m/s km/h mph knot, byte kB MB GB KiB MiB GiB, celsius fahrenheit kelvin.
        to_unit: The unit wanted, of the same kind.
    """
    for unit in (from_unit, to_unit):
        if unit not in _GROUP:
            raise ModelMistake(f"Unknown unit {unit[:40]!r}{nearest(unit, _GROUP) or '.'} Units: {', '.join(_GROUP)}.")
    if _GROUP[from_unit] != _GROUP[to_unit]:
        raise ModelMistake(f"{from_unit} is a unit of {_GROUP[from_unit]}, {to_unit} of {_GROUP[to_unit]}.")
    exact = Fraction(value)
    if from_unit in _TEMPERATURES:
        offset, factor = _TEMPERATURES[from_unit]
        kelvin = (exact + offset) * factor
        if kelvin < 0:
            raise ModelMistake("Below absolute zero.")
        offset, factor = _TEMPERATURES[to_unit]
        result = kelvin / factor - offset
    else:
        factors = _FACTORS[_GROUP[from_unit]]
        result = exact * factors[from_unit] / factors[to_unit]
    try:
        return float(f"{float(result):.10g}")
    except OverflowError as err:
        raise ModelMistake("The result is too large.") from err
