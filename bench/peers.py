"""The programs that people would pick instead, driven the same way: runc and podman.

Never compared but in the same run, in turns.
"""

import json
import os
import select
import shutil
import subprocess
import time

from cloud import GUEST, SERVER, write_layout

LISTEN = ["--listen", "0.0.0.0:8080"]
PRINT = ["--print", "first"]


class Runc:
    """runc with its own default configuration: namespaces, seccomp, a memory limit."""

    def __init__(self, folder, name, words):
        self.folder = f"{folder}/runc-{name}"
        os.makedirs(f"{self.folder}/rootfs")
        shutil.copy(f"{GUEST}/perch-testserver", f"{self.folder}/rootfs{SERVER}")
        subprocess.run(["runc", "spec", "--bundle", self.folder], check=True)
        path = f"{self.folder}/config.json"
        with open(path, encoding="utf-8") as spec:
            spec = json.load(spec)
        spec["process"]["terminal"] = False
        spec["process"]["args"] = [SERVER, *words]
        # The default asks for more than this machine may give.
        spec["process"]["rlimits"] = []
        spec["root"]["readonly"] = False
        spec["linux"]["resources"].update({
            "memory": {"limit": 256 << 20}, "cpu": {"shares": 256}, "pids": {"limit": 1024},
        })
        with open(path, "w", encoding="utf-8") as out:
            json.dump(spec, out)
        self.count = 0

    def name(self):
        self.count += 1
        return f"bench{os.getpid()}-{self.count}"

    def to_first_byte(self):
        return first_byte(["runc", "run", "--bundle", self.folder, self.name()])

    def create_and_start(self):
        """The two calls, as an orchestrator makes them; returns milliseconds and the container."""
        name, began = self.name(), time.perf_counter()
        quiet(["runc", "create", "--bundle", self.folder, name])
        quiet(["runc", "start", name])
        return (time.perf_counter() - began) * 1000, name

    def pause_and_resume(self, name):
        began = time.perf_counter()
        quiet(["runc", "pause", name])
        quiet(["runc", "resume", name])
        return (time.perf_counter() - began) * 1000

    def stop(self, name):
        """A kill, until the container has ended: its program is PID 1 and hears nothing it does not catch."""
        state = json.loads(subprocess.run(["runc", "state", name], check=True, capture_output=True).stdout)
        process, began = os.pidfd_open(state["pid"]), time.perf_counter()
        quiet(["runc", "kill", name, "KILL"])
        wait_for_end(process)
        took = (time.perf_counter() - began) * 1000
        self.remove(name)
        return took

    @staticmethod
    def remove(name):
        quiet(["runc", "delete", "--force", name])


class Podman:
    """podman with an image in its own store."""

    RUN = ["podman", "run", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
           "--memory=256m", "--cgroups=enabled"]

    def __init__(self, folder, name, words):
        self.image = f"localhost/perch-bench-{name}:latest"
        write_layout(f"{folder}/podman-{name}", words)
        subprocess.run(
            ["skopeo", "copy", "--quiet", f"oci:{folder}/podman-{name}:latest", f"containers-storage:{self.image}"],
            check=True,
        )

    def to_first_byte(self):
        return first_byte([*self.RUN, "--rm", self.image])

    def create_and_start(self):
        began = time.perf_counter()
        done = subprocess.run([*self.RUN, "--detach", self.image], check=True, capture_output=True, text=True)
        return (time.perf_counter() - began) * 1000, done.stdout.strip()

    @staticmethod
    def pause_and_resume(name):
        began = time.perf_counter()
        quiet(["podman", "pause", name])
        quiet(["podman", "unpause", name])
        return (time.perf_counter() - began) * 1000

    def stop(self, name):
        began = time.perf_counter()
        quiet(["podman", "stop", "--time", "5", name])
        took = (time.perf_counter() - began) * 1000
        self.remove(name)
        return took

    @staticmethod
    def remove(name):
        quiet(["podman", "rm", "--force", "--time", "0", name])


def quiet(command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_end(process):
    poll = select.poll()
    poll.register(process)
    if not poll.poll(30_000):
        raise RuntimeError("the container did not end")
    os.close(process)


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


def peers(folder, name, words, tried):
    """The peers that are installed and work here: each is tried once."""
    found = {}
    for title, program, kind in [("runc", "runc", Runc), ("podman", "podman", Podman)]:
        if not shutil.which(program):
            continue
        try:
            peer = kind(folder, name, words)
            tried(peer)
            found[title] = peer
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"note: {title} left out: {error}", flush=True)
    return found
