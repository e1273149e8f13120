"""A headless Chromium over the DevTools protocol, through a pipe: no packages are needed.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find():
    """Returns the path of a Chromium, None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser of its own. Text that a script gets is passed as a value, never put into it."""

    def __init__(self, width=1360, height=900, scheme="light", language="en"):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            find(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", f"--lang={language}",
            "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors",
        ]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()

        def connect():
            # The browser reads descriptor 3 and writes descriptor 4.
            moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
            os.dup2(moved[0], 3)
            os.dup2(moved[1], 4)

        self.process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.last, self.session = b"", 0, None
        self.complaints = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.scheme(scheme)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
        self.profile.cleanup()

    def send(self, method, **params):
        """Gives a command and returns its result. What the page complains about meanwhile is kept."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            params = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            elif answer.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def receive(self):
        while b"\0" not in self.rest:
            chunk = os.read(self.into, 1 << 16)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self.rest += chunk
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script, *arguments):
        """Calls the function `(…) => script` with these arguments and returns its value."""
        names = ", ".join(f"${number}" for number in range(1, len(arguments) + 1))
        values = ", ".join(json.dumps(argument) for argument in arguments)
        answer = self.send(
            "Runtime.evaluate", expression=f"(({names}) => {script})({values})", awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "the script failed"))
        return answer["result"].get("value")

    def wait(self, condition, *arguments, seconds=120):
        """Waits until a condition holds, and returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition, *arguments)):
            if time.monotonic() > deadline:
                seen = self.run("document.body.innerText")
                raise AssertionError(f"it does not come to hold: {condition} {arguments}\n{seen}\n{self.complaints}")
            time.sleep(0.02)
        return value

    def text(self, selector):
        return self.run("document.querySelector($1).innerText", selector)

    def click(self, selector):
        """Clicks the middle of an element as a mouse does."""
        place = self.run(
            """{
                const element = document.querySelector($1);
                element.scrollIntoView({ block: "center" });
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }""", selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def fill(self, selector, text):
        self.run("{ const field = document.querySelector($1); field.value = ''; field.focus(); }", selector)
        self.send("Input.insertText", text=text)

    def press(self, key, code, modifiers=0):
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def scheme(self, name):
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path):
        data = self.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"]
        path.write_bytes(base64.b64decode(data))
