"""Prompts, answers, tool arguments, results, keys and addresses stay in the host: all that is written is searched."""

import logging
from pathlib import Path

import pytest
from host_programs import HOSTS, SECRETS, outcome

import meterhouse
import meterhouse.runtime
from meterhouse import limits
from meterhouse.allowance_client import Client


def written(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def searched(*places: bytes | str) -> list[str]:
    """The secrets that are in one of these places."""
    raw = b"\n".join(place.encode() if isinstance(place, str) else place for place in places)
    return [secret for secret in SECRETS if secret.encode() in raw]


def test_the_search_finds_what_it_looks_for():
    assert searched("nothing", SECRETS[0].encode()) == [SECRETS[0]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", HOSTS)
def test_no_secret_of_a_host_is_sent_journalled_or_logged(
    metering, sink, provider, library, monkeypatch, caplog, capfd, name
):
    host = HOSTS[name]
    library(host.library)
    monkeypatch.setattr(limits, "_client", Client())
    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    questions = []
    sink.allowance = lambda question: questions.append(question) or (404, b"{}")
    sink.answers += [(400, (), b"refused")] * 100  # so that files of what was refused are written as well
    for reply in host.replies:
        reply(provider)
    with caplog.at_level(logging.DEBUG, logger="meterhouse"):
        with meterhouse.customer("acme"), meterhouse.agent("support"), meterhouse.task():
            outcome(host.program, provider.url)
        journal = written(metering.journals)
        meterhouse.runtime.flush(10)
    refused = written(metering.journals)
    ours = [record for record in caplog.records if record.name.startswith("meterhouse")]
    logged = "\n".join(logging.Formatter().format(record) for record in ours)
    sent = [body for _, body in sink.requests] + sink.refused
    assert searched(*sent, journal, refused, logged, str(questions), *capfd.readouterr()) == []
    assert b"acme" in journal and b"acme" in b"".join(sent)  # something was written and sent at all
    assert b"acme" in refused
    assert all("mh_test" not in place for place in (str(questions), logged)) and b"mh_test" not in journal + refused
