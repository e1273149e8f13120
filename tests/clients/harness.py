"""What the tests of clients share: a server or a shell of one's own, and running every test of a file."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import threading
import time
import traceback
from pathlib import Path

PATIENCE_S = 120


class Server:
    """A server of its own for each test, on ports that the system chooses."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.read_addresses(self.process.stderr)
        # What it says later must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def read_addresses(self, stderr):
        """Reads where it listens, which it says first."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0, "the server did not stop as it should"


class MonitoredServer(Server):
    """A server for programs, with its counters."""

    def __init__(self, program, *options):
        super().__init__([program, "serve", "--no-init", "--listen", "127.0.0.1:0", "--monitor", "127.0.0.1:0", *options])

    def read_addresses(self, stderr):
        self.uri = stderr.readline().split()[1]
        self.metrics_url = stderr.readline().split()[-1]


class Shell:
    """A shell in a terminal of its own, with a home that nobody else has, in which it begins.

    `files` are written to the home first; `size` is that of the terminal, lines and columns, which otherwise tells none.
    """

    def __init__(self, program, *options, environment=None, files=None, size=(0, 0)):
        self.home = tempfile.TemporaryDirectory()
        for name, text in (files or {}).items():
            path = Path(self.home.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        # What the terminal shows and was not expected yet; and all that it was sent, colours included.
        self.seen = self.sent = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            os.chdir(self.home.name)
            chosen = ("EDITOR", "LESS", "NO_COLOR", "PAGER", "VISUAL")
            kept = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("REFRAIN_", "XDG_", "OTEL_")) and name not in chosen
            }
            os.execve(program, [program, *options], kept | {"HOME": self.home.name, "TERM": "xterm"} | (environment or {}))

    def type(self, text):
        os.write(self.terminal, text.encode())

    def expect(self, pattern):
        """Waits until the terminal shows a text; returns what stood before it."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} does not come, but {self.seen!r}"
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    read = os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:
                    read = ""
                assert read, f"the shell has ended with {self.seen!r}"
                self.sent += read
                # Colours and movements of the cursor are of no interest here.
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read)
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def hide(self):
        """Waits until the terminal shows no more of what is typed."""
        deadline = time.monotonic() + PATIENCE_S
        while termios.tcgetattr(self.terminal)[3] & termios.ECHO:
            assert time.monotonic() < deadline, "what is typed would be shown"
            time.sleep(0.01)

    def run(self, line):
        self.type(line + "\r")

    def path(self, name):
        """A file in the shell's home."""
        return Path(self.home.name) / name

    def kill(self):
        """Kills it, so that it can put nothing in order."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def leave(self):
        """Leaves by Ctrl-D, and returns the exit code."""
        self.type("\x04")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if select.select([self.terminal], [], [], 0.01)[0]:
                try:
                    os.read(self.terminal, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, "the shell does not end"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.kill()
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.terminal)
        self.home.cleanup()


def run_tests(names, *arguments):
    """Runs the tests among the names of a file. Returns the exit code; the last line says how many passed."""
    tests = [(name, test) for name, test in names.items() if name.startswith("test_")]
    failed = 0
    for name, test in tests:
        started = time.monotonic()
        try:
            test(*arguments)
            print(f"ok {name} ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {name}", flush=True)
            traceback.print_exc()
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed else 0
