"""Words that values are taken from. All people, addresses and numbers are invented."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

__all__ = [
    "CITIES",
    "FIRST_NAMES",
    "GOODS",
    "LAST_NAMES",
    "SPEAKERS",
    "TITLES",
    "WORDS",
    "email_of",
    "some_date",
    "some_email",
    "some_name",
    "some_phone",
    "some_time",
]

SPEAKERS = ("Nina", "Omar", "Pia", "Ravi", "Sven", "Tara", "Umut", "Vera", "Wim", "Yara")
"""People who speak or are spoken about in a question; never a value."""

FIRST_NAMES = (
    *("Alma", "Boris", "Clara", "David", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaya", "Liam"),
    *("Mona", "Noah", "Olga", "Paul", "Rosa", "Samir", "Tessa", "Viktor"),
)
LAST_NAMES = (
    *("Adler", "Berg", "Costa", "Diaz", "Evans", "Fischer", "Gruber", "Hansen", "Ivanov", "Jansen", "Keller", "Lopez"),
    *("Mori", "Nilsson", "Okafor", "Popov", "Rossi", "Silva", "Tanaka", "Weber"),
)
CITIES = (
    *("Paris", "Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Turin", "Dakar", "Perth", "Leeds", "Busan", "Kyoto", "Riga"),
    *("Porto", "Accra", "Bonn", "Cork", "Davos", "Essen", "Fez", "Ghent", "Izmir", "Jena", "Kiel"),
)
GOODS = (
    *("apple", "bread", "coffee", "lamp", "notebook", "umbrella", "basket", "blanket", "bottle", "bowl", "brush"),
    *("bucket", "candle", "chair", "clock", "cup", "desk", "fork", "hammer", "hat", "jacket", "kettle", "ladder"),
    *("mirror", "mug", "pan", "pencil", "pillow", "plate", "radio", "rope", "ruler", "scarf", "shelf", "spoon"),
    *("stamp", "table", "teapot", "towel", "vase", "wallet", "whistle"),
)
TITLES = (
    *("dentist", "piano lesson", "team lunch", "board meeting", "yoga class", "job interview", "book club"),
    *("eye test", "parents evening", "car service", "choir practice", "tax advice", "haircut", "chess match"),
    *("project review", "swimming lesson", "flat viewing", "budget talk", "first aid course", "garden work"),
)
WORDS = (
    *("amber", "anchor", "barley", "cedar", "comet", "copper", "delta", "ember", "falcon", "garnet", "harbor"),
    *("indigo", "juniper", "kestrel", "lantern", "maple", "nectar", "onyx", "pepper", "quartz", "river", "saffron"),
    *("thistle", "umber", "velvet", "willow", "yarrow", "zephyr"),
)

_FIRST_DAY = date(2025, 1, 1)
_DAYS = 3 * 365


def some_date(draw: Random) -> str:
    """Return a day of the years 2025 to 2027, YYYY-MM-DD."""
    return (_FIRST_DAY + timedelta(days=draw.randrange(_DAYS))).isoformat()


def some_time(draw: Random, first: int = 8, last: int = 18) -> str:
    """Return a quarter of an hour from `first` to `last`, HH:MM."""
    return f"{draw.randint(first, last):02d}:{draw.choice((0, 15, 30, 45)):02d}"


def some_name(draw: Random) -> str:
    """Return a full name."""
    return f"{draw.choice(FIRST_NAMES)} {draw.choice(LAST_NAMES)}"


def some_phone(draw: Random) -> str:
    """Return a telephone number; 555 01xx belongs to nobody."""
    return f"555 01{draw.randrange(100):02d} {draw.randrange(1000):03d}"


def email_of(name: str) -> str:
    """Return an address for a full name, at a domain that is reserved for examples."""
    return f"{name.split()[0].lower()}@{name.split()[-1].lower()}.example.org"


def some_email(draw: Random) -> str:
    """Return an address."""
    return email_of(some_name(draw))
