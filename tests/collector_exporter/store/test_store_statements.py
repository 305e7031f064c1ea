"""The rules on statements, without an engine."""

import pytest

from meterhouse_store.statements import Refused, inspect, unsafe_functions

UNSAFE = unsafe_functions(frozenset({"file", "url", "remote", "s3", "numbers", "executable", "newAndUnknown"}))


def code_of(text: str | bytes, user: str = "admin") -> int:
    with pytest.raises(Refused) as refused:
        inspect(text.encode() if isinstance(text, str) else text, user, UNSAFE)
    return refused.value.code


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM file('/etc/passwd')",
        "SELECT * FROM FiLe ('/etc/passwd')",
        "SELECT * FROM file/* a */-- b\n('/etc/passwd')",
        "SELECT * FROM `file`('/etc/passwd')",
        'SELECT * FROM "FILE"(\'/etc/passwd\')',
        "SELECT file('/etc/passwd')",
        "SELECT 1, (SELECT file('/etc/passwd'))",
        "EXPLAIN SELECT * FROM url('http://x')",
        "INSERT INTO FUNCTION file('/tmp/x') SELECT 1",
        "INSERT INTO t VALUES (file('/etc/passwd'))",
        "INSERT INTO t SELECT * FROM remote('h', 'd', 't')",
        "CREATE VIEW v AS SELECT * FROM s3('x')",
        "ALTER TABLE t ADD COLUMN c String DEFAULT file('/etc/passwd')",
        "SELECT * FROM newAndUnknown(1)",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT 1 into/**/outfile '/tmp/x'",
        "INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV",
        "CREATE TABLE t (a Int8) ENGINE = File(TSV)",
        "CREATE TABLE t (a Int8) ENGINE/**/`URL`('http://x')",
        "CREATE TABLE t (a Int8) ENGINE EmbeddedRocksDB(0, '/tmp/x') PRIMARY KEY a",
        "CREATE TABLE t (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '/')",
        "CREATE DATABASE d ENGINE = Filesystem('/etc')",
        "SYSTEM SHUTDOWN",
        "SYSTEM STOP MERGES",
        "SET ROLE admin",
        "GRANT ALL ON *.* TO default",
        "BACKUP DATABASE d TO File('/tmp/x')",
        "ATTACH TABLE t FROM '/etc/'",
        "EXECUTE AS admin SELECT 1",
        "KILL QUERY WHERE 1",
        "SELECT aiGenerate('c', 'x')",
        "CREATE TABLE t (a Int8) ENGINE = Null PARALLEL WITH SET ROLE NONE",
    ],
)  # fmt: skip
def test_what_reaches_files_hosts_or_the_server_is_refused_however_it_is_written(statement):
    assert code_of(statement) == 497


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1 /* ; */ ; DROP TABLE t",
        "",
        "-- nothing",
        "SELECT 'unclosed",
        "SELECT `fi\\x6ce`('/etc/passwd')",
        "SELECT \u2018x\u2019",
        "SELECT /* unclosed",
        "SELECT $tag$ unclosed",
        b"SELECT \xff",
        b"SELECT \x00 1",
        "SELECT /* /* */ ' */ file($$/etc/passwd$$) -- '",
        "/* /* */ SELECT 1, ' */ SET ROLE admin -- '",
        "SELECT 1 /* /* */ ' */ INTO OUTFILE '/tmp/x' -- '",
        "SELECT .1efile('/etc/passwd')",
        "SELECT 1 + .5eprocesses",
        "SELECT 1 + .5e-1processes",
        "SELECT .5e--1",
        "SELECT 1efile('/etc/passwd')",
        "SELECT a$b$ ' $b$ FROM t",
        "SELECT 'a'$b$c$b$",
        "SELECT $b$c$b$'a'",
        "SELECT x'4g', 'file('",
        "SELECT 0x1.b'01'",
        "SELECT 1 \\G",
        "SELECT #a",
    ],
)
def test_what_cannot_be_read_with_certainty_is_a_syntax_error(statement):
    assert code_of(statement) == 62


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE t (a Int8) ENGINE = Null",
        "DROP TABLE t",
        "SET max_threads = 1",
        "USE d",
        "SYSTEM FLUSH LOGS",
    ],
)
def test_a_reader_may_not_write(statement):
    assert code_of(statement, "reader") == 164


@pytest.mark.parametrize(
    "statement", ["SHOW PROCESSLIST", "SELECT query FROM system.processes", "SELECT * FROM `Processes`"]
)
def test_a_reader_does_not_see_what_others_ask(statement):
    assert code_of(statement, "reader") == 497


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM system.events",
        "SELECT * FROM system . `user_processes`",
        'SELECT 1 IN "system"."stack_trace"',
        "DESCRIBE TABLE SYSTEM.Disks",
    ],
)
def test_of_system_a_reader_has_what_describes(statement):
    assert code_of(statement, "reader") == 497
    inspect(statement.encode(), "admin", UNSAFE)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT name FROM system.tables",
        "SELECT 1 FROM system.`one`",
        "SELECT merge FROM t",
        "SELECT events FROM system",
    ],
)
def test_a_reader_is_told_what_there_is(statement):
    inspect(statement.encode(), "reader", UNSAFE)


def test_a_reader_does_not_name_a_table_by_a_parameter():
    statement = "SELECT query FROM system.{t:Identifier}"
    assert code_of(statement, "reader") == 497
    inspect(statement.encode(), "admin", UNSAFE)


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("SELECT /* a */ 1 -- b\n, 2 // c\n, 3 # d\n, 4 #! e", "SELECT   1  \n, 2  \n, 3  \n, 4  "),
        ("SELECT 3--2", "SELECT 3 "),
        ("SELECT-/**/-1", "SELECT- -1"),
        ("SELECT $a$it's \\ $$ -- $a$", "SELECT 'it\\'s \\\\ $$ -- '"),
        ("SELECT 'it''s \\' -- /*', `a``b`, \"c\"\"/*\"", "SELECT 'it''s \\' -- /*', `a``b`, \"c\"\"/*\""),
        ("SELECT x'4A', b'01', 0x1F, 1.5e-3, .5, t.1, 1_000", "SELECT x'4A', b'01', 0x1F, 1.5e-3, .5, t.1, 1_000"),
        ("INSERT INTO t /* b */ FORMAT TSV\n/* data */", "INSERT INTO t   "),
    ],
)
def test_the_engine_gets_what_was_checked_without_comments_and_with_plain_strings(text, sql):
    assert inspect(text.encode(), "admin", UNSAFE).sql == sql


def test_a_statement_of_comments_alone_does_not_keep_the_lexer_busy():
    assert code_of("/**/" * 500_000) == 497


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1;",
        "SELECT 'file(x) INTO OUTFILE ; ' AS outfile_name",
        "SELECT file FROM t WHERE url = 'x' -- file(\n",
        "SELECT 1.5e-3, 0x1F, [1, 2][1], {name:String}, x.1, a -> b, c::Int8, d ?: e FROM numbers(3)",
        "WITH x AS (SELECT 1) SELECT * FROM x FORMAT JSON",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT $$file('x')$$, $a$b$a$",
        "SHOW TABLES",
        "EXISTS t",
        "SELECT name FROM system.tables WHERE engine LIKE '%MergeTree' AND engine = 'File'",
        "DESCRIBE TABLE t",
    ],
)
def test_ordinary_questions_pass_for_a_reader(statement):
    inspect(statement.encode(), "reader", UNSAFE)


def test_a_mistyped_statement_is_not_called_a_lack_of_privileges():
    with pytest.raises(Refused) as refused:
        inspect(b"SELEC 1", "reader", UNSAFE)
    assert str(refused.value) == "'SELEC' begins no statement that this user may run"


def test_the_data_of_an_insert_begins_after_the_format_and_one_line_break():
    text = b"INSERT INTO t (a, b) SETTINGS async_insert = 0 FORMAT RowBinary \r\n\xff\x00; file('x')"
    statement = inspect(text, "admin", UNSAFE)
    assert statement.sql == "INSERT INTO t (a, b) SETTINGS async_insert = 0 "
    assert statement.insert_format == "RowBinary"
    assert text[statement.data_offset :] == b"\xff\x00; file('x')"


def test_the_format_of_a_select_inside_an_insert_is_not_data():
    statement = inspect(b"INSERT INTO t SELECT * FROM u FORMAT TSV", "admin", UNSAFE)
    assert statement.insert_format is None


def test_values_are_read_as_sql_because_their_expressions_are_evaluated():
    assert code_of("INSERT INTO t FORMAT Values (file('/etc/passwd'))") == 62


def test_the_last_format_clause_outside_of_brackets_is_the_result_s():
    assert inspect(b"SELECT format, 'FORMAT CSV' FROM t FORMAT JSON", "admin", UNSAFE).output_format == "JSON"
    assert inspect(b"SELECT 1", "admin", UNSAFE).output_format is None


def test_what_one_user_was_allowed_another_is_refused_though_it_is_the_same_text():
    for _ in range(2):
        assert inspect(b"DROP VIEW usage", "admin", UNSAFE).kind == "DROP"
        with pytest.raises(Refused):
            inspect(b"DROP VIEW usage", "reader", UNSAFE)
        assert inspect(b"SELECT file('x')", "admin", frozenset()).kind == "SELECT"
        with pytest.raises(Refused):
            inspect(b"SELECT file('x')", "admin", UNSAFE)
