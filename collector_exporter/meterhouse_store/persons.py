"""Whether two names may be one person, for the rules that ask for two, and whether a text is an e-mail address.

Commands name people by their account, the portal by their e-mail address: between the two nobody can tell who is who.
"""

import re
import unicodedata
from typing import Final

UNCLEAR: Final = "a name of the command line and an address of the portal may be one person: do both in one of them"

_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9.-]{1,190}\.[A-Za-z0-9-]{2,63}")


def is_email(text: str) -> bool:
    """Whether it is an address alone, name@example.com, without what may stand around it in a header."""
    return _EMAIL.fullmatch(text) is not None


def may_be_one(one: str, other: str) -> bool:
    """True for the same name, however it is spelt, and for a name and an e-mail address."""
    return spelt(one) == spelt(other) or ("@" in one) != ("@" in other)


def spelt(name: str) -> str:
    """The name without what makes no second person: capitals, spaces, and other forms of the same letters."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
