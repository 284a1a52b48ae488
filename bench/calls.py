"""Measures the API's calls a second: one machine, a list of 500, creations.

Never starts a program: the machines are prepared and left stopped.
"""

import threading
import time

from processes import cpu_s, find
from peers import LISTEN

MACHINES = 500
WORKERS = 4


def rate(cloud, seconds, call):
    """Calls a second of a few clients, and of a CPU second of the process that serves them."""
    stop, counts, failed = time.perf_counter() + seconds, [], []
    front = find(cloud.server.pid)[0]["front"]
    cpu = cpu_s(front)

    def work(worker):
        done = 0
        try:
            while time.perf_counter() < stop:
                call(worker, done)
                done += 1
        except RuntimeError as error:
            failed.append(error)
        counts.append(done)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    spent = cpu_s(front) - cpu
    return sum(counts) / seconds, sum(counts) / max(spent, 0.01)


def calls(cloud, seconds):
    image = cloud.app("calls", LISTEN)
    body = {"config": {"image": image}, "skip_launch": True}
    path = "/v1/apps/calls/machines"
    print(f"\n### API calls, {WORKERS} clients of Python on the same two processors\n")
    print("| what | calls a second | calls a CPU second of the front process |\n|---|---|---|")
    ids = []

    def create(_worker, _done):
        ids.append(cloud.call("POST", path, body)["id"])

    report("create, left stopped", rate(cloud, seconds, create))
    while len(ids) < MACHINES:
        create(0, 0)
    for machine in ids[MACHINES:]:
        cloud.call("DELETE", f"{path}/{machine}?force=true")
    del ids[MACHINES:]
    report("get of one", rate(cloud, seconds, lambda worker, done: cloud.call(
        "GET", f"{path}/{ids[(done * WORKERS + worker) % MACHINES]}")))
    report(f"list of {MACHINES}", rate(cloud, seconds, lambda *_: cloud.call("GET", path)))
    report(f"list of {MACHINES}, summary", rate(cloud, seconds, lambda *_: cloud.call("GET", f"{path}?summary=true")))
    for machine in ids:
        cloud.call("DELETE", f"{path}/{machine}?force=true")


def report(name, rates):
    print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)
