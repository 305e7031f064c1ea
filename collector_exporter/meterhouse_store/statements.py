"""Reads the outline of a ClickHouse statement and refuses what the embedded engine must not be asked.

The engine's own grants (engine.py) keep users from files, other hosts and tables that are not theirs. They do not cover
what chDB does beside the server's code: the function `file()`, INTO OUTFILE, FROM INFILE, several statements in one
text, some table engines with a path. Those are refused here, on tokens, so that case, comments and quoting make no
difference; what cannot be read with certainty is refused too.

The engine is not given the text that came but one put together from the tokens that were checked: without comments,
here-documents as plain strings. What this lexer took for a comment or a string cannot be code to the engine's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

MAX_TOKENS = 400_000  # blanks and comments count
MAX_REMEMBERED = 20_000  # bytes of a statement

# ClickHouse's error codes (ErrorCodes.cpp).
SYNTAX_ERROR = 62
READONLY = 164
ACCESS_DENIED = 497

User = Literal["admin", "reader"]

_READING = frozenset({"SELECT", "WITH", "(", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN"})
_WRITING = frozenset(
    {"INSERT", "CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME", "EXCHANGE", "OPTIMIZE", "DELETE", "UPDATE"}
    | {"USE", "SET", "SYSTEM"}
)
_SYSTEM = frozenset({"FLUSH", "SYNC", "REFRESH", "WAIT"})
_ENGINES = frozenset(
    {"atomic", "null", "memory", "log", "tinylog", "stripelog", "set", "join", "buffer", "view", "materializedview"}
)
_SAFE_TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "primes", "generateseries", "generate_series", "generaterandom"}
    | {"values", "view", "null", "merge", "format"}
)
# Not table functions, yet they reach files or other hosts.
_UNSAFE_FUNCTIONS = frozenset(
    {"file", "disk", "catboostevaluate", "aiclassify", "aiembed", "aiextract", "aifilter", "aigenerate", "airedact"}
    | {"aisimilarity", "aitranslate"}
)
# Everybody's queries run as the engine's one user, so these would show what others ask.
_OTHERS_QUERIES = frozenset({"processes", "processlist", "query_log", "query_cache", "asynchronous_inserts"})
# The tables of `system` that a reader may read: clients ask them what there is. The engine would let all be read.
_DESCRIPTIONS = frozenset(
    {"aggregate_function_combinators", "build_options", "collations", "columns", "contributors", "current_roles"}
    | {
        "data_type_families",
        "databases",
        "dictionaries",
        "enabled_roles",
        "formats",
        "functions",
        "keywords",
        "licenses",
    }
    | {"numbers", "numbers_mt", "one", "settings", "table_engines", "table_functions", "tables", "time_zones", "zeros"}
    | {"zeros_mt"}
)

# Narrower than the engine's lexer (src/Parsers/Lexer.cpp) wherever that one is surprising: no comment inside a comment,
# no backslash in a quoted name, no $ in a name, no name glued to a fraction (`.1efile` is `.1e` and `file` to it), no
# two strings side by side. A number's parts are tokens of their own here.
_TOKEN = re.compile(
    rb"""(?P<space>[ \t\r\n\f\v]++)
    |(?P<comment>(?:--|//|\#[ !])[^\n]*+|/\*(?:[^/*]++|/(?!\*)|\*(?!/))*+\*/)
    |(?P<string>(?<!\$)'(?:[^'\\]++|\\.|'')*+'|(?<!\.)(?:[xX]'[0-9A-Fa-f]*+'|[bB]'[01]*+')(?!'))
    |(?P<quoted>`(?:[^`\\]++|``)*+`|"(?:[^"\\]++|"")*+")
    |(?P<heredoc>(?<![A-Za-z0-9_'$])\$(?P<tag>[A-Za-z0-9_]*+)\$(?P<content>.*?)\$(?P=tag)\$)
    |(?P<number>(?<!\.)[0-9][A-Za-z0-9_]*+
        |(?<=\.)[0-9]++(?:_[0-9]++)*+(?:[eE][-+]?+[0-9]++(?:_[0-9]++)*+)?+(?![A-Za-z_]))
    |(?P<word>(?![xXbB]')[A-Za-z_][A-Za-z0-9_]*+)
    |(?P<sign>[-!%&()*+,.:;<=>?@\[\]^{|}~]|/(?![*/]))""",
    re.VERBOSE | re.DOTALL,
)


class Refused(Exception):
    """A statement that is not run; `code` is ClickHouse's error code for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Statement:
    """`kind` is the first word in upper case, `sql` what the engine runs, `output_format` a result's FORMAT clause.

    For an INSERT whose data follows in a format, `sql` is the statement up to FORMAT, `insert_format` the format, and
    `data_offset` where its data begins in the text.
    """

    kind: str
    sql: str
    output_format: str | None = None
    insert_format: str | None = None
    data_offset: int | None = None


@dataclass(frozen=True)
class Token:
    """A piece of a statement; `kind` is a group of the lexer's pattern."""

    kind: str
    text: str  # a quoted identifier without its quotes
    sql: bytes  # as the engine gets it
    end: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.upper() in words

    def is_sign(self, sign: str) -> bool:
        return self.kind == "sign" and self.text == sign


def unsafe_functions(table_functions: frozenset[str]) -> frozenset[str]:
    """Lower-case names of functions that nobody may call, given all table functions that the engine has.

    A table function that a new version brings is refused until it is found to be harmless.
    """
    return (frozenset(name.lower() for name in table_functions) - _SAFE_TABLE_FUNCTIONS) | _UNSAFE_FUNCTIONS


def inspect(text: bytes, user: User, unsafe: frozenset[str]) -> Statement:
    """The outline of the one statement in `text`; raises Refused where the user may not run it or it cannot be read.

    Programs ask the same again and again, with other parameters: what they asked last is not read anew.
    """
    if len(text) > MAX_REMEMBERED or text[:6].upper() == b"INSERT":  # with its data
        return _inspected(text, user, unsafe)
    return _remembered(text, user, unsafe)


def _inspected(text: bytes, user: User, unsafe: frozenset[str]) -> Statement:
    significant: list[Token] = []
    pieces: list[Token] = []  # with blanks and comments
    depth = 0
    evaluated = False
    for token in tokens(text):
        pieces.append(token)
        if len(pieces) > MAX_TOKENS:
            raise Refused(ACCESS_DENIED, f"a statement has at most {MAX_TOKENS} tokens: insert data with FORMAT")
        if token.kind in ("space", "comment"):
            continue
        if significant and significant[-1].is_sign(";"):
            raise Refused(SYNTAX_ERROR, "Multi-statements are not allowed: send one statement at a time")
        _check_call(significant, token, unsafe)
        significant.append(token)
        if len(significant) == 1:
            _check_kind(token, user)
        elif len(significant) == 2:
            _check_second(significant, user)
        depth += _depth(token)
        if depth == 0 and not evaluated and _is_inserted_format(significant):
            return _insert(text, significant, pieces)
        # VALUES data and SELECTs are read to their end, as SQL: their expressions are evaluated.
        evaluated = evaluated or token.is_word("SELECT", "VALUES", "WITH")
    if not significant:
        raise Refused(SYNTAX_ERROR, "Empty query")
    if user == "reader":
        _check_reader(significant)
    return Statement(kind=significant[0].text.upper(), sql=_sql(pieces), output_format=_output_format(significant))


_remembered = lru_cache(maxsize=500)(_inspected)


def tokens(text: bytes) -> Iterator[Token]:
    """The pieces of a statement, blanks and comments too; raises Refused where it cannot be read."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            near = text[position : position + 20].decode(errors="replace")
            raise Refused(
                SYNTAX_ERROR,
                f"Syntax error at position {position + 1} ({near!r}): outside of quotes only ASCII is read here, "
                "quotes and comments must be closed, a comment has no other in it, and a name no $ and no backslash",
            )
        yield _token(match)
        position = match.end()


def _token(match: re.Match[bytes]) -> Token:
    raw = match.group()
    kind = "heredoc" if match["heredoc"] is not None else str(match.lastgroup)
    if kind in ("space", "comment"):
        return Token(kind, "", raw if kind == "space" else b" ", match.end())
    text = raw.decode(errors="replace")
    if kind == "quoted":
        text = text[1:-1].replace(text[0] * 2, text[0])
    elif kind == "heredoc":
        raw = b"'" + match["content"].replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
    return Token(kind, text, raw, match.end())


def _sql(pieces: list[Token]) -> str:
    try:
        return b"".join(piece.sql for piece in pieces).decode()
    except UnicodeDecodeError:
        raise Refused(SYNTAX_ERROR, "the statement is not UTF-8") from None


def _check_kind(token: Token, user: User) -> None:
    kind = token.text.upper() if token.kind in ("word", "sign") else ""
    if kind in _READING:
        return
    if kind not in _WRITING:
        raise Refused(ACCESS_DENIED, f"{token.text[:40]!r} begins no statement that this user may run")
    if user == "reader":
        raise Refused(READONLY, f"{user}: Cannot execute query in readonly mode: {kind} is not for this user")


def _check_second(tokens: list[Token], user: User) -> None:
    first, second = tokens
    if first.is_word("SYSTEM") and not second.is_word(*_SYSTEM):
        raise Refused(ACCESS_DENIED, f"{user}: Not enough privileges: of SYSTEM only {', '.join(sorted(_SYSTEM))}")
    if first.is_word("SET") and second.is_word("ROLE", "DEFAULT"):
        raise Refused(ACCESS_DENIED, f"{user}: Not enough privileges: roles are not changed here")


def _check_call(before: list[Token], token: Token, unsafe: frozenset[str]) -> None:
    previous = before[-1] if before else None
    if token.is_word("OUTFILE", "INFILE"):
        raise Refused(ACCESS_DENIED, f"Not enough privileges: {token.text.upper()} reads or writes files of this host")
    if previous is None:
        return
    if token.is_word("WITH") and previous.is_word("PARALLEL"):
        raise Refused(
            ACCESS_DENIED, "Not enough privileges: PARALLEL WITH hides a second statement, send them one by one"
        )
    if token.is_sign("(") and previous.kind == "number":
        raise Refused(SYNTAX_ERROR, f"Syntax error: {previous.text[:40]}( calls nothing")
    if token.is_sign("(") and previous.kind in ("word", "quoted"):
        if previous.text.lower() in unsafe:
            raise Refused(
                ACCESS_DENIED,
                f"Not enough privileges: {previous.text}() reaches files or other hosts and is not allowed here",
            )
        return
    named = before[-2] if previous.text == "=" and len(before) > 1 else previous
    if named.is_word("ENGINE") and token.text != "=" and before[0].is_word("CREATE", "ALTER"):
        engine = token.text.lower()
        if not (engine in _ENGINES or engine.endswith("mergetree")):
            raise Refused(ACCESS_DENIED, f"Not enough privileges: ENGINE = {token.text} is not allowed here")


def _check_reader(tokens: list[Token]) -> None:
    for number, token in enumerate(tokens):
        before = tokens[max(0, number - 1)]
        name = token.text.lower() if token.kind in ("word", "quoted") else ""
        if name in _OTHERS_QUERIES:
            raise Refused(ACCESS_DENIED, f"reader: Not enough privileges: {token.text} shows what other users do")
        of_system = number > 1 and before.is_sign(".") and tokens[number - 2].text.lower() == "system"
        if of_system and name not in _DESCRIPTIONS:
            raise Refused(
                ACCESS_DENIED,
                f"reader: Not enough privileges: system.{token.text} tells of the engine and of its other users; a "
                "reader has tables of system that describe: tables, columns, databases, functions, settings, ...",
            )
        if before.is_sign(":") and token.is_word("IDENTIFIER"):
            raise Refused(ACCESS_DENIED, "reader: Not enough privileges: a name cannot be a parameter, write it out")


def _depth(token: Token) -> int:
    if token.kind != "sign":
        return 0
    return {"(": 1, ")": -1}.get(token.text, 0)


def _is_inserted_format(tokens: list[Token]) -> bool:
    """Whether the tokens so far are `INSERT ... FORMAT name`."""
    named = len(tokens) > 2 and tokens[-2].is_word("FORMAT") and tokens[-1].kind == "word"
    return named and tokens[0].is_word("INSERT")


def _insert(text: bytes, tokens: list[Token], pieces: list[Token]) -> Statement:
    clause, name = tokens[-2], tokens[-1]
    if name.text.lower() == "values":
        raise Refused(SYNTAX_ERROR, "write INSERT INTO ... VALUES (...) without FORMAT")
    # The rule of ClickHouse's ParserInsertQuery: blanks, then one line break, then data.
    rest = re.compile(rb"[ \t\f]*\r?\n?").match(text, name.end)
    return Statement(
        kind="INSERT",
        sql=_sql(pieces[: pieces.index(clause)]),
        insert_format=name.text,
        data_offset=rest.end() if rest else name.end,
    )


def _output_format(tokens: list[Token]) -> str | None:
    depth = 0
    found = None
    for token, following in pairwise(tokens):
        depth += _depth(token)
        if depth == 0 and token.is_word("FORMAT") and following.kind == "word":
            found = following.text
    return found
