"""The server keeps what `/openapi.json` says: schemathesis asks whatever that allows, and what it does not."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

EXAMPLES = 8
"""Of each route and kind: what the document allows, and what it does not."""
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


@pytest.fixture(scope="module")
def context_id(shared_url):
    """Of a context that is there."""
    return httpx.post(f"{shared_url}/v1/contexts", json={"text": "Call me Ishmael. Some years ago"}).json()["id"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_every_route_answers_as_documented(shared_url, context_id, mode):
    operations = [
        each.ok() for each in schemathesis.openapi.from_url(f"{shared_url}/openapi.json").get_all_operations()
    ]
    assert len(operations) > 20
    for operation in operations:
        try:
            ask(operation, mode, context_id)
        except Unsatisfiable:  # nothing about it can be wrong
            assert mode is GenerationMode.NEGATIVE
    assert httpx.get(f"{shared_url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def ask(operation, mode, context_id):
    """Some requests of one route, those with an id also with that of a context that is there."""
    # What a schema cannot say is refused as well: an empty prompt, a token id that the model does not have.
    excluded = [checks.positive_data_acceptance]
    if operation.path == "/v1/contexts/upload":  # in a form everything is bytes
        excluded.append(checks.negative_data_rejection)

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    def check(case):
        if case.path in GENERATING and isinstance(case.body, dict):  # quickly
            name = "max_output_tokens" if case.path == "/v1/responses" else "max_tokens"
            case.body.setdefault(name, 2)
        case.call_and_validate(excluded_checks=excluded)
        if "id" in case.path_parameters and case.method != "DELETE":
            case.path_parameters["id"] = context_id
            case.call_and_validate(excluded_checks=excluded)

    check()
