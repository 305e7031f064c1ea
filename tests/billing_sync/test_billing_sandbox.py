"""The sandbox, seen by the real stripe SDK over HTTP."""

import json
import socket
import subprocess
import sys
import urllib.request

import pytest
import stripe

from meterhouse_sandbox.stripe_state import State, new_id


def draft(client, **params):
    customer = client.v1.customers.create({"name": "Acme", "email": "a@acme.example"})
    return client.v1.invoices.create({"customer": customer.id, "currency": "usd", **params})


def line(amount, **more):
    return {"amount": amount, "description": f"costs {amount}", **more}


def refusal(call):
    with pytest.raises(stripe.StripeError) as caught:
        call()
    assert caught.value.request_id.startswith("req_")
    return caught.value


def test_the_same_key_and_parameters_give_the_same_object_and_say_so(sandbox):
    params, options = {"name": "Acme"}, {"idempotency_key": "k1"}
    first = sandbox.client.v1.customers.create(params, options)
    again = sandbox.client.v1.customers.create(params, options)
    assert first.id == again.id
    assert "idempotent-replayed" not in first.last_response.headers
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert len(sandbox.client.v1.customers.list().data) == 1


def test_the_same_key_with_other_parameters_or_at_another_address_is_refused(sandbox):
    options = {"idempotency_key": "k1"}
    customer = sandbox.client.v1.customers.create({"name": "Acme"}, options)
    other = refusal(lambda: sandbox.client.v1.customers.create({"name": "Globex"}, options))
    assert (type(other), other.http_status) == (stripe.IdempotencyError, 400)
    elsewhere = refusal(lambda: sandbox.client.v1.customers.update(customer.id, {"name": "Acme"}, options))
    assert isinstance(elsewhere, stripe.IdempotencyError)


def test_a_request_that_was_refused_does_not_use_up_its_key(sandbox):
    options = {"idempotency_key": "k1"}
    refusal(lambda: sandbox.client.v1.customers.create({"nam": "Acme"}, options))
    assert sandbox.client.v1.customers.create({"name": "Acme"}, options).name == "Acme"


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"lines": [{"amount": 1, "colour": "red"}]}, "parameter_unknown", "lines[0][colour]"),
        ({"lines": [{"amount": "1.5"}]}, "parameter_invalid_integer", "lines[0][amount]"),
        ({"lines": [{"amount": 1, "period": {"start": 1}}]}, "parameter_missing", "lines[0][period][end]"),
        ({}, "parameter_missing", "lines"),
        (
            {"lines": [{"amount": 1, "tax_rates": ["txr_1"]}]},
            None,
            "lines.tax_rates",
        ),  # known to Stripe, not acted upon here
    ],
)
def test_parameters_are_held_against_the_contract_of_the_sdk(sandbox, params, code, param):
    invoice = draft(sandbox.client)
    problem = refusal(lambda: sandbox.client.v1.invoices.add_lines(invoice.id, params))
    assert (problem.http_status, problem.code, problem.param) == (400, code, param)


def test_a_mistake_in_one_line_adds_none_of_the_lines(sandbox):
    invoice = draft(sandbox.client)
    lines = [line(5), line(7, period={"start": 2, "end": 1})]
    refusal(lambda: sandbox.client.v1.invoices.add_lines(invoice.id, {"lines": lines}))
    assert sandbox.client.v1.invoices.retrieve(invoice.id).lines.data == []


def test_only_test_keys_are_taken(sandbox):
    live = stripe.StripeClient("sk_live_1", base_addresses={"api": sandbox.url})
    assert refusal(lambda: live.v1.customers.list()).http_status == 401


def test_the_total_is_the_sum_of_the_lines_and_lists_come_in_pages(sandbox):
    invoice = draft(sandbox.client)
    shown = sandbox.client.v1.invoices.add_lines(invoice.id, {"lines": [line(n) for n in range(25)]})
    assert (shown.total, len(shown.lines.data), shown.lines.has_more) == (300, 10, True)
    page = sandbox.client.v1.invoices.line_items.list(invoice.id, {"limit": 7})
    assert [each.amount for each in page.auto_paging_iter()] == list(range(24, -1, -1))
    sandbox.client.v1.invoice_items.create({"customer": invoice.customer, "invoice": invoice.id, "amount": -1})
    assert sandbox.client.v1.invoices.retrieve(invoice.id).total == 299


def test_a_finalised_invoice_has_a_number_and_a_page_and_cannot_be_changed(sandbox):
    client = sandbox.client
    invoice = draft(client)
    client.v1.invoices.add_lines(invoice.id, {"lines": [line(1234)]})
    shown = client.v1.invoices.finalize_invoice(invoice.id)
    assert (shown.status, shown.number, shown.amount_due) == ("open", "SANDBOX-0001", 1234)
    with urllib.request.urlopen(shown.hosted_invoice_url) as page:
        assert "12.34 USD" in page.read().decode()
    for change in (
        lambda: client.v1.invoices.add_lines(invoice.id, {"lines": [line(1)]}),
        lambda: client.v1.invoices.finalize_invoice(invoice.id),
        lambda: client.v1.invoices.delete(invoice.id),
    ):
        assert refusal(change).code == "invoice_not_editable"


def test_a_declined_card_leaves_the_invoice_open_and_a_good_one_pays_it_once(sandbox):
    client = sandbox.client
    invoice = draft(client)
    client.v1.invoices.add_lines(invoice.id, {"lines": [line(1234)]})
    client.v1.invoices.finalize_invoice(invoice.id)
    declined = refusal(lambda: client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_chargeDeclined"}))
    assert (declined.http_status, declined.code) == (402, "card_declined")
    shown = client.v1.invoices.retrieve(invoice.id)
    assert (shown.status, shown.attempt_count) == ("open", 1)
    paid = client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"})
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 1234, 0)
    assert refusal(lambda: client.v1.invoices.pay(invoice.id, {"payment_method": "pm_card_visa"}))
    types = [event.type for event in client.v1.events.list({"limit": 100}).data]
    assert types == [
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.finalized",
        "invoice.updated",
        "invoice.created",
        "customer.created",
    ]


def test_an_amount_too_small_to_charge_is_paid_with_nothing_and_owed_with_the_next_invoice(sandbox):
    client = sandbox.client
    small = draft(client)
    client.v1.invoices.add_lines(small.id, {"lines": [line(49)]})
    shown = client.v1.invoices.finalize_invoice(small.id)
    assert (shown.status, shown.amount_paid, shown.ending_balance) == ("paid", 0, 49)
    following = client.v1.invoices.create({"customer": small.customer, "currency": "usd"})
    client.v1.invoices.add_lines(following.id, {"lines": [line(100)]})
    shown = client.v1.invoices.finalize_invoice(following.id)
    assert (shown.status, shown.total, shown.amount_due) == ("open", 100, 149)


def test_sending_an_invoice_needs_an_address_to_send_it_to(sandbox):
    customer = sandbox.client.v1.customers.create({"name": "Acme"})
    params = {"customer": customer.id, "collection_method": "send_invoice", "days_until_due": 30}
    assert "Missing email" in str(refusal(lambda: sandbox.client.v1.invoices.create(params)))


def test_an_open_invoice_can_be_voided_and_a_draft_deleted(sandbox):
    client = sandbox.client
    invoice, other = draft(client), draft(client)
    client.v1.invoices.add_lines(invoice.id, {"lines": [line(100)]})
    assert refusal(lambda: client.v1.invoices.void_invoice(invoice.id)).code == "invoice_not_open"
    client.v1.invoices.finalize_invoice(invoice.id)
    assert client.v1.invoices.void_invoice(invoice.id).status == "void"
    assert client.v1.invoices.delete(other.id).deleted is True
    assert refusal(lambda: client.v1.invoices.retrieve(other.id)).code == "resource_missing"


def test_customers_are_found_by_their_metadata_whatever_it_holds(sandbox):
    made = sandbox.client.v1.customers.create({"name": "Acme", "metadata": {"the key": "ü & b=c"}})
    sandbox.client.v1.customers.create({"name": "Globex", "metadata": {"the key": "other"}})
    found = sandbox.client.v1.customers.search({"query": "metadata['the key']:'ü & b=c'"})
    assert [customer.id for customer in found.data] == [made.id]


def test_the_state_outlives_the_server(tmp_path, serve):
    from meterhouse_sandbox.stripe_server import application

    names = []
    for _ in range(2):
        with serve(application(tmp_path)) as server:
            client = stripe.StripeClient("sk_test_1", base_addresses={"api": server.url})
            names.append(client.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k"}).id)
            with urllib.request.urlopen(server.url + "/healthz") as reply:
                assert json.load(reply) == {"status": "ok"}
    assert names[0] == names[1]


def test_the_sandbox_s_first_page_lists_the_invoices_with_their_pages(sandbox):
    with urllib.request.urlopen(sandbox.url) as reply:
        assert "No invoices yet" in reply.read().decode()
    customer = sandbox.client.v1.customers.create({"name": "<Acme>"})
    invoice = sandbox.client.v1.invoices.create({"customer": customer.id, "currency": "usd"})
    sandbox.client.v1.invoices.add_lines(invoice.id, {"lines": [line(123_456_789)]})
    sandbox.client.v1.invoices.finalize_invoice(invoice.id)
    with urllib.request.urlopen(sandbox.url) as reply:
        shown = reply.read().decode()
    assert f'<a href="/_sandbox/invoices/{invoice.id}">SANDBOX-0001</a>' in shown
    assert "&lt;Acme&gt;</td><td>open</td>" in shown
    assert "1,234,567.89 USD" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stripe"], ["A local Stripe listens on {url}", "export METERHOUSE_STRIPE_URL={url} ", "No webhooks"]),
        (["provider", "--log", "log.jsonl"], ["provider listens on {url}", "refuses 5 % of the attempts", "log.jsonl"]),
        (["provider", "--log", "log.jsonl", "--fault-rate", "0"], ["refuses no attempt"]),
    ],
    ids=["stripe", "provider", "provider without faults"],
)
def test_a_sandbox_says_where_it_listens_and_its_first_page_answers(arguments, told, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "sandbox", *arguments, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            said = process.stdout.readline()  # printed only when it listens
            with urllib.request.urlopen(url) as reply:
                assert reply.status == 200
        finally:
            process.terminate()
        said += process.stdout.read()
    assert [words for words in told if words.format(url=url) not in said] == []


def test_invoices_are_numbered_on_after_a_restart_per_account_and_without_counting_them_again(tmp_path):
    file = tmp_path / "stripe.db"
    state = State(file, webhooks=False)
    for number in ("SANDBOX-0001", None, "SANDBOX-0002"):  # of before there was a count of them, and a draft
        state.put("invoice", {"id": new_id("in"), "number": number})
    assert [state.next_invoice_number() for _ in range(2)] == [3, 4]
    state.account = "acct_1"
    assert state.next_invoice_number() == 1
    state.close()
    state = State(file, webhooks=False)
    read = []
    state._sql.set_trace_callback(read.append)
    assert state.next_invoice_number() == 5
    assert not [it for it in read if "FROM objects" in it]
    state.close()
