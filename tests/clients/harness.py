"""What the tests of clients share: a server of one's own, and running every test of a file."""

import subprocess
import threading
import time
import traceback


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
