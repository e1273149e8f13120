"""External models against a server that others wrote: llama-cpp-python with the bundled model.

    python3 tests/clients/stranger.py [TEST]

Makes an environment in target/stranger with llama-cpp-python, which is compiled there the first time (ten minutes on two cores;
needs a C++ compiler), writes the bundled model with its tokenizer as one GGUF file, starts the server on a port of this machine,
runs the test `stranger` of serving/tests/remote against it, and stops it. TEST names the compiled test, such as
target/debug/deps/remote-…; without it cargo builds and runs it. Exits as the test does.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target/stranger"
PACKAGES = ["llama-cpp-python[server]==0.3.36", "gguf"]
# Written when all packages are installed, so that what was broken off is begun again.
INSTALLED = FOLDER / "installed"
PATIENCE_S = 120


def main():
    python = environment()
    model = FOLDER / "mini.gguf"
    subprocess.run([python, ROOT / "serving/scripts/mini_gguf.py", ROOT / "serving/models/mini", model], check=True)
    port = free_port()
    # By default a new request stops a running stream.
    options = ["--n_ctx", "2048", "--logits_all", "true", "--interrupt_requests", "false", "--port", str(port)]
    log = FOLDER / "server.log"
    with log.open("w") as output:
        command = [python, "-m", "llama_cpp.server", "--model", model, *options]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        wait(server, f"{url}/models", log)
        variables = {"REFRAIN_REMOTE_URL": url, "REFRAIN_REMOTE_STRUCTURE": "json_object"}
        return subprocess.run(test(), cwd=ROOT, env=os.environ | variables).returncode
    finally:
        server.terminate()
        server.wait(60)


def environment():
    """Returns the Python that has the packages."""
    python = FOLDER / "venv/bin/python"
    if not INSTALLED.exists() or INSTALLED.read_text().split() != PACKAGES:
        venv.create(FOLDER / "venv", with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        INSTALLED.write_text("\n".join(PACKAGES))
    return python


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(server, url, log):
    """Waits until the server answers, which it does once the model is loaded."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{log.read_text()}"
            time.sleep(0.2)


def test():
    """Returns the command that runs the test."""
    build = ["cargo", "test", "--workspace", "--test", "remote", "--"]
    return [*([Path(sys.argv[1]).resolve()] if len(sys.argv) > 1 else build), "stranger", "--nocapture"]


if __name__ == "__main__":
    sys.exit(main())
