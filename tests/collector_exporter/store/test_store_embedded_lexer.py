"""The checker's lexer against the engine's own: what one takes for a string must not be code to the other."""

import json
import random
import urllib.request

from meterhouse_store.statements import Refused, inspect

PIECES = [
    *("/*", "*/", "--", "//", "#", "# ", "#!", "'", "''", "\\", "\\'", "\\G", "`", "``", '"', '""', "$$", "$a$", "$"),
    *("\n", "\r", " ", "\t", "x'", "b'", "X'41'", "b'01'", "1", "0x", "1e", "1.", ".", "e5", "1_0", "_", "a"),
    *("-", "/", "*", "|>", "@", "(", ")", ";", "{x:String}", "file(", "é", "\u2018", "\u201c", "\x00"),
]
FEW = ["/*", "*/", "/*", "*/", "/", "*", "--", "\n", "'", "'", "$$", "$$", "`", "\\", " ", "a"]
QUOTED = {"StringLiteral", "QuotedIdentifier", "HereDoc"}


def engine_tokens(warehouse, statements):
    """For every statement the engine's tokens: (type, begin, end) in bytes."""
    rows = "\n".join(json.dumps({"n": n, "s": statement}) for n, statement in enumerate(statements))
    escaped = rows.replace("\\", "\\\\").replace("'", "\\'")
    query = f"SELECT tokenizeQuery(s) AS t FROM format(JSONEachRow, 'n UInt32, s String', '{escaped}') ORDER BY n"
    headers = {"X-ClickHouse-User": "admin", "X-ClickHouse-Key": "admin-password-for-tests"}
    address = f"{warehouse.url}/?default_format=JSONEachRow"
    with urllib.request.urlopen(urllib.request.Request(address, query.encode(), headers)) as answer:
        lines = answer.read().decode().splitlines()
    return [[(token["type"], token["begin"], token["end"]) for token in json.loads(line)["t"]] for line in lines]


def quoted_here(sql):
    """The same of a statement that has no comment and no here-document, by the simplest rule there is."""
    text, found, position = sql.encode(), [], 0
    while position < len(text):
        start, quote = position, text[position : position + 1]
        position += 1
        if quote not in (b"'", b'"', b"`"):
            continue
        while text[position : position + 1] != quote or text[position : position + 2] == quote * 2:
            position += 2 if text[position : position + 1] in (b"\\", quote) else 1
        position += 1
        found.append((start, position))
    return found


def test_the_engine_sees_strings_where_the_checker_does_and_no_comment(warehouse):
    chance = random.Random(20260101)
    texts = [
        "SELECT " + "".join(chance.choices(pieces, k=chance.randint(1, 14)))
        for _ in range(8_000)
        for pieces in (PIECES, FEW)
    ]
    accepted = []
    for text in texts:
        try:
            accepted.append(inspect(text.encode(), "admin", frozenset()).sql)
        except Refused:
            continue
    assert len(accepted) > 2_000
    for sql, tokens in zip(accepted, engine_tokens(warehouse, accepted), strict=True):
        kinds = {kind for kind, _, _ in tokens}
        assert "Comment" not in kinds, sql
        if any(kind.startswith("Error") for kind in kinds):
            continue  # the engine refuses it
        # X'41' begins with its letter for the engine.
        assert [end for kind, _, end in tokens if kind in QUOTED] == [end for _, end in quoted_here(sql)], sql
