"""The page of `refrain serve --ui` in a headless Chromium: loads, runs, shows progress, plots and errors, cancels, signs in.

    python3 tests/clients/ui.py target/release/refrain [FOLDER]

With a folder, pictures of the page are left there. Ends with the line `N passed, N failed`.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chromium
import harness
from harness import run_tests

CONTROL = 2
CERTIFICATES = Path(__file__).parent.parent / "it" / "flight" / "certificates"

TABLES = """
CREATE TABLE reviews AS
SELECT value AS id, product, description,
       CASE value % 4 WHEN 0 THEN 'I love it, it was a great gift.' WHEN 1 THEN 'It broke after a week and nobody answers.'
                      WHEN 2 THEN 'Good, though it came late.' ELSE 'A waste of money, do not buy it.' END
       || CASE value % 3 WHEN 0 THEN ' Ordered for my sister.' WHEN 1 THEN ' Ordered twice.' ELSE '' END
       || ' Order ' || value || '.' AS review
FROM generate_series(1, 240),
     (VALUES (0, 'Kettle', 'An electric kettle of brushed steel with a lid that opens at the touch of a button and a base that turns.'),
             (1, 'Lamp', 'A reading lamp with an arm that stays where it is put and a light that can be made warm or cold.'),
             (2, 'Tent', 'A tent for two that is put up in minutes, with a floor that keeps water out for days.'),
             (3, 'Backpack', 'A backpack of waxed cotton with room for a day in town and a pocket that thieves do not find.')
     ) AS products(number, product, description)
WHERE number = value % 4;
"""
JUDGE = """SELECT product, ai_sentiment(review) AS feeling, review
FROM reviews
WHERE ai_filter('Is the review negative?', product, description, review)"""
STORY = "SELECT ai_complete('Write a long story about it', 'film ' || value, max_tokens => 200) FROM generate_series(1, 2000)"


# The second text is longer than the context of the model.
TOO_LONG = "SELECT ai_sentiment(t) FROM (VALUES ('lovely'), (repeat('very long ', 5000))) AS v(t)"


class Server(harness.Server):
    """A server with the page."""

    def __init__(self, program, *options, script=None):
        first = ["-i", script] if script else ["--no-init"]
        super().__init__([program, *first, "serve", "--ui", "--listen", "127.0.0.1:0", *options])

    def read_addresses(self, stderr):
        while not (found := re.match(r"page at (\S+)", stderr.readline())):
            assert self.process.poll() is None, "the server has ended"
        self.url = found.group(1)


def start(page, sql):
    page.fill("#sql", sql)
    page.press("Enter", 13, CONTROL)


def ended(page):
    """Waits until the statement has ended, and returns what is said of it."""
    page.wait("!document.querySelector('#run').disabled")
    return page.text("#status")


def model(page):
    """Returns the counters of the bundled model; none before it is loaded."""
    return page.run(
        """fetch("api/state", { headers: { authorization: `Bearer ${sessionStorage.getItem("refrain.token")}` } })
            .then((answer) => answer.json()).then((state) => state.models.find((model) => model.name === "mini") ?? {})""")


def plotted(page, title):
    """Returns what a plot says beside its title, once it says something."""
    return page.wait(
        """{
            const captions = [...document.querySelectorAll('#plots figcaption')];
            const caption = captions.find((one) => one.querySelector('.title').innerText === $1);
            const words = [...caption.querySelectorAll('b')].map((number) => number.innerText);
            return words.some((word) => word !== '–') && words.join(' ');
        }""", title)


def check_quiet(page):
    assert page.complaints == [], page.complaints


def opened(server, page):
    page.open(server.url)
    page.wait("document.querySelector('#server').textContent.includes('session')")


def test_it_loads(program, _):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        assert page.run("document.title") == "Refrain"
        page.wait("document.querySelectorAll('#plots canvas').length === 6")
        assert "mini" in page.text("#model")
        check_quiet(page)


def test_a_query_runs(program, _):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        page.click("#run")
        assert "3 rows" in ended(page), page.text("#status")
        cells = page.run("[...document.querySelectorAll('#panel-rows tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))")
        assert [row[1] for row in cells] == ["negative", "positive", "positive"], cells
        page.click("#tab-plan")
        page.wait("!!document.querySelector('#panel-plan .llm')")
        plan = page.text("#panel-plan")
        assert all(word in plan for word in ("LlmExec", "expected", "happened", "off by", "ai_sentiment")), plan
        assert "finished" in page.wait("document.querySelector('#queries .chip')?.innerText")
        check_quiet(page)


def test_text_is_text(program, _):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        start(page, "SELECT '<img src=x onerror=alert(1)>' AS \"<b>name</b>\", NULL AS nothing")
        ended(page)
        assert page.run("document.querySelectorAll('#panel-rows img, #panel-rows b, #queries img').length") == 0
        assert page.text("#panel-rows td") == "<img src=x onerror=alert(1)>"
        assert page.text("#panel-rows td.null") == "NULL"
        check_quiet(page)


def test_an_error_is_shown(program, _):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        start(page, "SELECT nonsense")
        assert ended(page).startswith("error: ") and "nonsense" in page.text("#status"), page.text("#status")
        start(page, "SELECT 1 AS one")
        assert "1 row" in ended(page)
        check_quiet(page)


def test_a_failed_row_is_opened(program, pictures):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        start(page, TOO_LONG)
        assert "1 rows failed: 1 overflow" in ended(page), page.text("#status")
        page.wait("document.querySelector('#tab-failed').innerText === 'Failed rows (1)'")
        page.click("#tab-failed")
        page.wait("!!document.querySelector('#panel-failed details')")
        assert "overflow" in page.text("#panel-failed summary")
        page.click("#panel-failed summary")
        page.wait("document.querySelector('#panel-failed details').open")
        shown = page.text("#panel-failed details")
        assert "inputs" in shown and "very long very long" in shown, shown[:500]
        if pictures:
            page.run("window.scrollTo(0, 0)")
            page.picture(pictures / "ui-failed.png")
        check_quiet(page)


def test_a_running_query_is_plotted(program, pictures):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        page.fill("#price-prompt", "0.15")
        page.fill("#price-answer", "0.60")
        start(page, STORY)
        assert "left" in plotted(page, "running queries")
        for title in ("tokens per second", "prefix hits", "requests", "KV pages in use"):
            plotted(page, title)
        assert plotted(page, "dollars per minute").startswith("$")
        for fact in ("left", "$"):
            page.wait("document.querySelector('#queries .facts')?.innerText.includes($1)", fact)
        if pictures:
            # Long enough for lines to be seen.
            time.sleep(20)
            page.run("window.scrollTo(0, 0)")
            page.picture(pictures / "ui-running.png")
        page.click("#cancel")
        assert ended(page) == "cancelled", page.text("#status")
        opened(server, page)
        assert page.run("document.querySelector('#price-answer').value") == "0.60", "prices are kept"
        check_quiet(page)


def test_progress_and_cancel(program, pictures):
    with Server(program) as server, chromium.Page() as page:
        opened(server, page)
        for button in ("#cancel", "#queries .selected button.small:last-of-type"):
            start(page, STORY)
            page.wait("document.querySelector('#progress').value > 0 && document.querySelector('#status').innerText.includes('left')")
            # The query before it stays selected until the page has heard of this one.
            page.wait("document.querySelector('#queries .selected .chip')?.innerText === 'running'")
            page.wait("document.querySelector('#queries .selected progress')?.value > 0")
            # Rows come and move what stands below them, so a place on the screen may be another button's by now.
            page.run(f"document.querySelector('{button}').click()")
            told = ended(page)
            assert told == "cancelled", told
            page.wait("document.querySelector('#queries .selected .chip').innerText === 'cancelled'")
            deadline = time.monotonic() + 60
            while model(page)["pending"]:
                assert time.monotonic() < deadline, "the model goes on"
            assert model(page)["cancelled"] > 1000, "the model answered what nobody waited for"
        check_quiet(page)


def test_prompts_are_a_tree(program, pictures):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(TABLES)
        script.flush()
        with Server(program, script=script.name) as server, chromium.Page(1280, 1020) as page:
            opened(server, page)
            page.fill("#sql", JUDGE)
            page.click("#explain")
            page.wait("!!document.querySelector('#panel-plan .llm')")
            page.click("#tab-prompts")
            page.wait("document.querySelectorAll('#panel-prompts .icicle .found').length > 4")
            assert "completed" not in model(page), "no model was loaded"
            assert "data analyst" in page.text("#panel-prompts .prompt")
            page.click("#panel-prompts .icicle g:nth-of-type(3)")
            assert "Tokens" in page.text("#panel-prompts")
            page.press("ArrowLeft", 37)
            start(page, JUDGE)
            assert "shared" in ended(page), page.text("#status")
            page.click("#tab-prompts")
            page.wait("!!document.querySelector('#panel-prompts .icicle')")
            if pictures:
                take_pictures(page, pictures)
            check_quiet(page)


def test_users_sign_in_over_tls(program, _):
    line = subprocess.run([program, "password", "ada"], input="lovelace\n", text=True, capture_output=True, check=True).stdout
    with tempfile.NamedTemporaryFile("w") as passwords:
        passwords.write(line)
        passwords.flush()
        tls = ["--tls-cert", CERTIFICATES / "server.pem", "--tls-key", CERTIFICATES / "server.key"]
        with Server(program, "--passwords", passwords.name, *tls) as server, chromium.Page() as page:
            assert server.url.startswith("https://"), server.url
            page.open(server.url)
            page.wait("document.querySelector('#login').open")
            for password in ("byron", "lovelace"):
                page.fill("#login-user", "ada")
                page.fill("#login-secret", password)
                page.click("#login button")
                page.wait("!document.querySelector('#login').open || document.querySelector('#login-status').innerText")
            page.wait("!document.querySelector('#login').open")
            start(page, 'SELECT DISTINCT "user" FROM ai_queries()')
            assert "1 row" in ended(page), page.text("#status")
            assert page.text("#panel-rows td") == "ada"


def take_pictures(page, folder):
    """Leaves pictures of a page that has run something: its prompts, and its plan in the dark."""
    page.run("window.scrollTo(0, 0)")
    page.picture(folder / "ui-prompts.png")
    page.scheme("dark")
    page.click("#tab-plan")
    page.wait("!!document.querySelector('#panel-plan .llm')")
    page.run("window.scrollTo(0, 0)")
    page.picture(folder / "ui-plan.png")
    page.scheme("light")


if __name__ == "__main__":
    sys.exit(run_tests(globals(), sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))
