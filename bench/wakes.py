"""Wakes machines by requests while more of them come: one at a time, in steady traffic, and many apps together.

Never takes a wake for done that was not answered with 200.
"""

import asyncio
import threading
import time

from cloud import SERVICE
from names import by_many, get
from peers import LISTEN
from tables import header, percentile, row

# Requests that come while one machine wakes, and the time between them.
ARRIVALS, ARRIVE_EVERY_S = 8, 0.005
STORM_MAX, STOP_EVERY_S = 200, 0.05
# Apps that are woken together, and the requests that are held for them.
TOGETHER_APPS, TOGETHER_REQUESTS, TOGETHER_ROUNDS = 40, 1_000, 3
# Of the time that all have: the stopped ones, then the suspended, the created, the storm, the many together.
SHARES = {"stopped": 0.5, "suspended": 0.62, "created": 0.74, "storm": 0.82, "together": 1.0}
P50_MS, P99_MS = 60, 250


class Sleeper:
    """An app with one machine, and ways to put it to sleep."""

    def __init__(self, cloud):
        self.cloud, self.path = cloud, "/v1/apps/sleeper/machines"
        self.config = {"image": cloud.app("sleeper", LISTEN), "services": SERVICE}
        self.machine = self.create(False)
        cloud.wait("sleeper", self.machine, "started")
        get(cloud.edge, "sleeper")

    def create(self, is_left):
        body = {"config": self.config, "skip_launch": is_left}
        return self.cloud.call("POST", self.path, body)["id"]

    def stopped(self):
        self.cloud.call("POST", f"{self.path}/{self.machine}/stop", {})
        self.cloud.wait("sleeper", self.machine, "stopped")

    def suspended(self):
        self.cloud.call("POST", f"{self.path}/{self.machine}/suspend")
        self.cloud.wait("sleeper", self.machine, "suspended")

    def created(self):
        """A new one in place of the one before, never started."""
        self.cloud.call("DELETE", f"{self.path}/{self.machine}?force=true")
        self.cloud.wait("sleeper", self.machine, "destroyed")
        self.machine = self.create(True)


def ask(cloud, app, values, errors):
    try:
        status, took = get(cloud.edge, app)
    except OSError as error:
        errors.append(str(error))
        return
    values.append(took)
    if status != 200:
        errors.append(status)


def one_by_one(sleeper, kind, count, until, verdicts):
    """Puts the machine to sleep and wakes it, so often or until the time is over."""
    header(f"Wakes of a {kind} machine, {ARRIVALS} requests during each, {ARRIVE_EVERY_S * 1000:.0f} ms apart")
    first, rest, errors, done = [], [], [], 0
    while done < count and time.monotonic() < until:
        getattr(sleeper, kind)()
        threads = [threading.Thread(target=ask, args=(sleeper.cloud, "sleeper", rest if number else first, errors))
                   for number in range(ARRIVALS)]
        for thread in threads:
            thread.start()
            time.sleep(ARRIVE_EVERY_S)
        for thread in threads:
            thread.join()
        done += 1
    if not first:
        raise RuntimeError(f"no {kind} machine was woken: {errors[:1]}")
    row("the request that wakes, until the first byte", first)
    row("those that come meanwhile", rest)
    tell_errors(errors, len(first) + len(rest))
    name = f"{done} wakes of a {kind} machine"
    if kind == "stopped":
        verdicts.at_most(f"{name}, p50", percentile(first, 0.5), P50_MS, P50_MS, "ms")
        verdicts.at_most(f"{name}, p99", percentile(first, 0.99), P99_MS, P99_MS, "ms")
    verdicts.at_most(f"{name}, errors", len(errors), 0, 0, "")


def tell_errors(errors, count):
    seen = sorted(set(map(str, errors)))[:5]
    print(f"\nerrors in {count} requests: {len(errors)} {seen or ''}", flush=True)


def storm(sleeper, count, until, verdicts):
    """Stops in the middle of steady traffic: whatever a request falls on, it is answered with 200."""
    cloud, is_over, errors, took = sleeper.cloud, threading.Event(), [], []

    def steady():
        while not is_over.is_set():
            ask(cloud, "sleeper", took, errors)

    threads = [threading.Thread(target=steady) for _ in range(4)]
    for thread in threads:
        thread.start()
    stops = 0
    while stops < count and time.monotonic() < until:
        # One that never gets to run can answer nobody: it is up for a moment before each stop.
        cloud.wait("sleeper", sleeper.machine, "started")
        time.sleep(STOP_EVERY_S)
        try:
            cloud.call("POST", f"{sleeper.path}/{sleeper.machine}/stop", {})
            stops += 1
        except RuntimeError as error:
            # It is just starting again.
            if not any(code in str(error) for code in ("409", "412", "422")):
                errors.append(str(error))
    is_over.set()
    for thread in threads:
        thread.join()
    header(f"{stops} stops in the middle of steady traffic")
    row("a request until the first byte", took)
    tell_errors(errors, len(took))
    verdicts.at_most(f"{stops} stops in steady traffic, errors", len(errors), 0, 0, "")


async def all_at_once(port, apps):
    """All requests begin together; what each took, and what went wrong."""
    took, errors = [], []

    async def one(app):
        began = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET / HTTP/1.1\r\nHost: {app}.perch.localhost\r\nConnection: close\r\n\r\n".encode())
            line = await asyncio.wait_for(reader.readline(), 60)
            took.append((time.perf_counter() - began) * 1000)
            writer.close()
        except (OSError, asyncio.TimeoutError) as error:
            errors.append(f"{type(error).__name__} {error}")
            return
        if b" 200 " not in line:
            errors.append(line.decode(errors="replace").strip())

    await asyncio.gather(*(one(apps[number % len(apps)]) for number in range(TOGETHER_REQUESTS)))
    return took, errors


def together(cloud, until, verdicts):
    """A thousand requests for forty apps that are all asleep, held at once."""
    apps = [f"many{number}" for number in range(TOGETHER_APPS)]
    machines = {}
    for app in apps:
        config = {"image": cloud.app(app, LISTEN), "services": SERVICE}
        machines[app] = cloud.call("POST", f"/v1/apps/{app}/machines", {"config": config, "skip_launch": True})["id"]
    took, errors, rounds = [], [], 0

    def stop(app):
        cloud.call("POST", f"/v1/apps/{app}/machines/{machines[app]}/stop", {})
        cloud.wait(app, machines[app], "stopped")

    while rounds < TOGETHER_ROUNDS and (rounds == 0 or time.monotonic() < until):
        # In the first round they were only created.
        if rounds > 0:
            by_many(apps, stop, time.monotonic() + 60)
        values, failed = asyncio.run(all_at_once(cloud.edge, apps))
        took += values
        errors += failed
        rounds += 1
    header(f"{TOGETHER_REQUESTS} requests at once for {TOGETHER_APPS} apps that sleep, {rounds} rounds")
    row("a request until the first byte", took)
    tell_errors(errors, rounds * TOGETHER_REQUESTS)
    verdicts.at_most(f"{TOGETHER_APPS} apps woken together, errors", len(errors), 0, 0, "")
    for app in apps:
        cloud.call("DELETE", f"/v1/apps/{app}/machines/{machines[app]}?force=true")


def all_kinds(cloud, count, until, verdicts):
    """All of it in the time that there is; `count` is for the stopped ones."""
    began = time.monotonic()
    ends = {name: began + (until - began) * share for name, share in SHARES.items()}
    sleeper = Sleeper(cloud)
    one_by_one(sleeper, "stopped", count, ends["stopped"], verdicts)
    one_by_one(sleeper, "suspended", count, ends["suspended"], verdicts)
    one_by_one(sleeper, "created", count, ends["created"], verdicts)
    storm(sleeper, min(count, STORM_MAX), ends["storm"], verdicts)
    together(cloud, ends["together"], verdicts)


def many_wakes(cloud, count, until, verdicts):
    """The ten thousand, which take longer than all else."""
    one_by_one(Sleeper(cloud), "stopped", count, until, verdicts)
