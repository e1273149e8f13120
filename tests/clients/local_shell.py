"""The shell in a process of its own, as a person uses it: through a pseudo-terminal, with the bundled model.

    python3 tests/clients/local_shell.py target/release/refrain

Needs Python alone. Ends with the line `N passed, N failed`.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Shell, run_tests

PROMPT = r"refrain> "
QUESTION = r"Run\? \[y/N/s=sample 100\]"
N_STORIES = 400
STORIES = f"select count(ai_complete('Write a story about it', 'film ' || value, max_tokens => 40)) as n from generate_series(1, {N_STORIES});"
# Progress that tells of at least one finished call.
SOME_CALLS = r"ai_complete  .* [1-9][0-9 ]*/[0-9 ]+ calls"


def calls_of_last_query(shell):
    """Returns how many calls the last query has made, as the shell tells it."""
    shell.expect(PROMPT)
    shell.run("\\usage")
    shell.expect(r"calls  +")
    return int(shell.expect(r"\r?\n").replace(" ", ""))


def test_statements_over_several_lines_and_ctrl_c_and_ctrl_d(program):
    with Shell(program) as shell:
        shell.expect(PROMPT)
        shell.run("select 'ab' ||")
        shell.run("'cd' as word;")
        shell.expect(r"abcd")
        shell.expect(r"1 row in ")
        shell.expect(PROMPT)
        # Ctrl-C forgets what was typed, and the shell lives on.
        shell.type("select nonsense\x03")
        shell.expect(PROMPT)
        shell.run("select 'ef' || 'gh' as word;")
        assert "error" not in shell.expect(r"efgh")
        shell.expect(PROMPT)
        assert shell.leave() == 0


def test_colours(program):
    keyword = "\x1b[1;34mselect\x1b[0m"
    for environment, is_coloured in [({}, True), ({"NO_COLOR": "1"}, False)]:
        with Shell(program, environment=environment) as shell:
            shell.expect(PROMPT)
            shell.run("select 'ab' || 'cd' as word;")
            shell.expect(r"abcd")
            shell.expect(PROMPT)
            assert (keyword in shell.sent) == is_coloured, shell.sent
            assert shell.leave() == 0


def test_files_that_run_first(program):
    files = {
        ".config/refrain/rc.sql": "create table usual as values ('from the usual');",
        ".refrainrc": "create table here as select * from usual;",
    }
    with Shell(program, files=files) as shell:
        shell.expect(PROMPT)
        shell.run("select * from usual;")
        shell.expect(r"from the usual")
        shell.expect(PROMPT)
        # A script that lies about runs only for those who have asked for it.
        shell.run("select * from here;")
        shell.expect(r"error: .*here")
        shell.expect(PROMPT)
        assert shell.leave() == 0
    for options, environment in [(["--local-init"], {}), ([], {"REFRAIN_LOCAL_INIT": "1"})]:
        with Shell(program, *options, environment=environment, files=files) as shell:
            shell.expect(PROMPT)
            shell.run("select * from here;")
            shell.expect(r"from the usual")
            shell.expect(PROMPT)
            assert shell.leave() == 0


def test_the_history_holds_statements_and_no_secrets(program):
    with Shell(program) as shell:
        shell.expect(PROMPT)
        shell.run("select 'remember' || 'ed' as word;")
        shell.expect(r"remembered")
        shell.expect(PROMPT)
        shell.run("create secret key (type openai, api_key 'sk-not-to-be-kept');")
        shell.expect(r"done")
        shell.expect(PROMPT)
        # The key Up brings the statement before the secret.
        shell.type("\x1b[A\r")
        shell.expect(r"remembered")
        shell.expect(PROMPT)
        assert shell.leave() == 0
        history = shell.path(".local/state/refrain/history")
        assert "remember" in history.read_text() and "sk-not" not in history.read_text(), history.read_text()
        assert history.stat().st_mode & 0o777 == 0o600


def test_completion_knows_the_options_of_a_call(program):
    with Shell(program) as shell:
        shell.expect(PROMPT)
        shell.type("select ai_filter('q', x, passa\t")
        shell.expect(r"passages => ")
        shell.type("\x03")
        shell.expect(PROMPT)
        shell.run("select 'ab' || 'cd' as word;")
        shell.expect(r"abcd")
        shell.expect(PROMPT)
        assert shell.leave() == 0


def test_an_editor(program):
    with Shell(program, environment={"EDITOR": "sed -i s/lovely/wonderful/"}) as shell:
        shell.expect(PROMPT)
        shell.run("select 'a lovely' || ' film' as text;")
        shell.expect(r"a lovely film")
        shell.expect(PROMPT)
        shell.run("\\e")
        shell.expect(r"a wonderful film")
        shell.expect(PROMPT)
        # What was edited is in the history too.
        shell.type("\x1b[A\r")
        shell.expect(r"a wonderful film")
        shell.expect(PROMPT)
        # A statement that is being written goes to the editor as well.
        shell.run("select 'one lovely' || ' day' as text \\e")
        shell.expect(r"one wonderful day")
        shell.expect(PROMPT)
        assert shell.leave() == 0
    with Shell(program, environment={"VISUAL": "true", "EDITOR": "false"}) as shell:
        shell.expect(PROMPT)
        shell.run("select 'ab' || 'cd' as word;")
        shell.expect(r"abcd")
        shell.expect(PROMPT)
        # Nothing was saved, so nothing is run.
        shell.run("\\e")
        # The line as typed shows a prompt too; the next one is that of the line after it.
        shell.expect(r"\\e\r\r\n")
        assert "abcd" not in shell.expect(PROMPT)
        shell.run("select 'ef' || 'gh' as word;")
        assert "abcd" not in shell.expect(r"efgh")
        shell.expect(PROMPT)
        assert shell.leave() == 0


def test_a_pager_for_what_is_higher_than_the_terminal(program):
    with tempfile.TemporaryDirectory() as folder:
        paged = Path(folder) / "paged"
        with Shell(program, size=(12, 120), environment={"PAGER": f"cat > {paged}; :"}) as shell:
            shell.expect(PROMPT)
            shell.run("select 'row ' || value as text from generate_series(1, 50);")
            assert "row 50" not in shell.expect(r"50 rows in ")
            assert "row 50" in paged.read_text()
            paged.unlink()
            shell.expect(PROMPT)
            shell.run("select 'row ' || value as text from generate_series(1, 2);")
            shell.expect(r"row 2")
            shell.expect(r"2 rows in ")
            assert not paged.exists()
            shell.expect(PROMPT)
            shell.run("\\pager off")
            shell.expect(r"is off")
            shell.expect(PROMPT)
            shell.run("select 'row ' || value as text from generate_series(1, 50);")
            shell.expect(r"row 50")
            shell.expect(PROMPT)
            # A pager that is missing costs nothing but itself.
            shell.run("\\pager no-such-pager")
            shell.expect(r"is on")
            shell.expect(PROMPT)
            shell.run("select 'row ' || value as text from generate_series(1, 50);")
            shell.expect(r"no pager no-such-pager")
            shell.expect(r"row 50")
            shell.expect(PROMPT)
            assert shell.leave() == 0


def test_statements_that_run_again(program):
    with Shell(program, size=(24, 120)) as shell:
        shell.expect(PROMPT)
        shell.run("select 'tick' || 'tock' as sound \\watch 0.1")
        for _ in range(3):
            shell.expect(r"ticktock")
        shell.type("\x03")
        shell.expect(r"interrupted")
        shell.expect(PROMPT)
        shell.run("\\gx")
        shell.expect(r"sound │ ticktock")
        shell.expect(PROMPT)
        shell.run("\\last")
        shell.expect(r"│ ticktock │")
        shell.expect(PROMPT)
        assert shell.leave() == 0


def test_the_question_before_what_is_dear(program):
    query = "select ai_sentiment('a wonderful film') as feeling;"
    with Shell(program, environment={"REFRAIN_CONFIRM_ABOVE": "0"}) as shell:
        shell.expect(PROMPT)
        for no in ["n\r", "\r", "\x03", "\x04"]:
            shell.run(query)
            assert "≈ 1 call, " in shell.expect(QUESTION)
            shell.type(no)
            shell.expect(r"not run")
            shell.expect(PROMPT)
        shell.run(query)
        shell.expect(QUESTION)
        shell.type("s\r")
        shell.expect(r"physical_plan")
        shell.expect(QUESTION)
        shell.type("y\r")
        shell.expect(r"positive")
        shell.expect(PROMPT)
        # What asks no model is nothing to ask about.
        shell.run("select 'ab' || 'cd' as word;")
        shell.expect(r"abcd")
        shell.expect(PROMPT)
        assert shell.leave() == 0
    with Shell(program, "--yes", environment={"REFRAIN_CONFIRM_ABOVE": "0"}) as shell:
        shell.expect(PROMPT)
        shell.run(query)
        assert not re.search(QUESTION, shell.expect(r"positive"))
        shell.expect(PROMPT)
        assert shell.leave() == 0
    script = subprocess.run(
        [program, "--no-init", "-c", query, "--format", "csv"],
        env=os.environ | {"REFRAIN_CONFIRM_ABOVE": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (script.returncode, script.stdout) == (0, "feeling\npositive\n"), script


def test_a_query_that_was_interrupted_goes_on_from_the_cache(program):
    with Shell(program) as shell:
        shell.expect(PROMPT)
        shell.run("set refrain.cache = 'session';")
        shell.expect(r"done")
        shell.expect(PROMPT)
        shell.run(STORIES)
        shell.expect(SOME_CALLS)
        shell.type("\x03")
        shell.expect(r"stopped after .* calls?")
        shell.expect(r"interrupted")
        shell.expect(PROMPT)
        shell.run(STORIES)
        shell.expect(r"1 row in ")
        assert calls_of_last_query(shell) < N_STORIES
        assert shell.leave() == 0


def test_a_query_whose_shell_was_killed_goes_on_from_its_checkpoint(program):
    with tempfile.TemporaryDirectory() as folder:
        options = ["-v", f"checkpoint={folder}/answers"]
        with Shell(program, *options) as shell:
            shell.expect(PROMPT)
            shell.run(STORIES)
            shell.expect(SOME_CALLS)
            # Answers are on disk a moment after they were given.
            time.sleep(0.5)
            shell.kill()
        with Shell(program, *options) as shell:
            shell.expect(PROMPT)
            shell.run(STORIES)
            shell.expect(r"1 row in ")
            assert calls_of_last_query(shell) < N_STORIES
            assert shell.leave() == 0


if __name__ == "__main__":
    sys.exit(run_tests(globals(), str(Path(sys.argv[1]).resolve())))
