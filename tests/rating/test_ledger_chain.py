"""The ledger holds: what is changed, removed, inserted or put elsewhere is found, and the database refuses it first."""

import threading
from dataclasses import replace

import pytest
from ledger_samples import DAY, furnished, post, sale, without_rules
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from meterhouse_rating import ledger
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_rating.ledger_proof import Anchor, prove, prove_on
from meterhouse_store import ledger_rules, registry, sql_migrations
from meterhouse_store.chain_proof import GENESIS
from meterhouse_store.ledger_chain import personal_seal, seal_of
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write, open_engine
from meterhouse_store.tables import ledger_chain, ledger_entries, ledger_transactions


@pytest.fixture
def engine(sql_url, tmp_path):
    made = open_engine(Settings(data=tmp_path, sql_url=sql_url))
    yield made
    made.dispose()


def problems(engine, *anchors):
    return prove(engine, "test", anchors).problems


def anchor(engine, sequence=None):
    proof = prove(engine, "test")
    assert proof.problems == []
    return Anchor("test", proof.sequence, proof.hash, DAY)


def test_a_ledger_that_nobody_touched_holds(engine):
    assert prove(engine, "test").sequence == 0
    furnished(engine)
    proof = prove(engine, "test", [anchor(engine)])
    assert (proof.problems, proof.sequence, proof.erased) == ([], 5, 0)


def test_the_seal_covers_the_same_bytes_for_ever():
    transaction = {
        "transaction_id": "t1", "namespace": "live", "kind": "usage", "source_id": "line-1", "effective_at": DAY,
        "recorded_at": DAY, "corrects": None,
    }  # fmt: skip
    sides = [
        {"position": 1, "account": "revenue", "amount_minor": -5, "currency": "USD", "grant_id": None},
        {"position": 0, "account": "receivable", "amount_minor": 5, "currency": "USD", "grant_id": None},
    ]
    personal = personal_seal("salt", "acme", "Töken")
    # sha256sum of these bytes, by coreutils:
    # ["salt","acme","Töken"]
    assert personal == "c9df8f96f50af9cd7a017b1dce976fe2cd2f12c9babe6dd9ab44f9fbad7b6ba8"
    # ["live",1,"000..0","<the above>",["t1","usage","line-1","2026-11-01T00:00:00.000000+00:00",<again>,null],
    #  [[0,"receivable",5,"USD",null],[1,"revenue",-5,"USD",null]]]
    sealed = seal_of(GENESIS, 1, personal, transaction, sides)
    assert sealed == "b2c0cf9b6b07e27baff848e6f6c1eadf8935b2504bc7b25b4b6019c774fd8b7c"


def change(table, condition, **values):
    return lambda connection: connection.execute(update(table).where(condition).values(**values))


def second(connection):
    query = select(ledger_chain.c.transaction_id).where(ledger_chain.c.sequence == 2)
    return connection.execute(query).scalar_one()


def remove_one(connection):
    name = second(connection)
    for table in (ledger_chain, ledger_entries, ledger_transactions):
        connection.execute(delete(table).where(table.c.transaction_id == name))


def remove_one_and_close_the_gap(connection):
    remove_one(connection)
    for sequence in (3, 4, 5):
        moved = update(ledger_chain).where(ledger_chain.c.sequence == sequence).values(sequence=sequence - 1)
        connection.execute(moved)


def remove_without_its_seal(connection):
    name = second(connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    connection.execute(delete(ledger_entries).where(ledger_entries.c.transaction_id == name))


def insert_unsealed(connection):
    row = connection.execute(select(ledger_transactions).limit(1)).mappings().one()
    connection.execute(insert(ledger_transactions).values({**row, "transaction_id": "x" * 64, "source_id": "x"}))
    for position, (account, amount) in enumerate((("receivable", 7), ("revenue", -7))):
        connection.execute(
            insert(ledger_entries).values(
                transaction_id="x" * 64, position=position, account=account, amount_minor=amount, currency="USD"
            )
        )


def insert_in_the_middle(connection):
    insert_unsealed(connection)
    for sequence in (5, 4, 3):
        moved = update(ledger_chain).where(ledger_chain.c.sequence == sequence).values(sequence=sequence + 1)
        connection.execute(moved)
    before = connection.execute(select(ledger_chain).where(ledger_chain.c.sequence == 2)).mappings().one()
    connection.execute(
        insert(ledger_chain).values(
            {**before, "sequence": 3, "transaction_id": "x" * 64, "previous_hash": before["hash"], "hash": "f" * 64}
        )
    )


def swap_two(connection):
    for now, then in ((2, 99), (3, 2), (99, 3)):
        connection.execute(update(ledger_chain).where(ledger_chain.c.sequence == now).values(sequence=then))


def first_entry(connection):
    return (ledger_entries.c.transaction_id == second(connection)) & (ledger_entries.c.position == 0)


TAMPERING = {
    "an amount": lambda c: change(ledger_entries, ledger_entries.c.transaction_id == second(c), amount_minor=0)(c),
    "both amounts alike": lambda c: [
        change(ledger_entries, (ledger_entries.c.transaction_id == second(c)) & (ledger_entries.c.position == at),
               amount_minor=amount)(c)
        for at, amount in ((0, 90), (1, -90))
    ],
    "an account": lambda c: change(ledger_entries, first_entry(c), account="cash")(c),
    "a currency": lambda c: change(ledger_entries, ledger_entries.c.transaction_id == second(c), currency="EUR")(c),
    "whose credits": lambda c: change(ledger_entries, first_entry(c), grant_id="g")(c),
    "a date": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c),
                               effective_at=DAY)(c),
    "when it was recorded": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c),
                                             recorded_at=DAY)(c),
    "the customer": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c),
                                     customer_id="globex")(c),
    "the memo": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c), memo="x")(c),
    "what it corrects": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c),
                                         corrects="x")(c),
    "the kind": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c), kind="x")(c),
    "the cause": lambda c: change(ledger_transactions, ledger_transactions.c.transaction_id == second(c),
                                  source_id="x")(c),
    "a hash": lambda c: change(ledger_chain, ledger_chain.c.sequence == 2, hash="f" * 64)(c),
    "a link": lambda c: change(ledger_chain, ledger_chain.c.sequence == 2, previous_hash="f" * 64)(c),
    "a salt": lambda c: change(ledger_chain, ledger_chain.c.sequence == 2, personal_salt=None)(c),
    "a removal": remove_one,
    "a removal without a gap": remove_one_and_close_the_gap,
    "a removal that leaves the seal": remove_without_its_seal,
    "an insertion beside the chain": insert_unsealed,
    "an insertion in the middle": insert_in_the_middle,
    "a reordering": swap_two,
}  # fmt: skip


def test_tampering_of_every_kind_is_found(engine):
    furnished(engine)
    without_rules(engine)
    for what, tamper in TAMPERING.items():
        with engine.connect() as connection, connection.begin() as transaction:
            tamper(connection)
            assert prove_on(connection, "test").problems, what
            transaction.rollback()
    assert problems(engine) == []


def test_tampering_is_refused_by_the_database_itself(engine):
    furnished(engine)
    # It lets pass an insertion beside the chain, which is what every posting begins with, and forgetting a salt, which
    # is what erasing does. Both are found, above.
    for what in set(TAMPERING) - {"an insertion beside the chain", "a salt"}:
        with pytest.raises(DBAPIError, match="ledger: "), begin_write(engine) as connection:
            TAMPERING[what](connection)
    assert problems(engine) == []


def test_an_end_that_was_cut_off_is_found_by_an_anchor_only(engine):
    furnished(engine)
    before = anchor(engine)
    without_rules(engine)
    with begin_write(engine) as connection:
        last = select(ledger_chain.c.transaction_id).where(ledger_chain.c.sequence == 5)
        name = connection.execute(last).scalar_one()
        for table in (ledger_chain, ledger_entries, ledger_transactions):
            connection.execute(delete(table).where(table.c.transaction_id == name))
    assert problems(engine) == []
    assert problems(engine, before) == ["an anchor knows 5 transactions, the ledger has 4: its end is missing"]


def test_a_chain_that_was_made_anew_is_found_by_an_anchor_only(engine):
    furnished(engine)
    before = anchor(engine)
    without_rules(engine)
    with begin_write(engine) as connection:
        connection.execute(delete(ledger_chain))
        connection.execute(update(ledger_entries).values(amount_minor=ledger_entries.c.amount_minor * 2))
        sql_migrations.fill(connection, 2)
    assert problems(engine) == []
    (found,) = problems(engine, before)
    assert found.startswith("transaction 5 has the seal ") and found.endswith("what was there then was changed")


def test_an_anchor_still_holds_when_the_ledger_went_on_and_one_of_another_ledger_does_not(engine):
    furnished(engine)
    before = anchor(engine)
    post(engine, sale(6), day=6)
    assert problems(engine, before, anchor(engine)) == []
    (found,) = problems(engine, replace(before, namespace="live"))
    assert found == "an anchor is of the ledger of live, this is that of test"


@pytest.mark.parametrize(
    "sides",
    [
        (Entry("receivable", 5, "USD"), Entry("revenue", -4, "USD")),
        (Entry("receivable", 5, "USD"), Entry("revenue", -5, "EUR")),
        (Entry("receivable", 0, "USD"),),
        (),
        (Entry("slush_fund", 5, "USD"), Entry("revenue", -5, "USD")),
    ],
)
def test_what_does_not_sum_to_zero_per_currency_or_has_no_such_account_is_not_posted(engine, sides):
    furnished(engine, 1)
    with pytest.raises(ValueError, match="ledger"):
        post(engine, Posting("usage", "odd", "odd", sides))
    assert prove(engine, "test").sequence == 1


def test_the_database_seals_nothing_that_does_not_sum_to_zero(engine):
    furnished(engine, 1)
    unbalanced = Posting("usage", "odd", "odd", (Entry("receivable", 5, "USD"), Entry("revenue", -4, "USD")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "_check", lambda posting: None)
        with pytest.raises(IntegrityError, match="sums to zero in each currency"):
            post(engine, unbalanced)
    assert prove(engine, "test").sequence == 1


def test_a_correction_names_a_transaction_of_the_same_customer(engine):
    first, *_ = furnished(engine, 2)
    post(engine, sale("credit", -30, corrects=first), day=3)
    assert problems(engine) == []
    post(engine, sale("wrong", -30, corrects="e" * 64), day=3)
    (found,) = problems(engine)
    assert found.endswith("corrects eeeeeeeeeeee, which is none of the same customer")


def test_the_same_posting_is_refused_a_second_time_and_leaves_the_chain_as_it_was(engine):
    furnished(engine, 2)
    with pytest.raises(IntegrityError):
        post(engine, sale(3), sale(1))
    proof = prove(engine, "test")
    assert (proof.sequence, proof.problems) == (2, [])


def test_writers_at_once_make_one_chain(engine):
    furnished(engine, 1)
    start = threading.Barrier(4)

    def write(number):
        start.wait()
        for at in range(10):
            post(engine, sale(f"{number}-{at}"), sale(f"{number}-{at}b"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proof = prove(engine, "test")
    assert (proof.sequence, proof.problems) == (81, [])


def test_namespaces_have_chains_of_their_own(engine):
    furnished(engine, 2)
    registry.ensure_namespace(engine, "live")
    post(engine, sale("live"), namespace="live")
    assert (prove(engine, "test").sequence, prove(engine, "live").sequence) == (2, 1)


def test_a_ledger_from_before_the_chain_is_sealed_in_the_order_in_which_it_was_recorded(engine, sql_url, tmp_path):
    names = furnished(engine, 3)
    without_rules(engine)
    with begin_write(engine) as connection:
        connection.execute(text("DROP TABLE ledger_chain"))
        connection.execute(text("ALTER TABLE ledger_entries DROP COLUMN grant_id"))
        connection.execute(text("ALTER TABLE credentials DROP COLUMN role"))
        connection.execute(text("UPDATE schema_version SET version = 2"))
        if engine.dialect.name == "postgresql":
            for name, _ in ledger_rules.NAMES:
                connection.execute(text(f"DROP FUNCTION {name}"))
    again = open_engine(Settings(data=tmp_path, sql_url=sql_url))
    proof = prove(again, "test")
    assert (proof.sequence, proof.problems) == (3, [])
    with again.connect() as connection:
        query = select(ledger_chain.c.transaction_id).order_by(ledger_chain.c.sequence)
        assert connection.execute(query).scalars().all() == names
    with pytest.raises(DBAPIError, match="ledger: "), begin_write(again) as connection:
        connection.execute(delete(ledger_entries))
    again.dispose()
