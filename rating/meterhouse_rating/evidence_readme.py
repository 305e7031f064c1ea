"""The README of an evidence pack, for people."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meterhouse_rating.evidence_check.dates import period_in
from meterhouse_rating.layout import counted, money, table

_TEXT: Final = """\
Evidence of what {customer_id} used and was charged
===================================================

Namespace {namespace}, {period} (the end is not in it): from {period_start} to {period_end}.

{ratings}

How to verify it
----------------

    python3 PACK.zip              (Python 3.11 or newer, nothing else; PACK.zip is this file)
    meterhouse verify PACK.zip    (with the verifier that you have installed, not the one in the pack)

Exit code 0: all of it was recomputed and agrees. 1: something differs, and what. 2: it was called wrongly.
The program in the pack came with the pack: who could forge the one could forge the other. Compare evidence_check/ with
the source of Meterhouse, or verify with an installed Meterhouse, before you rely on it.

What is in it
-------------

    events.jsonl.gz      {events}, one per line, as they were counted: id, time, meter, quantity, dimensions, trace
    ratings.json         the lines with their arithmetic, what is left over and why, what had been agreed
    books/, books.json   the price books in the words they were published in, and their SHA-256
    costs.json           where prices mark up costs: one's own costs; catalogues/ has the price lists
    ledger.json          the customer's transactions with their seals in the ledger's chain
    completeness.json    what was known of the usage's completeness when the period was closed
    manifest.json        the SHA-256 of every other file; its own SHA-256 names the pack
    evidence_check/      the verifier, in Python's standard library

What it proves
--------------

That these events, by the text of this price book and what was agreed beside it, come to these lines, to the minor unit;
that the lines are the total; and that the ledger has them so. The verifier says what it recomputed, and what is only
carried. It does not prove that the events took place, or that none is missing: completeness.json says what is known of
that. That the ledger is the one that was kept then, an anchor shows that you have from elsewhere: --anchor FILE.
"""


def readme(
    about: Mapping[str, str], ratings: Sequence[Mapping[str, Any]], events: int, completeness: Mapping[str, Any]
) -> str:
    """The text; `completeness` by rating, as it was stated."""
    blocks = []
    for it in ratings:
        when = period_in(it["period_start"], it["period_end"], it["zone"])
        head = f"{when}: plan {it['plan']}, {it['state']}, as of {it['as_of'][:19]}"
        rows = [
            (line["description"], money(line["amount_minor"], it["currency"]), it["currency"]) for line in it["lines"]
        ]
        rows.append(("Total", money(it["total_minor"], it["currency"]), it["currency"]))
        stated = completeness[it["rating_id"]]
        verdict = "Its completeness is stated when it is closed." if stated is None else str(stated["verdict"])
        blocks.append(f"{head}\n\n{table(rows, right={1})}\n\n{verdict}")
    period = period_in(about["period_start"], about["period_end"], ratings[0]["zone"])
    return _TEXT.format(**about, period=period, ratings="\n\n".join(blocks), events=counted(events, "event"))
