"""Measures a server that holds many idle machines: memory of each, what a start and a list cost.

Never more than the server has room for: it stops at the first refusal and says where.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from machines import Idle
from processes import find, pss_mb
from tables import busy_ms, header, row

# As many as a client keeps under way.
WORKERS = 8
SETTINGS = "memory_overcommit = 64.0\n"


def used_mb():
    with open("/proc/meminfo", encoding="ascii") as info:
        fields = {line.split(":")[0]: int(line.split()[1]) for line in info}
    return (fields["MemTotal"] - fields["MemAvailable"]) / 1024


def memory(cloud, count):
    """Memory of a server with `count` idle machines."""
    idle = Idle(cloud, "idle")
    before, began, busy = used_mb(), time.perf_counter(), busy_ms()
    with ThreadPoolExecutor(WORKERS) as pool:
        created = list(pool.map(lambda _: idle.create(), range(count)))
    took = time.perf_counter() - began
    header(f"{count} idle machines")
    row("created until `started`, 8 at a time", [ms for ms, _ in created])
    print(f"\nall within {took:.0f} s, {(busy_ms() - busy) / count:.0f} CPU ms each\n")
    time.sleep(5)
    roles, monitors = find(cloud.server.pid)
    used = {role: pss_mb(pid) for role, pid in roles.items()}
    header(f"Memory (PSS), {count} idle machines")
    for role, value in used.items():
        row(f"perchd, {role}", [value], "MB")
    row("perchd, all", [sum(used.values())], "MB")
    row("a monitor", [pss_mb(pid) for pid in monitors], "MB")
    row("the whole server, by machine", [(used_mb() - before) / count], "MB")
    busy = busy_ms()
    time.sleep(10)
    print(f"\nidle: {(busy_ms() - busy) / 10:.1f} CPU ms a second, the whole machine counted\n")
    header(f"Beside {count} idle machines")
    path = "/v1/apps/idle/machines"
    row("list of all", [timed(lambda: cloud.call("GET", path)) for _ in range(10)])
    row("list of all, summary", [timed(lambda: cloud.call("GET", f"{path}?summary=true")) for _ in range(10)])
    machine = created[0][1]
    starts, stops = [], []
    for _ in range(20):
        stops.append(idle.to(machine, "stop", "stopped"))
        starts.append(idle.to(machine, "start", "started"))
    row("start of a stopped one", starts)
    row("stop of one", stops)
    row("create of another", [created_and_destroyed(idle) for _ in range(20)])
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda one: idle.destroy(one[1]), created))


def timed(call):
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def created_and_destroyed(idle):
    took, machine = idle.create()
    idle.destroy(machine)
    return took
