"""Measures one machine at a time, and fifty at once: create, start, stop, suspend, wake.

Never the first turn: it fills caches, here and at the peers.
"""

import http.client
import statistics
import threading
import time

from cloud import SERVICE
from peers import LISTEN, PRINT, peers
from tables import busy_ms, header, row

AT_ONCE = 50


def in_turns(runs, count):
    """Runs each `count` times, one after the other; returns what each took and its CPU ms."""
    taken, cpu = {name: [] for name in runs}, dict.fromkeys(runs, 0.0)
    for turn in range(count + 1):
        for name, run in runs.items():
            before = busy_ms()
            took = run()
            if turn > 0:
                taken[name].append(took)
                cpu[name] += busy_ms() - before
    return taken, {name: spent / count for name, spent in cpu.items()}


def compare(taken, ours, theirs):
    mine = statistics.median(taken[ours])
    for name in theirs:
        if name in taken:
            print(f"\n{ours} is {mine / statistics.median(taken[name]):.2f} of {name}", flush=True)


def first_output(cloud, count):
    """Create to first output, beside runc and podman, in turns."""
    header("Create to first output, image on the host")
    image = cloud.app("first", PRINT)
    config = {"image": image, "restart": {"policy": "no"}, "guest": {"cpus": 1, "memory_mb": 256}}
    others = peers(cloud.folder, "first", PRINT, lambda peer: peer.to_first_byte())

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

    runs = {"perch create": lambda: create(False), "perch create, line read by a client": lambda: create(True)}
    runs.update({f"{name} run": peer.to_first_byte for name, peer in others.items()})
    taken, _ = in_turns(runs, count)
    for name, values in taken.items():
        row(name, values)
    compare(taken, "perch create", [f"{name} run" for name in others])


class Idle:
    """An app whose machines listen and do nothing."""

    def __init__(self, cloud, app, memory_mb=256):
        self.cloud, self.app = cloud, app
        image = cloud.app(app, LISTEN)
        self.config = {"image": image, "services": SERVICE, "guest": {"cpus": 1, "memory_mb": memory_mb}}

    def path(self, machine, rest=""):
        return f"/v1/apps/{self.app}/machines/{machine}{rest}"

    def create(self):
        """Creates a machine; returns milliseconds until it is `started`, and its id."""
        began = time.perf_counter()
        machine = self.cloud.call("POST", f"/v1/apps/{self.app}/machines", {"config": self.config})["id"]
        self.cloud.wait(self.app, machine, "started")
        return (time.perf_counter() - began) * 1000, machine

    def to(self, machine, verb, state):
        """Asks for a change; returns milliseconds until its state is reached."""
        began = time.perf_counter()
        self.cloud.call("POST", self.path(machine, f"/{verb}"), {} if verb == "stop" else None)
        self.cloud.wait(self.app, machine, state)
        return (time.perf_counter() - began) * 1000

    def destroy(self, machine):
        self.cloud.call("DELETE", self.path(machine, "?force=true"))


def remove_after(create, remove):
    """A run that creates, and removes outside of the time that it returns."""
    def run():
        took, name = create()
        remove(name)
        return took
    return run


def life(cloud, count):
    """Create to `started`, start, stop, suspend and resume of one machine, beside the peers."""
    idle = Idle(cloud, "life")
    others = peers(cloud.folder, "life", LISTEN, lambda peer: peer.remove(peer.create_and_start()[1]))

    header("Create to `started`, image on the host, one after the other")
    runs = {"perch": remove_after(idle.create, idle.destroy)}
    runs.update({name: remove_after(peer.create_and_start, peer.remove) for name, peer in others.items()})
    created, cpu = in_turns(runs, count)
    for name, values in created.items():
        row(f"{name}, {cpu[name]:.0f} CPU ms with its removal", values)
    compare(created, "perch", others)

    _, machine = idle.create()
    names = {name: peer.create_and_start()[1] for name, peer in others.items()}
    header("Suspend and resume")
    runs = {"perch": lambda: idle.to(machine, "suspend", "suspended") + idle.to(machine, "start", "started")}
    runs.update({name: lambda peer=peer, name=name: peer.pause_and_resume(names[name]) for name, peer in others.items()})
    taken, _ = in_turns(runs, count)
    for name, values in taken.items():
        row(name, values)
    for name, peer in others.items():
        peer.remove(names[name])

    header("Stop of a program that ends at its signal, and start of what is stopped")
    taken = {"perch": [], **{name: [] for name in others}}
    starts = []
    for _ in range(count):
        taken["perch"].append(idle.to(machine, "stop", "stopped"))
        for name, peer in others.items():
            taken[name].append(peer.stop(peer.create_and_start()[1]))
        # Not right behind its own stop, whose layer the disk is still taking back.
        starts.append(idle.to(machine, "start", "started"))
    for name, values in taken.items():
        row(f"{name}, stop", values)
    row("perch, start until `started`", starts)
    if "runc" in others:
        ratio = statistics.median(starts) / statistics.median(created["runc"])
        print(f"\nperch start is {ratio:.2f} of runc create and start", flush=True)
    idle.destroy(machine)


def at_once(create, remove):
    """Fifty at once; returns what each took, and CPU ms each."""
    taken, failed = [], []

    def run():
        try:
            taken.append(create())
        except Exception as error:  # told below, with all others
            failed.append(error)

    before = busy_ms()
    threads = [threading.Thread(target=run) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = (busy_ms() - before) / AT_ONCE
    for _, name in taken:
        remove(name)
    if failed:
        raise RuntimeError(f"{len(failed)} of {AT_ONCE} failed, such as: {failed[0]}")
    return [took for took, _ in taken], cpu


def together(cloud, rounds):
    """Fifty creations at once, beside the peers, in turns."""
    header(f"Create to `started`, {AT_ONCE} at once, {rounds} rounds")
    idle = Idle(cloud, "together")
    others = peers(cloud.folder, "together", LISTEN, lambda peer: peer.remove(peer.create_and_start()[1]))
    runs = {"perch": (idle.create, idle.destroy)}
    runs.update({name: (peer.create_and_start, peer.remove) for name, peer in others.items()})
    idle.destroy(idle.create()[1])
    taken, cpu = {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(rounds):
        for name, (create, remove) in runs.items():
            values, spent = at_once(create, remove)
            taken[name] += values
            cpu[name].append(spent)
    for name, values in taken.items():
        row(f"{name}, {statistics.median(cpu[name]):.0f} CPU ms each", values)
    compare(taken, "perch", others)


def wakes(cloud, count):
    """Waking a stopped machine by a request."""
    header("Wake of a stopped machine by a request")
    idle = Idle(cloud, "wakes")
    _, machine = idle.create()
    taken = []
    for _ in range(count):
        idle.to(machine, "stop", "stopped")
        began = time.perf_counter()
        edge = http.client.HTTPConnection("127.0.0.1", cloud.edge, timeout=60)
        edge.request("GET", "/", None, {"Host": "wakes.perch.localhost"})
        answer = edge.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"wake: {answer.status}")
        taken.append((time.perf_counter() - began) * 1000)
        edge.close()
    row("request until the first byte of its answer", taken)
    idle.destroy(machine)
