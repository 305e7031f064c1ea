"""Whether two names may be one person, for the rules that ask for two.

Commands name people by their account, the portal by their e-mail address: between the two nobody can tell who is who.
"""

import unicodedata
from typing import Final

UNCLEAR: Final = "a name of the command line and an address of the portal may be one person: do both in one of them"


def may_be_one(one: str, other: str) -> bool:
    """True for the same name, however it is spelt, and for a name and an e-mail address."""
    return spelt(one) == spelt(other) or ("@" in one) != ("@" in other)


def spelt(name: str) -> str:
    """The name without what makes no second person: capitals, spaces, and other forms of the same letters."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
