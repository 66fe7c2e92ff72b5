"""How the page is served, without a browser."""

import http.client
from importlib import resources

import pytest


@pytest.fixture
def get(url):
    """get(path, **headers) -> status, headers and content."""

    def get(path, method="GET", **headers):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return get


def test_every_file_of_the_package_is_served_under_a_strict_policy(get):
    for file in resources.files("goldfinch.serving").joinpath("page").iterdir():
        status, headers, content = get("/" if file.name == "index.html" else f"/page/{file.name}")
        assert (status, content) == (200, file.read_bytes())
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy


def test_an_unchanged_file_is_not_sent_again(get):
    _, headers, content = get("/page/main.js")
    assert headers["Cache-Control"] == "no-cache"
    assert get("/page/main.js", **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
    status, head, nothing = get("/page/main.js", method="HEAD")
    assert (status, nothing, int(head["Content-Length"])) == (200, b"", len(content))


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/page/nosuch.js", "/page/index.html"]
)
def test_nothing_else_is_served(get, path):
    assert get(path)[0] == 404
