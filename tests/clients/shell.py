"""The shell on `refrain serve`, as a person uses it: through a pseudo-terminal.

    python3 tests/clients/shell.py target/release/refrain

Needs Python alone. Ends with the line `N passed, N failed`.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from harness import PATIENCE_S, MonitoredServer, Shell, run_tests

STORY = "select ai_complete('Write a long story about it', 'film ' || value, max_tokens => 200) from generate_series(1, 2000);"


class Server(MonitoredServer):
    """A server whose counters are waited for."""

    def metrics(self):
        with urllib.request.urlopen(self.metrics_url) as page:
            return page.read().decode()

    def wait(self, line):
        """Waits until the counters have a line."""
        deadline = time.monotonic() + PATIENCE_S
        while line not in self.metrics().splitlines():
            assert time.monotonic() < deadline, f"{line} does not come"
            time.sleep(0.01)


def prompt(server):
    return re.escape(f"refrain@{server.uri.removeprefix('grpc://')}> ")


def test_statements_commands_and_completion(program):
    with Server(program) as server, Shell(program, "--connect", server.uri) as shell:
        assert f"connected to {server.uri}" in shell.expect(prompt(server))
        shell.run("create table reviews as values (1, 'good'), (2, null);")
        shell.expect(r"done in ")
        shell.expect(prompt(server))
        # Tables are completed as the server knows them.
        shell.type("select * from revi\t order by 1;\r")
        shell.expect(r"good")
        shell.expect(r"2 rows in ")
        shell.run("select ai_sentiment(column2) from reviews;")
        shell.expect(r"2 rows in .*; 1 call")
        shell.run("\\usage")
        shell.expect(r"calls +1")
        shell.run("\\dt")
        shell.expect(r"reviews")
        shell.run("\\connect local")
        shell.expect(r"refrain> ")
        shell.run("select * from reviews;")
        shell.expect(r"error: .*reviews")
        shell.run(f"\\connect {server.uri}")
        shell.expect(prompt(server))
        shell.run("select count(*) as n from reviews;")
        shell.expect(r"1 row in ")
        shell.expect(prompt(server))
        assert shell.leave() == 0
        server.wait("refrain_sessions 0")


def test_progress_and_interruption(program):
    with Server(program) as server, Shell(program, "--connect", server.uri) as shell:
        shell.expect(prompt(server))
        shell.run(STORY)
        # Somebody who waits sees how far it is.
        shell.expect(r"ai_complete  .* rows .* calls")
        shell.type("\x03")
        shell.expect(r"stopped after .*calls")
        shell.expect(r"interrupted")
        server.wait('refrain_queries_total{state="cancelled"} 1')
        server.wait('refrain_model{counter="pending",model="mini"} 0')
        shell.run("select 40 + 2 as answer;")
        shell.expect(r"42")
        shell.expect(prompt(server))
        assert shell.leave() == 0


def test_passwords_are_asked_for_and_not_shown(program):
    with tempfile.TemporaryDirectory() as folder:
        line = subprocess.run([program, "password", "ada"], input="lovelace", capture_output=True, text=True, check=True)
        passwords = Path(folder) / "passwords"
        passwords.write_text(line.stdout)
        with Server(program, "--passwords", str(passwords)) as server:
            with Shell(program, "--connect", server.uri, "--user", "ada") as shell:
                shell.expect(r"password for ada: ")
                shell.hide()
                shell.type("lovelace\r")
                assert "lovelace" not in shell.expect(prompt(server))
                shell.run("\\conninfo")
                shell.expect(r"of ada")
                shell.expect(prompt(server))
                assert shell.leave() == 0
            server.wait("refrain_sessions 0")
            known = subprocess.run(
                [program, "--connect", server.uri, "--user", "ada", "-c", "select 1 as a", "--format", "csv"],
                env=os.environ | {"REFRAIN_PASSWORD": "lovelace"},
                capture_output=True,
                text=True,
            )
            assert (known.returncode, known.stdout) == (0, "a\n1\n"), known
            wrong = subprocess.run(
                [program, "--connect", server.uri, "--user", "ada", "-c", "select 1"],
                env=os.environ | {"REFRAIN_PASSWORD": "byron"},
                capture_output=True,
                text=True,
            )
            assert wrong.returncode == 1 and "password is wrong" in wrong.stderr, wrong


def test_a_server_that_goes_is_told(program):
    server = Server(program)
    with Shell(program, "--connect", server.uri) as shell:
        shell.expect(prompt(server))
        with server:
            pass
        shell.run("select 1;")
        shell.expect(r"error: ")
        shell.expect(prompt(server))
        assert shell.leave() == 0


if __name__ == "__main__":
    sys.exit(run_tests(globals(), str(Path(sys.argv[1]).resolve())))
