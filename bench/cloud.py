"""A real perchd to measure, in a temporary folder.

Never leaves anything: `close` ends it and takes away what it made.
"""

import calendar
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import layout

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GUEST = f"{ROOT}/target/guest"
SERVER = "/perch-testserver"
IDLE_S = 2
EDGE_PORT, EDGE_TLS_PORT = 18079, 18442
SERVICE = [{"internal_port": 8080, "protocol": "tcp",
            "ports": [{"port": 80, "handlers": ["http"]},
                      {"port": 443, "handlers": ["tls", "http"]}]}]


class Cloud:
    """A perchd of its own in a temporary folder."""

    def __init__(self, settings=""):
        self.folder = tempfile.mkdtemp(prefix="pb")
        # The unprivileged process must get to its own folder below.
        os.chmod(self.folder, 0o755)
        self.run_folder = f"/run/{os.path.basename(self.folder)}"
        self.arguments = [
            "--data-dir", f"{self.folder}/d", "--run-dir", self.run_folder, "--instance", "bench",
            "--user", "64008", "--keys-user", "64009", "--guest-dir", GUEST, "--config", f"{self.folder}/perchd.toml",
        ]
        with open(f"{self.folder}/perchd.toml", "w", encoding="utf-8") as config:
            config.write(settings)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        serve = [f"{ROOT}/target/release/perchd", "serve"]
        told = subprocess.run([*serve, "--help"], check=True, capture_output=True, text=True).stdout
        # The network is this process's own, so these ports are free. An edge without TLS has no such option.
        self.edge, self.edge_tls = EDGE_PORT, EDGE_TLS_PORT if "--https " in told else None
        https = ["--https", f"127.0.0.1:{EDGE_TLS_PORT}"] if self.edge_tls else []
        self.log = open(f"{self.folder}/log", "wb")
        self.server = subprocess.Popen(
            [*serve, *self.arguments, "--api", "127.0.0.1:0", "--http", f"127.0.0.1:{EDGE_PORT}", *https,
             "--metrics", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        for line in self.server.stdout:
            words = line.split()
            if words[:1] == ["data"]:
                break
        else:
            with open(f"{self.folder}/log", encoding="utf-8") as log:
                sys.exit(f"perchd was not ready:\n{log.read()}")
        with open(f"{self.folder}/d/admin.json", encoding="utf-8") as admin:
            admin = json.load(admin)
        self.token = admin["token"]
        self.api = int(admin["url"].rsplit(":", 1)[1])
        self.connections = threading.local()

    @property
    def connection(self):
        """A connection of the thread's own; a new one when the server may have ended it for lying idle."""
        own, now = self.connections, time.monotonic()
        if now - getattr(own, "used", 0) > IDLE_S:
            own.connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=120)
        own.used = now
        return own.connection

    def call(self, method, path, body=None):
        self.connection.request(
            method, path, json.dumps(body) if body is not None else None,
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status > 299:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text or b"null")

    def app(self, app, cmd):
        self.call("POST", "/v1/apps", {"name": app, "org_slug": "personal"})
        folder = f"{self.folder}/layout-{app}"
        write_layout(folder, cmd)
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", f"x:{self.token}",
             f"oci:{folder}:latest", f"docker://127.0.0.1:{self.api}/{app}:latest"],
            check=True,
        )
        return f"registry.internal/{app}:latest"

    def wait(self, app, machine, state):
        self.call("GET", f"/v1/apps/{app}/machines/{machine}/wait?state={state}&timeout=60")

    def follow_to_first_line(self, app, machine):
        """Follows the machine's log until its first line of output is read."""
        follow = http.client.HTTPConnection("127.0.0.1", self.api, timeout=120)
        follow.request(
            "GET", f"/v1/apps/{app}/machines/{machine}/logs?follow=true", None,
            {"Authorization": f"Bearer {self.token}"},
        )
        for line in follow.getresponse():
            if json.loads(line)["stream"] == "stdout":
                break
        follow.close()

    def first_line_ms(self, app, machine):
        """Milliseconds since 1970 at which the first line of output of a machine that has ended was read."""
        self.connection.request(
            "GET", f"/v1/apps/{app}/machines/{machine}/logs", None,
            {"Authorization": f"Bearer {self.token}"},
        )
        records = map(json.loads, self.connection.getresponse().read().splitlines())
        stamp = next(record["timestamp"] for record in records if record["stream"] == "stdout")
        seconds, _, fraction = stamp.rstrip("Z").partition(".")
        whole = calendar.timegm(time.strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
        return whole * 1000 + int(fraction.ljust(3, "0")[:3])

    def close(self):
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(30)
        subprocess.run(
            [f"{ROOT}/target/release/perchd", "remove", "--yes", *self.arguments], check=True
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)


def write_layout(folder, cmd):
    """An image of one file, the static test server."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(f"{GUEST}/perch-testserver", SERVER.lstrip("/"))
    data = packed.getvalue()
    settings = {"Entrypoint": [SERVER], "Cmd": cmd, "WorkingDir": "/"}
    layout.write(folder, settings, [(data, "tar", hashlib.sha256(data).hexdigest())])
