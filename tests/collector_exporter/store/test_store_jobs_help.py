"""What `meterhouse jobs --help` says of its rounds is what they do."""

import re

from meterhouse_store import commands, jobs


def test_the_help_of_jobs_names_every_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_123")
    monkeypatch.setattr(jobs.signal, "signal", lambda *_: None)
    monkeypatch.setattr(jobs.Jobs, "loop", lambda self, _every_s: steps.extend(self._steps))
    jobs.run(tmp_path, ("meterhouse",), 60, lambda _: None)
    assert len(steps) == 7
    assert set(steps) - set(re.findall("`(.+?)`", commands._jobs.__doc__)) == set()
