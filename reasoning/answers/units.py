"""Units after a number: spellings of the same unit, and words without meaning for the value."""

from __future__ import annotations

import re

_SAME = {
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre kms",
    "m": "meter metre mtr",
    "in": "inch inche",
    "ft": "foot feet",
    "mi": "mile",
    "yd": "yard",
    "g": "gram gm gms",
    "kg": "kilogram kgs kilo",
    "lb": "pound lbs",
    "oz": "ounce",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "s": "second sec secs",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "wk",
    "year": "yr",
    "dollar": "usd buck",
    "cent": "¢",
    "deg": "degree",
    "rad": "radian",
    "pm": "p.m.",
    "am": "a.m.",
    "percent": "pct percentage",
    "unit": "",
    "rupee": "rs",
    "euro": "eur",
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "square": "sq",
    "cubic": "cu",
}
CANONICAL = {spelling: unit for unit, spellings in _SAME.items() for spelling in (unit, *spellings.split())}
SPEEDS = {"mph": "mi per h", "kmph": "km per h", "kmh": "km per h", "kph": "km per h", "fps": "ft per s"}
CURRENCIES = frozenset(["dollar", "euro", "pound", "yen", "rupee"])
POWERS = {"square": "2", "squared": "2", "cubic": "3", "cubed": "3"}


def canonical(words: list[str]) -> str:
    """Canonical unit of `words`, such as `cm^2` for square centimeters; empty for `units` alone."""
    found, pending = [], ""
    for word in " ".join(SPEEDS.get(word.lower(), word) for word in words).split():
        low = word.lower().strip(".")
        low = CANONICAL.get(low) or CANONICAL.get(_singular(low)) or _singular(low)
        if low in ("square", "cubic"):
            pending = f"^{POWERS[low]}"
        elif low in POWERS and found:
            found[-1] += f"^{POWERS[low]}"
        elif low == "per":
            found.append("/")
        else:
            found.append(low + pending)
            pending = ""
    unit = " ".join(found)
    return "" if re.fullmatch(r"(?:unit(?:\^\d)?)?", unit) else unit


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word
