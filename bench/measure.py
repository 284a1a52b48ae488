"""Measures a real perchd beside its peers, in one run, and prints medians with their spread.

Never reaches beyond the machine: `bench/run` starts it in a network namespace of its own.
"""

import calendar
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import images
import layout
from processes import TICK_S, find, pss_mb

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GUEST = f"{ROOT}/target/guest"
SERVER = "/perch-testserver"


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def row(name, values, unit="ms"):
    print(
        f"| {name} | {len(values)} | {statistics.median(values):.1f} | {percentile(values, 0.99):.1f} "
        f"| {min(values):.1f} | {max(values):.1f} | {unit} |",
        flush=True,
    )
    return statistics.median(values)


def header(title):
    print(f"\n### {title}\n\n| what | n | p50 | p99 | min | max | unit |\n|---|---|---|---|---|---|---|")


def busy_ms():
    """CPU milliseconds that the whole machine has spent so far, idle and waiting left out."""
    with open("/proc/stat", encoding="ascii") as stat:
        fields = [int(field) for field in stat.readline().split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) * TICK_S * 1000


class Cloud:
    """A perchd of its own in a temporary folder."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="pb")
        # The unprivileged process must get to its own folder below.
        os.chmod(self.folder, 0o755)
        self.arguments = [
            "--data-dir", f"{self.folder}/d", "--run-dir", f"{self.folder}/r", "--instance", "bench",
            "--user", "64008", "--keys-user", "64009", "--guest-dir", GUEST,
        ]
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self.log = open(f"{self.folder}/log", "wb")
        self.server = subprocess.Popen(
            [f"{ROOT}/target/release/perchd", "serve", *self.arguments,
             "--api", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        for line in self.server.stdout:
            words = line.split()
            if words[:1] == ["apps"]:
                self.edge = int(words[1].rsplit(":", 1)[1])
            if words[:1] == ["data"]:
                break
        else:
            with open(f"{self.folder}/log", encoding="utf-8") as log:
                sys.exit(f"perchd was not ready:\n{log.read()}")
        with open(f"{self.folder}/d/admin.json", encoding="utf-8") as admin:
            admin = json.load(admin)
        self.token = admin["token"]
        self.api = int(admin["url"].rsplit(":", 1)[1])
        self.connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=120)

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


def write_layout(folder, cmd):
    """An image of one file, the static test server."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(f"{GUEST}/perch-testserver", SERVER.lstrip("/"))
    data = packed.getvalue()
    settings = {"Entrypoint": [SERVER], "Cmd": cmd, "WorkingDir": "/"}
    layout.write(folder, settings, [(data, "tar", hashlib.sha256(data).hexdigest())])


class Runc:
    """runc with its own default configuration: namespaces, seccomp, a memory limit."""

    def __init__(self, folder):
        self.folder = f"{folder}/runc"
        os.makedirs(f"{self.folder}/rootfs")
        shutil.copy(f"{GUEST}/perch-testserver", f"{self.folder}/rootfs{SERVER}")
        subprocess.run(["runc", "spec", "--bundle", self.folder], check=True)
        path = f"{self.folder}/config.json"
        with open(path, encoding="utf-8") as spec:
            spec = json.load(spec)
        spec["process"]["terminal"] = False
        spec["process"]["args"] = [SERVER, "--print", "first"]
        # The default asks for more than this machine may give.
        spec["process"]["rlimits"] = []
        spec["root"]["readonly"] = False
        spec["linux"]["resources"].update({
            "memory": {"limit": 256 << 20}, "cpu": {"shares": 256}, "pids": {"limit": 1024},
        })
        with open(path, "w", encoding="utf-8") as out:
            json.dump(spec, out)
        self.count = 0

    def run(self):
        self.count += 1
        return first_byte(["runc", "run", "--bundle", self.folder, f"bench{os.getpid()}{self.count}"])


def first_byte(command):
    """Runs a command; returns milliseconds to the first byte of its output."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    byte = process.stdout.read(1)
    took = (time.perf_counter() - began) * 1000
    process.communicate()
    if not byte:
        raise RuntimeError(f"{command}: no output")
    return took


def podman_image(folder):
    write_layout(f"{folder}/podman-layout", ["--print", "first"])
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{folder}/podman-layout:latest",
         "containers-storage:localhost/perch-bench:latest"], check=True,
    )
    return ["podman", "run", "--rm", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
            "--memory=256m", "--cgroups=enabled", "localhost/perch-bench:latest"]


def machines(cloud, count):
    """Create to first output, beside runc and podman, in turns."""
    header("Create to first output, image on the host")
    image = cloud.app("first", ["--print", "first"])
    config = {"image": image, "restart": {"policy": "no"}, "guest": {"cpus": 1, "memory_mb": 256}}
    peers = {}
    if shutil.which("runc"):
        runc = Runc(cloud.folder)
        try:
            runc.run()
            peers["runc run"] = runc.run
        except RuntimeError as error:
            print(f"runc left out: {error}", file=sys.stderr)
    if shutil.which("podman"):
        try:
            command = podman_image(cloud.folder)
            first_byte(command)
            peers["podman run"] = lambda: first_byte(command)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"podman left out: {error}", file=sys.stderr)
    def create(follow):
        began, began_ms = time.perf_counter(), time.time() * 1000
        machine = cloud.call("POST", "/v1/apps/first/machines", {"config": config})["id"]
        if follow:
            cloud.follow_to_first_line("first", machine)
            took = (time.perf_counter() - began) * 1000
        cloud.wait("first", machine, "stopped")
        if not follow:
            took = cloud.first_line_ms("first", machine) - began_ms
        cloud.call("DELETE", f"/v1/apps/first/machines/{machine}?force=true")
        return took

    runs = {"perch create": lambda: create(False), "perch create, line read by a client": lambda: create(True), **peers}
    taken = {name: [] for name in runs}
    for turn in range(count + 1):
        for name, run in runs.items():
            took = run()
            if turn > 0:
                taken[name].append(took)
    for name, values in taken.items():
        row(name, values)
    perch = statistics.median(taken["perch create"])
    for name in peers:
        print(f"\nperch create is {perch / statistics.median(taken[name]):.2f} of {name}")


SERVICE = [{"internal_port": 8080, "protocol": "tcp",
            "ports": [{"port": 80, "handlers": ["http"]}]}]


def starts(cloud, count):
    """Start of a stopped machine through the API, and waking one by a request."""
    header("Start and wake of a stopped machine")
    image = cloud.app("web", ["--listen", "0.0.0.0:8080"])
    config = {"image": image, "services": SERVICE}
    machine = cloud.call("POST", "/v1/apps/web/machines", {"config": config})["id"]
    path = f"/v1/apps/web/machines/{machine}"
    cloud.wait("web", machine, "started")
    taken, cpu = [], 0.0
    for _ in range(count):
        cloud.call("POST", f"{path}/stop", {})
        cloud.wait("web", machine, "stopped")
        before, began = busy_ms(), time.perf_counter()
        cloud.call("POST", f"{path}/start")
        cloud.wait("web", machine, "started")
        taken.append((time.perf_counter() - began) * 1000)
        cpu += busy_ms() - before
    row("start until `started`", taken)
    print(f"\n{cpu / count:.1f} CPU ms a start, the whole machine counted")
    taken = []
    for _ in range(count):
        cloud.call("POST", f"{path}/stop", {})
        cloud.wait("web", machine, "stopped")
        began = time.perf_counter()
        edge = http.client.HTTPConnection("127.0.0.1", cloud.edge, timeout=60)
        edge.request("GET", "/", None, {"Host": "web.perch.localhost"})
        answer = edge.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"wake: {answer.status}")
        taken.append((time.perf_counter() - began) * 1000)
        edge.close()
    header("Wake by a request")
    row("request until the first byte of its answer", taken)
    cloud.call("DELETE", f"{path}?force=true")


def memory(cloud, count):
    """Memory of an idle server with idle machines."""
    image = cloud.app("idle", ["--listen", "0.0.0.0:8080"])
    config = {"image": image, "services": SERVICE}
    ids = [cloud.call("POST", "/v1/apps/idle/machines", {"config": config})["id"] for _ in range(count)]
    for machine in ids:
        cloud.wait("idle", machine, "started")
    time.sleep(5)
    roles, monitors = find(cloud.server.pid)
    used = {role: pss_mb(pid) for role, pid in roles.items()}
    header(f"Memory (PSS), idle, {count} idle machines")
    for role, value in used.items():
        row(f"perchd, {role}", [value], "MB")
    row("perchd, all", [sum(used.values())], "MB")
    row("a monitor", [pss_mb(pid) for pid in monitors], "MB")
    for machine in ids:
        cloud.call("DELETE", f"/v1/apps/idle/machines/{machine}?force=true")


def main():
    wanted = sys.argv[1:] or ["machines", "memory"]
    count = int(os.environ.get("BENCH_COUNT", "0"))
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "?")
    print(f"{time.strftime('%Y-%m-%d')} · Linux {os.uname().release} · {os.cpu_count()} x {model}")
    cloud = Cloud()
    try:
        if "machines" in wanted:
            machines(cloud, count or 40)
            starts(cloud, count or 200)
        if "memory" in wanted:
            memory(cloud, 20)
        if "images" in wanted:
            images.images(cloud, count or 5, sys.modules[__name__])
    finally:
        cloud.close()


main()
