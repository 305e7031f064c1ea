"""Starter books: price books that ship with Meterhouse, one file each, to publish as they are or to begin one's own."""

from importlib.resources import files


def names() -> dict[str, str]:
    """The name of each starter book and, from its first line, what it is."""
    found = {it.name.removesuffix(".yaml"): it for it in files(__package__).iterdir() if it.name.endswith(".yaml")}
    return {
        name: found[name].read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        for name in sorted(found)
    }


def text(name: str) -> str:
    """The book's text. Raises KeyError for a name that is none."""
    if name not in names():
        raise KeyError(name)
    return (files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")
