"""The READMEs of an evidence pack, for people: in English, and in German."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meterhouse_rating.evidence_check.dates import period_in
from meterhouse_rating.layout import counted, money, table
from meterhouse_rating.money import of_minor
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.language import Language

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
{costs}    ledger.json          the customer's transactions with their seals in the ledger's chain
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


_GERMAN: Final = """\
Nachweis dessen, was {customer_id} genutzt hat und was dafür berechnet wurde
{line}

Namensraum {namespace}, {period} (ohne das Ende): von {period_start} bis {period_end}.

{ratings}

Wie man ihn prüft
-----------------

    python3 PACK.zip              (Python 3.11 oder neuer, sonst nichts; PACK.zip ist diese Datei)
    meterhouse verify PACK.zip    (mit dem Prüfprogramm, das Sie installiert haben, nicht dem in der Datei)

Antwortet das Programm mit 0, wurde alles nachgerechnet und stimmt. Mit 1: etwas weicht ab, und was. Mit 2: es
wurde falsch aufgerufen. Das Programm in der Datei kam mit ihr: Wer das eine fälschen kann, kann auch das andere
fälschen. Vergleichen Sie evidence_check/ mit dem Quelltext von Meterhouse, oder prüfen Sie mit einem
installierten Meterhouse, bevor Sie sich darauf verlassen. Das Programm und die Daten sind auf Englisch.

Was darin ist
-------------

    events.jsonl.gz      {events}, je Zeile eines, wie gezählt: Kennung, Zeit, Zähler, Menge, Dimensionen, Spur
    ratings.json         die Posten mit ihrer Rechnung, was warum übrig blieb, und was vereinbart war
    books/, books.json   die Preisbücher im veröffentlichten Wortlaut, und ihre SHA-256
{costs}    ledger.json          die Buchungen des Kunden mit ihren Siegeln in der Kette des Hauptbuchs
    completeness.json    was beim Abschluss über die Vollständigkeit der Nutzung bekannt war
    manifest.json        die SHA-256 aller anderen Dateien; seine eigene SHA-256 benennt den Nachweis
    evidence_check/      das Prüfprogramm, in der Standardbibliothek von Python

Was er beweist
--------------

Dass diese Ereignisse nach dem Wortlaut dieses Preisbuchs und dem, was daneben vereinbart war, diese Posten
ergeben, auf die kleinste Einheit genau; dass die Posten die Summe ergeben; und dass das Hauptbuch sie so hat.
Das Prüfprogramm sagt, was es nachgerechnet hat und was nur mitgeführt wird. Er beweist nicht, dass die
Ereignisse stattfanden oder dass keines fehlt: Was davon bekannt ist, sagt completeness.json. Dass das Hauptbuch
noch das von damals ist, zeigt ein Anker, den Sie von anderswo haben: --anchor DATEI.
"""

_COSTS: Final = "    costs.json           what costs are that prices mark up: one's own, and by which price lists\n"
_LISTS: Final = "    catalogues/          these price lists, in their words\n"
_GERMAN_COSTS: Final = (
    "    costs.json           die Kosten, auf die Preise aufschlagen: eigene, und nach welchen Preislisten\n"
)
_GERMAN_LISTS: Final = "    catalogues/          diese Preislisten, in ihrem Wortlaut\n"

README: Final = "README.txt"
GERMAN_README: Final = "LIESMICH.txt"
_TO: Final = Language("de")


def readmes(
    about: Mapping[str, str], ratings: Sequence[Mapping[str, Any]], events: int, completeness: Mapping[str, Any]
) -> dict[str, str]:
    """The texts by the names of their files, one in each language; `completeness` by rating, as it was stated."""
    period = period_in(about["period_start"], about["period_end"], ratings[0]["zone"])
    told = {**about, "period": period}
    english = "\n\n".join(_rating(it, completeness[it["rating_id"]]) for it in ratings)
    german = "\n\n".join(_rating_in_german(it, completeness[it["rating_id"]]) for it in ratings)
    title = _GERMAN.partition("\n")[0].format(**told)
    number = f"{_TO.number(events)} {'Ereignis' if events == 1 else 'Ereignisse'}"
    # The name of a cost of one's own is a hash; one of a price list begins with the list's name and a slash.
    costs = any("costs" in it for it in ratings)
    lists = any("/" in rate.get("entry", "") for it in ratings for rate in it.get("costs", ()))
    files = _COSTS * costs + _LISTS * lists
    german_files = _GERMAN_COSTS * costs + _GERMAN_LISTS * lists
    return {
        README: _TEXT.format(**told, ratings=english, events=counted(events, "event"), costs=files),
        GERMAN_README: _GERMAN.format(**told, ratings=german, events=number, line="=" * len(title), costs=german_files),
    }


def _rating(it: Mapping[str, Any], stated: Mapping[str, Any] | None) -> str:
    when = period_in(it["period_start"], it["period_end"], it["zone"])
    head = f"{when}: plan {it['plan']}, {it['state']}, as of {it['as_of'][:19]}"
    rows = [(line["description"], money(line["amount_minor"], it["currency"]), it["currency"]) for line in it["lines"]]
    rows.append(("Total", money(it["total_minor"], it["currency"]), it["currency"]))
    verdict = "Its completeness is stated when it is closed." if stated is None else str(stated["verdict"])
    return f"{head}\n\n{table(rows, right={1})}\n\n{verdict}"


def _rating_in_german(it: Mapping[str, Any], stated: Mapping[str, Any] | None) -> str:
    currency = it["currency"]

    def amount(minor: int) -> str:
        return _TO.fixed(of_minor(minor, currency), MINOR_DIGITS[currency])

    when = period_in(it["period_start"], it["period_end"], it["zone"])
    state = {"open": "offen", "closed": "abgeschlossen"}.get(it["state"], it["state"])
    head = f"{when}: Tarif {it['plan']}, {state}, Stand {it['as_of'][:19]}"
    rows = [(line["description"], amount(line["amount_minor"]), currency) for line in it["lines"]]
    rows.append(("Summe", amount(it["total_minor"]), currency))
    verdict = "Die Vollständigkeit wird mit dem Abschluss festgestellt."
    if stated is not None:
        verdict = f"Zur Vollständigkeit wurde festgestellt: {_german_verdict(stated)}"
    return f"{head}\n\n{table(rows, right={1})}\n\n{verdict}"


def _german_verdict(stated: Mapping[str, Any]) -> str:
    """What `verdict` says in English (meterhouse_store.completeness), from the same counts."""
    events, streams = sum(it["events"] for it in stated["streams"]), len(stated["streams"])
    seen = f"{_TO.number(events)} {'Ereignis' if events == 1 else 'Ereignisse'} aus {_TO.number(streams)} "
    seen += "Datenstrom" if streams == 1 else "Datenströmen"
    if not stated["exceptions"]:
        return f"Soweit bekannt vollständig: {seen}, nichts wird zurückgehalten und nichts fehlt."
    return f"Nicht sicher vollständig: {seen}, {_TO.number(len(stated['exceptions']))} anzusehen."
