"""The sandbox's pages for people: the list of invoices at `/`, and the page behind hosted_invoice_url."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from html import escape
from typing import Any, Final

Invoice = Mapping[str, Any]

_ZERO_DECIMAL: Final = frozenset(
    ["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"]
)
_THREE_DECIMAL: Final = frozenset(["bhd", "jod", "kwd", "omr", "tnd"])

_STYLE: Final = """
:root { color-scheme: light dark; }
body { max-width: 52rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid #8886; text-align: start; vertical-align: top; }
.list th, .list td, .amount { white-space: nowrap; }
.amount { text-align: end; padding-right: 0; font-variant-numeric: tabular-nums; }
button { margin: 1rem 0 0; padding: .5rem 1rem; font: inherit; }
.soft { opacity: .75; }
"""


def index(invoices: Sequence[Invoice], customers: Mapping[str, str]) -> str:
    """All invoices, the newest first; `customers` gives a name by the customer's id."""
    rows = "".join(
        f"<tr><td>{_link(invoice)}</td><td>{escape(customers.get(invoice['customer'], invoice['customer']))}</td>"
        f"<td>{escape(invoice['status'])}</td>"
        f'<td class="amount">{_amount(invoice["total"], invoice["currency"])}</td></tr>'
        for invoice in invoices
    )
    table = (
        '<div class="wide"><table class="list"><thead><tr><th scope="col">Invoice</th><th scope="col">Customer</th>'
        f'<th scope="col">State</th><th scope="col" class="amount">Total</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
        if rows
        else "<p>No invoices yet: <code>meterhouse bill run --period P</code> makes drafts of what is closed.</p>"
    )
    return _document("Sandbox Stripe", f"<h1>Invoices</h1>{table}")


def page(invoice: Invoice, lines: Iterable[Mapping[str, Any]], query: str = "") -> str:
    """One invoice as its customer sees it, with a button that pays it while it is open; `lines` newest first.

    `query` names the connected account, where it is one's.
    """
    currency = invoice["currency"]
    rows = "".join(
        f"<tr><td>{escape(line['description'] or '')}</td>"
        f'<td class="amount">{_amount(line["amount"], currency)}</td></tr>'
        for line in reversed(list(lines))
    )
    button = ""
    if invoice["status"] == "open":
        action = escape(f"/_sandbox/pay/{invoice['id']}{query}")
        button = f'<form method="post" action="{action}"><button>Pay as the customer</button></form>'
    title = f"Invoice {invoice['number'] or 'draft'}"
    return _document(
        title,
        f"<h1>{escape(title)}: {escape(invoice['status'])}</h1><table>{rows}"
        f'<tr><th scope="row">Total</th><th class="amount">{_amount(invoice["total"], currency)}</th></tr></table>'
        f'{button}<p><a href="/">All invoices</a></p>',
    )


def checkout(session: Mapping[str, Any]) -> str:
    """Where a customer leaves a card, or pays; what is posted is always Stripe's test card."""
    if session["mode"] == "payment":
        amount = _amount(session["amount_total"], session["currency"])
        button = '<form method="post"><button>Pay as the customer</button></form>'
        told = f"<p>{amount}: {escape(session['status'])}</p>{button if session['status'] == 'open' else ''}"
        return _document("Checkout", f"<h1>Checkout</h1>{told}")
    done = session["status"] == "complete"
    button = "" if done else '<form method="post"><button>Leave a test card</button></form>'
    told = "A card is on file." if done else "Your card is charged for later invoices."
    return _document("Payment method", f"<h1>Payment method</h1><p>{told}</p>{button}")


def missing(name: str) -> str:
    """The answer where there is no such invoice."""
    return _document("No such invoice", f'<h1>No invoice {escape(name)}</h1><p><a href="/">All invoices</a></p>')


def _link(invoice: Invoice) -> str:
    return f'<a href="/_sandbox/invoices/{invoice["id"]}">{escape(invoice["number"] or "draft")}</a>'


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>'
        f'<body>{body}<p class="soft">A local sandbox of Stripe: no money moves.</p></body></html>'
    )


def _amount(amount: int, currency: str) -> str:
    digits = 0 if currency in _ZERO_DECIMAL else 3 if currency in _THREE_DECIMAL else 2
    return f"{Decimal(amount).scaleb(-digits):,f} {escape(currency.upper())}"
