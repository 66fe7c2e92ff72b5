"""What Prometheus is told."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely."


@pytest.fixture
def metrics(http):
    """metrics() -> (name, label, ...) -> value."""

    def scrape():
        answer = http.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    return scrape


def test_tokens_are_counted_as_in_the_usage_of_answers(http, metrics):
    usages = [
        http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 5, "ignore_eos": True}).json()["usage"]
        for prompt in (TEXT, TEXT, TEXT[:40])
    ]
    found = metrics()
    for kind in ("cached", "replayed", "computed"):
        total = sum(usage["prompt_tokens_details"][f"{kind}_tokens"] for usage in usages)
        assert found["goldfinch_prompt_tokens_total", kind] == total
    assert found["goldfinch_generated_tokens_total",] == 15
    assert found["goldfinch_prompt_cache_misses_total", "nothing kept"] == 1
    assert found["goldfinch_decode_steps_total",] >= 12
    assert found["goldfinch_time_to_first_token_seconds_count",] == 3
    assert found["goldfinch_time_to_first_token_seconds_bucket", "+Inf"] == 3
    assert found["goldfinch_time_per_output_token_seconds_count",] == 3
    assert found["goldfinch_time_to_first_token_seconds_sum",] > 0


def test_memory_and_stored_contexts_are_shown_as_they_are(http, metrics, engine):
    context = http.post("/v1/contexts", json={"text": TEXT}).json()
    found = metrics()
    assert found["goldfinch_stored_contexts",] == 1
    assert found["goldfinch_stored_context_bytes",] == context["bytes"]
    assert found["goldfinch_context_memory_limit_bytes",] == engine.max_bytes
    assert found["goldfinch_contexts_in_memory",] == 1
    assert found["goldfinch_context_bytes_per_token",] == engine.bytes_per_token
    assert found["goldfinch_requests_running",] == found["goldfinch_requests_waiting",] == 0
    assert found["goldfinch_computed_tokens_total",] == len(TEXT)
    assert found["process_open_fds",] > 0
    http.delete(f"/v1/contexts/{context['id']}")
    assert metrics()["goldfinch_stored_contexts",] == 0


def test_requests_are_counted_by_route_and_status_whatever_clients_make_up(http, metrics):
    http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    http.post("/v1/completions", json={"prompt": "x", "nosuch": 1})
    for number in range(3):
        http.get(f"/v1/contexts/ctx-{number}")
        http.get(f"/made/up/{number}")
        http.request(f"METHOD{number}", "/v1/completions")
    name = "goldfinch_request_duration_seconds_count"
    assert {key[1:]: value for key, value in metrics().items() if key[0] == name} == {
        ("POST", "/v1/completions", "200"): 1,
        ("POST", "/v1/completions", "400"): 1,
        ("GET", "/v1/contexts/{id}", "404"): 3,
        ("GET", "other", "404"): 3,
        ("other", "/v1/completions", "405"): 3,
    }


def test_each_server_has_metrics_of_its_own(http, metrics, start):
    http.get("/health")
    other = httpx.get(f"{start()}/metrics").text
    assert 'route="/health"' not in other
    assert ("goldfinch_request_duration_seconds_count", "GET", "/health", "200") in metrics()
