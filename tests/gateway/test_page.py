"""The page at `/`, in headless Chromium, against a small server that speaks the gateway's JSON.

The double lives here: canned answers, the same content security policy as the gateway, and a record of what was asked.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

PAGE = Path(__file__).parents[2] / "src/polyroute/gateway/page/index.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MODELS = {"small-3b": (0.10, 0.40, 0.61), "middle-30b": (0.60, 2.40, 0.78), "large-400b": (3.00, 15.00, 0.88)}
HOSTILE = '<img src=x onerror="window.hacked=1"><b>bold</b>'


def candidates(shift: float = 0.0, refused: str | None = None) -> list[dict[str, Any]]:
    """The pool as one decision saw it; the dearest is refused where a constraint is given."""
    rows = []
    for name, (_, price_out, quality) in MODELS.items():
        cost = price_out * 200e-6
        mean = {"quality": quality + shift, "cost": cost, "latency": 0.4 + price_out / 10}
        row = {"id": name, "mean": mean, "std": {"quality": 0.05}, "utility": quality + shift - 100 * cost}
        rows.append(row | ({"refused": refused} if refused and name == "large-400b" else {}))
    return rows


def entry(i: int, now: float, **changes: Any) -> dict[str, Any]:
    """Decision i of a canned afternoon, with its outcome; i = 0 is the newest."""
    selected = list(MODELS)[(i * 7) % 3]
    decision = {
        "id": f"dec_{i:024x}", "request_id": f"req_{i}", "time": now - 4.0 * i, "endpoint": "chat.completions",
        "requested": "auto" if i % 4 else selected, "policy": "auto" if i % 4 else "named", "selected": selected,
        "propensity": 0.93 if i % 5 == 1 else 1.0, "because": f"leads middle-30b by 0.{100 + i} utility",
        "candidates": candidates(0.001 * i, "fits_context" if i % 6 == 1 else None) if i % 4 else [],
        "weights": {"quality": 1.0, "cost": -150.0}, "router": "irt 1", "artefact": "ab12", "features": "static-1",
        "needs": ["tools"] if i % 6 == 1 else [], "prompt_tokens": 40 + i, "session": None, "tenant": None,
        "dry_run": i % 11 == 3,
    }  # fmt: skip
    cost = MODELS[selected][1] * 180e-6
    outcome = {
        "decision_id": decision["id"], "time": now - 4.0 * i + 1, "status": 200, "state": "ok", "selected": selected,
        "attempts": 1, "latency_s": 0.8 + 0.03 * i, "first_byte_s": 0.21, "prompt_tokens": 40 + i,
        "completion_tokens": 180, "cost_usd": cost, "dearest_usd": 0.0027, "error": None,
    }  # fmt: skip
    if i % 17 == 5:
        outcome |= {"status": 502, "state": "error", "error": "refused: 127.0.0.1:9", "cost_usd": None}
    waiting = i == 0 or decision["dry_run"]
    return {"decision": decision | changes, "outcome": None if waiting else outcome, "feedback": []}


def model(j: int, requests: int) -> dict[str, Any]:
    """Model j as the summary shows it; the dearest is down."""
    name, (price_in, price_out, _) = list(MODELS.items())[j]
    status = [("ready", ""), ("ready", ""), ("down", "refused: 127.0.0.1:9")][j]
    return {
        "id": name, "requests": requests // 3, "spend_usd": 0.0002 * requests, "price_in": price_in,
        "price_out": price_out,
        "share": (0.5, 0.3, 0.2)[j] if requests else 0.0, "status": dict(zip(("state", "detail"), status, strict=True)),
    }  # fmt: skip


def summary(requests: int = 0) -> dict[str, Any]:
    """What the gateway says above the decisions, for a number of requests served."""
    points = [
        {"trade_off": t, "cost_usd": 0.0031 / (1 + 3 * t), "quality": 0.88 - 0.27 * t / (t + 1.2)}
        for t in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0)
    ]
    singles = [{"id": n, "cost_usd": out * 200e-6, "quality": q} for n, (_, out, q) in MODELS.items()]
    frontier = {"points": points, "singles": singles, "current": {"cost_usd": 0.00145, "quality": 0.842}}
    return {
        "version": "0.1.0", "uptime_s": 7384.0, "requests": requests, "spend_usd": 0.00081 * requests,
        "dearest_usd": 0.0027 * requests, "best_usd": 0.0022 * requests if requests else None,
        "models": [model(j, requests) for j in range(len(MODELS))],
        "policies": [{"name": n, "weights": {"quality": 1.0, "cost": -c}, "trade_off": t}
                     for n, t, c in (("auto", 0.3, 60.0), ("auto:cheap", 3.0, 600.0), ("auto:best", 0.0, 0.0))],
        "journal": {"ok": True, "reason": "", "queued": 0, "written": requests, "dropped": 0}, "warnings": [],
        "frontier": frontier | {"basis": f"predicted over the last {requests} decisions"} if requests
        else {"points": [], "singles": [], "current": None, "basis": "predicted over the last 0 decisions"},
    }  # fmt: skip


class Double:
    """A gateway made of canned answers. `asked` holds (method, path, headers, body) of every request."""

    def __init__(self) -> None:
        self.port = 0
        self.clear()
        self.start()

    def clear(self) -> None:
        self.summary: dict[str, Any] = summary()
        self.decisions: list[dict[str, Any]] = []
        self.key: str | None = None
        self.route: tuple[int, dict[str, Any]] = (404, {"error": {"message": "No virtual model 'auto'."}})
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []

    def start(self) -> None:
        """Answer on the same port as before, if there was one."""
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "Expected a client key."}}
        if path == "/polyroute/v1/summary":
            return 200, self.summary
        if path == "/polyroute/v1/decisions":
            return 200, {"object": "list", "data": self.decisions}
        if (method, path) == ("POST", "/polyroute/v1/route"):
            return self.route
        if (method, path) == ("POST", "/polyroute/v1/feedback"):
            return 202, {"decision_id": body["decision_id"], "accepted": True}
        return 404, {"error": {"message": f"No endpoint {path}"}}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    return self.send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
                return self.do_POST()

            def do_POST(self) -> None:
                path, headers = self.path.partition("?")[0], {k.lower(): v for k, v in self.headers.items()}
                size = int(headers.get("content-length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                double.asked.append((self.command, path, headers, body))
                status, answer = double.answer(self.command, path, headers, body)
                self.send(status, json.dumps(answer).encode(), "application/json")

            def send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                for name, value in (
                    ("content-type", kind),
                    ("content-length", str(len(body))),
                    ("content-security-policy", POLICY),
                ):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def start_browser(profile: Path, *extra: str) -> webdriver.Chrome:
    """Headless Chromium that talks to nobody but the address it is given."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1600",
        f"--user-data-dir={profile}", *extra,
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_browser(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server() -> Iterator[Double]:
    double = Double()
    yield double
    double.stop()


class View:
    """The open page."""

    def __init__(self, browser: webdriver.Chrome, server: Double):
        self.browser, self.server = browser, server

    def open(self, *, status: str = "Live") -> None:
        self.browser.get(f"http://127.0.0.1:{self.server.port}/")
        self.until(lambda: self.text("status") == status)

    def until(self, true: Any) -> Any:
        return WebDriverWait(self.browser, 15, poll_frequency=0.05).until(lambda _: true())

    def id(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        return str(self.id(name).text)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def refresh(self) -> None:
        """Poll now instead of in two seconds, and wait for it."""
        self.browser.execute_async_script(
            "const done = arguments[0]; (async () => { while (state.running) await new Promise(r => setTimeout(r, 5));"
            " await poll(); done(); })()"
        )

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def view(browser: webdriver.Chrome, server: Double) -> Iterator[View]:
    server.clear()
    browser.set_window_size(1200, 1600)
    found = View(browser, server)
    found.complaints()  # what earlier tests left
    yield found
    browser.execute_script("sessionStorage.clear(); localStorage.clear()")
    browser.get("about:blank")


def busy(server: Double, number: int = 50) -> None:
    now = time.time()
    server.summary = summary(1234)
    server.decisions = [entry(i, now) for i in range(number)]


def test_an_empty_gateway_says_what_to_do(view: View):
    view.open()
    assert view.text("spend") == "$0"
    assert view.text("spend-note") == "No requests yet."
    assert "No decisions yet" in view.text("no-decisions")
    assert f"curl http://127.0.0.1:{view.server.port}/v1/chat/completions" in view.text("example")
    assert "appears after the first routed request" in view.text("chart")
    assert not view.id("gone").is_displayed()
    assert view.complaints() == []


def test_everything_comes_from_the_gateway_itself(view: View):
    busy(view.server)
    view.open()
    asked = view.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked
    assert all(name.startswith((f"http://127.0.0.1:{view.server.port}/", "data:")) for name in asked)
    assert view.complaints() == []  # among them every breach of the content security policy


def test_spend_is_shown_beside_the_two_simple_strategies(view: View):
    busy(view.server)
    view.open()
    assert view.text("spend") == "$1.00"
    assert view.text("spend-note") == "for 1,234 requests; 70 % less than always the dearest"
    heads = [head.text.split("\n") for head in view.all(".bar-head")]
    assert heads == [["As routed", "$1.00"], ["Always the best predicted", "$2.71"], ["Always the dearest", "$3.33"]]
    view.until(
        lambda: view.all(".fill")[0].size["width"] * 3.33 == pytest.approx(view.all(".fill")[2].size["width"], rel=0.02)
    )


def test_fifty_decisions_newest_first_with_reasons(view: View):
    busy(view.server)
    view.open()
    rows = view.all("#decisions > li")
    shown = view.run("return [...document.querySelectorAll('#decisions > li')].map(row => row.dataset.id)")
    assert shown == [row["decision"]["id"] for row in view.server.decisions]
    assert rows[1].find_element(By.CLASS_NAME, "why").text == "leads middle-30b by 0.101 utility"
    assert [rows[i].find_element(By.CLASS_NAME, "end").text for i in (0, 1, 3, 5)] == [
        "running",
        "ok",
        "dry run",
        "error 502",
    ]
    Select(view.id("show")).select_by_value("trouble")
    assert view.run("return document.querySelectorAll('#decisions > li:not([hidden])').length") == 3


def test_a_decision_opens_and_stays_open_while_others_arrive(view: View):
    busy(view.server, 10)
    view.open()
    row = view.all("#decisions > li")[1]
    row.find_element(By.TAG_NAME, "summary").click()
    cells = view.until(lambda: [c.text for c in row.find_elements(By.CSS_SELECTOR, "tbody td:first-child")])
    assert cells == ["middle-30b chosen", "small-3b", "large-400b refused: fits_context"]
    assert "0.930" in row.find_element(By.CLASS_NAME, "facts").text
    view.server.decisions.insert(0, entry(0, time.time() + 1, id="dec_newest"))
    view.refresh()
    assert view.all("#decisions > li")[0].get_attribute("data-id") == "dec_newest"
    assert row.find_element(By.CSS_SELECTOR, "tbody td").is_displayed()


def test_an_outcome_that_comes_later_fills_its_row(view: View):
    busy(view.server, 3)
    view.open()
    row = view.all("#decisions > li")[0]
    assert row.find_element(By.CLASS_NAME, "cost").text == ""
    view.server.decisions[0]["outcome"] = view.server.decisions[1]["outcome"] | {"cost_usd": 0.0123, "latency_s": 1.25}
    view.refresh()
    assert [row.find_element(By.CLASS_NAME, name).text for name in ("cost", "took", "end")] == [
        "$0.0123",
        "1.3 s",
        "ok",
    ]


def test_only_fifty_rows_are_kept(view: View):
    busy(view.server)
    view.open()
    now = time.time()
    view.server.decisions = [entry(i, now, id=f"dec_later{i}") for i in range(50)]
    view.refresh()
    assert len(view.all("#decisions > li")) == 50


def test_data_is_never_markup(view: View):
    busy(view.server, 2)
    model = view.server.summary["models"][0]
    model["id"] = view.server.summary["policies"][0]["name"] = HOSTILE
    model["status"] = {"state": "down", "detail": HOSTILE}
    view.server.summary |= {"version": HOSTILE, "warnings": [HOSTILE]}
    view.server.summary["frontier"]["basis"] = view.server.summary["frontier"]["singles"][0]["id"] = HOSTILE
    names = ("requested", "selected", "because", "policy", "tenant", "session", "router", "prompt", "endpoint")
    hostile = entry(1, time.time(), **dict.fromkeys(names, HOSTILE))
    hostile["decision"]["candidates"][0] |= {"id": HOSTILE, "refused": HOSTILE}
    hostile["outcome"]["error"] = HOSTILE
    hostile["feedback"] = [{"metrics": {HOSTILE: 1}, "source": HOSTILE}]
    view.server.decisions = [hostile]
    view.server.route = (200, hostile["decision"])
    view.open()
    view.all("#decisions summary")[0].click()
    view.id("prompt").send_keys("x", Keys.CONTROL, Keys.ENTER)
    view.until(lambda: view.id("verdict").is_displayed())
    assert HOSTILE in view.text("verdict")
    assert HOSTILE in view.text("decisions")
    assert view.run("return [document.images.length, document.querySelectorAll('b').length, window.hacked ?? 0]") == [
        0,
        0,
        0,
    ]


def test_a_prompt_is_decided_and_explained(view: View):
    busy(view.server, 2)
    decision = {k: v for k, v in entry(1, 0)["decision"].items() if k != "id"}
    view.server.route = (200, decision | {"decision_id": "dec_x", "took_ms": 0.412, "propensity": 1.0})
    view.open()
    Select(view.id("policy")).select_by_value("auto:cheap")
    view.id("prompt").send_keys("How many primes are there?")
    view.id("decide").click()
    view.until(lambda: view.id("verdict").is_displayed())
    assert view.text("verdict").startswith("middle-30b\nleads middle-30b by 0.101 utility · decided in 0.4 ms\n")
    assert len(view.all("#verdict tbody tr")) == 3
    method, path, headers, body = next(asked for asked in view.server.asked if asked[1].endswith("/route"))
    assert (method, path) == ("POST", "/polyroute/v1/route")
    assert body == {"model": "auto:cheap", "messages": [{"role": "user", "content": "How many primes are there?"}]}
    assert "x-polyroute-trade-off" not in headers
    view.id("trade").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    view.until(lambda: any(asked[2].get("x-polyroute-trade-off") == "0.05" for asked in view.server.asked))
    assert view.text("trade-text") == "0.05"


def test_a_refused_prompt_shows_the_gateways_words(view: View):
    view.open()
    view.id("prompt").send_keys("x")
    view.id("decide").click()
    view.until(lambda: view.id("verdict").is_displayed())
    assert view.text("verdict") == "No virtual model 'auto'."


def test_feedback_is_sent_with_the_decision(view: View):
    busy(view.server, 2)
    view.open()
    row = view.all("#decisions > li")[1]
    row.find_element(By.TAG_NAME, "summary").click()
    view.until(lambda: row.find_elements(By.CSS_SELECTOR, ".judge button"))[1].click()
    view.until(lambda: "recorded: quality 0" in row.text)
    sent = next(asked[3] for asked in view.server.asked if asked[1].endswith("/feedback"))
    assert sent == {
        "decision_id": view.server.decisions[1]["decision"]["id"],
        "metrics": {"quality": 0},
        "source": "page",
    }


def test_a_gateway_that_goes_away_and_comes_back(view: View):
    busy(view.server, 5)
    view.open()
    view.server.stop()
    try:
        view.refresh()
        assert view.text("gone-text").startswith("The gateway does not answer. What you see is from ")
        assert view.text("status") == "Gone"
        assert len(view.all("#decisions > li")) == 5  # what was known stays
    finally:
        view.server.start()
    view.id("retry").click()
    view.until(lambda: not view.id("gone").is_displayed())
    assert view.text("status") == "Live"


def test_a_client_key_is_asked_for_and_kept_in_the_session_only(view: View):
    busy(view.server, 1)
    view.server.key = "s3cret"
    view.open(status="Key needed")
    view.id("key").send_keys("wrong", Keys.ENTER)
    view.until(lambda: "not accepted" in view.text("key-note"))
    view.id("key").send_keys("s3cret", Keys.ENTER)
    view.until(lambda: view.text("status") == "Live")
    assert view.run("return Object.values(sessionStorage)") == ["s3cret"]
    assert "s3cret" not in view.run("return document.cookie + JSON.stringify(localStorage) + location.href")
    assert view.server.asked[-1][2]["authorization"] == "Bearer s3cret"


def test_a_journal_in_trouble_is_said_aloud(view: View):
    view.server.summary["journal"] = {"ok": False, "reason": "disk is full", "queued": 12, "dropped": 3}
    view.open()
    assert view.text("warnings").splitlines() == ["journal: disk is full", "and 1 more"]
    view.all("#warnings summary")[0].click()
    assert view.text("warnings").splitlines()[-1] == "3 journal records lost"
    view.refresh()
    assert "3 journal records lost" in view.text("warnings")  # still open


def test_paused_means_no_more_questions(view: View):
    view.open()
    view.id("pause").click()
    view.until(lambda: view.run("return !state.running"))
    count = len(view.server.asked)
    assert view.text("status") == "Paused"
    assert view.run("return state.timer") is not None
    assert len(view.server.asked) == count
    view.id("pause").click()
    view.until(lambda: view.text("status") == "Live" and len(view.server.asked) > count)


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_sticks_out_at_any_width(view: View, width: int):
    busy(view.server)
    view.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        view.open()
        view.all("#decisions summary")[1].click()
        seen, needed = view.run("const e = document.documentElement; return [e.clientWidth, e.scrollWidth]")
        assert width - 20 <= seen <= width  # a scroll bar takes the rest
        assert needed == seen
    finally:
        view.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_field_has_a_name_and_the_chart_has_words(view: View):
    busy(view.server)
    view.open()
    unnamed = "return [...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).length"
    assert view.run(unnamed) == 0
    mute = "return [...document.querySelectorAll('button')].filter(b => !b.textContent.trim() && !b.ariaLabel).length"
    assert view.run(mute) == 0
    assert "3 models and 12 trade-offs" in view.all("#chart svg")[0].get_attribute("aria-label")
    assert len(view.all("#frontier-table tbody tr")) == 1 + 12 + 3
    assert view.run("return document.documentElement.lang") == "en"


CONTRAST = """
const level = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const probe = document.body.appendChild(document.createElement('i'));
const seen = (name) => { probe.style.color = `var(--${name})`; return level(getComputedStyle(probe).color); };
const pairs = arguments[0].map(([ink, ground]) => { const [a, b] = [seen(ink), seen(ground)].sort((x, y) => y - x);
  return [ink, ground, (a + 0.05) / (b + 0.05)]; });
probe.remove(); return pairs;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(view: View, scheme: str):
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for the marks of a chart."""
    view.open()
    view.run(f"document.documentElement.style.colorScheme = '{scheme}'")
    text = [
        (ink, ground)
        for ink in ("ink", "soft", "accent", "good", "warn", "bad")
        for ground in ("paper", "card", "sunk")
    ]
    text += [("bad", "bad-wash"), ("warn", "warn-wash"), ("accent", "accent-wash"), ("accent-ink", "accent")]
    marks = [(f"model-{i}", "card") for i in range(8)]
    found = view.browser.execute_script(CONTRAST, text + marks)
    low = [
        (ink, ground, round(ratio, 2))
        for ink, ground, ratio in found
        if ratio < (3.0 if ink.startswith("model-") else 4.5)
    ]
    assert low == []


def test_the_theme_can_be_switched_and_is_remembered(view: View):
    view.open()
    before = view.run("return getComputedStyle(document.body).backgroundColor")
    view.id("theme").click()
    after = view.run("return getComputedStyle(document.body).backgroundColor")
    assert before != after
    view.open()
    assert view.run("return getComputedStyle(document.body).backgroundColor") == after
