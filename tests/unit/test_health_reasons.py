"""Each word for a failure reaches everybody who may ask for it: the file, the log, the metrics."""

import json
import logging
from dataclasses import replace

import jsonschema
import pytest

from healthcheck.exchange import Reason, Result
from healthcheck.health import Outcome, State
from reconciler import metrics
from reconciler.healthfile import parse
from reconciler.stating import build
from tests.support.exposition import samples
from tests.support.health import a_fleet, backend, check
from tests.support.lab import ROOT
from tests.support.statuses import WEB1, facts

SCHEMA = json.loads((ROOT / "schemas/health.schema.json").read_text("utf-8"))
GOOD = {Reason.CONNECTED, Reason.ANSWERED}


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in GOOD])
def test_the_word_is_in_the_report_the_log_and_the_metrics(
    reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    ours = reason is Reason.OWN_TROUBLE
    result = Result(Outcome.NEUTRAL if ours else Outcome.FAIL, reason, "as a test says")
    entry = backend(WEB1, check=check(fall=1))
    with caplog.at_level(logging.INFO), a_fleet(entry, states={WEB1: State.UP}) as (fleet, _):
        fleet.hear(result)
        fleet.publish()
        told = json.loads(fleet._report_path.read_text("utf-8"))
    jsonschema.validate(told, SCHEMA)
    assert told["backends"][0]["last"]["reason"] == reason
    assert told["backends"][0]["counters"]["reasons"] == {reason: 1}
    assert reason in caplog.text
    found = parse(told)
    status = build(replace(facts(), checked=found.backends, checker=found.checker))
    name = f'evenkeel_backend_check_reasons_total{{pool="web",backend="web1",reason="{reason}"}}'
    assert samples(metrics.render(status))[name] == 1


def test_the_schema_has_the_words_that_there_are() -> None:
    assert SCHEMA["$defs"]["reason"]["enum"] == [*Reason]
