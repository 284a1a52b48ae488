"""Measures the edge beside nginx and haproxy, in turns, before the same machine.

Never counts the load generator or the upstream: a number is requests a CPU second of the proxy's own processes.
"""

import http.client
import statistics
import threading
import time

import load
from cloud import SERVICE
from peers import LISTEN
from proxies import HOST, Stage
from tables import header, row

RUN_S = 4
RATE = 8000
IDLE_CONNECTIONS = 2000
APPS = 10_000
BUSY_APPS = 10
KIB, MIB = "/bytes?n=1024", "/bytes?n=1048576"
# Requests that come while one machine wakes, and the time between them.
ARRIVALS, ARRIVE_EVERY_S = 8, 0.005
STORM_MAX, STOP_EVERY_S = 200, 0.05


def in_turns(stage, rounds, run, tls):
    """Requests a CPU second of each proxy, one value a round; the first turn warms up and is not counted."""
    values = {proxy.name: [] for proxy in stage.proxies}
    for turn in range(rounds + 1):
        for proxy in stage.proxies:
            before = proxy.cpu_s()
            count = run(proxy)
            spent = proxy.cpu_s() - before
            if turn > 0:
                values[proxy.name].append(count / max(spent, 0.01))
    return report(values, "requests a CPU s" + (", TLS" if tls else ""))


def report(values, unit):
    for name, taken in values.items():
        row(name, taken, unit)
    ratios = {}
    for name in values:
        if name != "perch":
            # Each turn with its own neighbour: what the host does to this machine hits both.
            ratios[name] = statistics.median(a / b for a, b in zip(values["perch"], values[name]))
            print(f"\nperch is {ratios[name]:.2f} of {name}", flush=True)
    return ratios


def throughput(stage, rounds):
    def wrk(path, **settings):
        return lambda proxy: load.by_wrk(stage, proxy, path, RUN_S, **settings)

    def h2(proxy):
        return load.by_h2load(stage, proxy, KIB, RUN_S, tls=True, streams=32, clients=8)[0]

    parts = [
        ("HTTP/1.1, keep-alive, 1 KB", wrk(KIB), False),
        ("HTTP/1.1, bodies of 1 MB", wrk(MIB, connections=16), False),
        ("HTTP/1.1 under TLS, keep-alive, 1 KB", wrk(KIB, tls=True), True),
        ("TLS handshakes: a connection for each request", wrk(KIB, tls=True, fresh=True, connections=16), True),
        ("HTTP/2 under TLS, 8 connections with 32 streams, 1 KB", h2, True),
    ]
    for title, run, tls in parts:
        if tls and not stage.perch.tls:
            print(f"\nskipped: {title}: the edge speaks no TLS", flush=True)
            continue
        header(title)
        in_turns(stage, rounds, run, tls)


def fixed_rate(stage, rounds):
    """What requests take at a rate that none of them is full at."""
    for tls in [False, True]:
        title = f"{RATE} requests a second{' under TLS' if tls else ''}: from the request to the end of its answer"
        if tls and not stage.perch.tls:
            print(f"\nskipped: {title}: the edge speaks no TLS", flush=True)
            continue
        header(title)
        taken = {proxy.name: ([], []) for proxy in stage.proxies}
        for turn in range(rounds + 1):
            for proxy in stage.proxies:
                count, took = load.by_h2load(stage, proxy, KIB, RUN_S, tls=tls, rate=RATE, h1=True)
                if count < 0.9 * RATE * RUN_S:
                    print(f"\nnote: {proxy.name} answered {count / RUN_S:.0f} a second", flush=True)
                for values, value in zip(taken[proxy.name], load.latency(took)):
                    values.extend([value] if turn > 0 else [])
        for name, (p50, p99) in taken.items():
            row(f"{name}, p50 of a run", [1000 * value for value in p50], "us")
            row(f"{name}, p99 of a run", [1000 * value for value in p99], "us")


def idle_memory(stage):
    """Once for each: a second time would find the memory of the first."""
    for tls in [False, True]:
        title = f"Memory of an idle keep-alive connection{' under TLS' if tls else ''}, {IDLE_CONNECTIONS} of them"
        if tls and not stage.perch.tls:
            print(f"\nskipped: {title}: the edge speaks no TLS", flush=True)
            continue
        header(title)
        for proxy in stage.proxies:
            before = proxy.memory_kb()
            kept = load.idle(proxy, IDLE_CONNECTIONS, tls)
            # What the last request took goes back first.
            time.sleep(1)
            row(proxy.name, [(proxy.memory_kb() - before) / IDLE_CONNECTIONS], "KiB")
            for stream in kept:
                stream.close()
            time.sleep(1)


def beside_many_apps(stage, rounds, count):
    """Ten busy apps before and after ten thousand others are there."""
    busy = [f"busy{number}" for number in range(BUSY_APPS)]
    for app in busy:
        stage.running(app)
    script = f"{stage.folder}/apps.lua"
    with open(script, "w", encoding="ascii") as out:
        out.write("local turn = 0\nrequest = function()\n  turn = turn + 1\n"
                  f"  wrk.headers['Host'] = 'busy' .. (turn % {BUSY_APPS}) .. '.perch.localhost'\n"
                  "  return wrk.format()\nend\n")

    def run(proxy):
        return load.by_wrk(stage, proxy, KIB, RUN_S, script=script)

    for app in busy:
        # Each has answered once, so that none is woken by what is measured.
        get(stage.cloud.edge, app)
    header(f"Requests to {BUSY_APPS} apps, no others")
    before = in_turns(stage, rounds, run, False)
    began = time.perf_counter()
    stage.apps(count, "other")
    print(f"\n{count} apps made in {time.perf_counter() - began:.0f} s", flush=True)
    header(f"Requests to {BUSY_APPS} apps beside {count} others")
    after = in_turns(stage, rounds, run, False)
    for name, ratio in after.items():
        print(f"\nbeside them perch is {ratio / before[name]:.3f} of what it was before, to {name}", flush=True)


def get(port, app):
    """Status and milliseconds until the first byte of an answer on a new connection."""
    began = time.perf_counter()
    edge = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    edge.request("GET", "/", None, {"Host": f"{app}.perch.localhost", "Connection": "close"})
    answer = edge.getresponse()
    took = (time.perf_counter() - began) * 1000
    answer.read()
    edge.close()
    return answer.status, took


def wakes(cloud, count):
    """Machines that are stopped and woken while requests for them keep coming."""
    header(f"{count} wakes, {ARRIVALS} requests during each, {ARRIVE_EVERY_S * 1000:.0f} ms apart")
    config = {"image": cloud.app("sleeper", LISTEN), "services": SERVICE}
    machine = cloud.call("POST", "/v1/apps/sleeper/machines", {"config": config})["id"]
    cloud.wait("sleeper", machine, "started")
    first, rest, errors = [], [], []
    get(cloud.edge, "sleeper")

    def ask(values):
        try:
            status, took = get(cloud.edge, "sleeper")
        except OSError as error:
            errors.append(str(error))
            return
        values.append(took)
        if status != 200:
            errors.append(status)

    for _ in range(count):
        cloud.call("POST", f"/v1/apps/sleeper/machines/{machine}/stop", {})
        cloud.wait("sleeper", machine, "stopped")
        threads = [threading.Thread(target=ask, args=(rest if number else first,)) for number in range(ARRIVALS)]
        for thread in threads:
            thread.start()
            time.sleep(ARRIVE_EVERY_S)
        for thread in threads:
            thread.join()
    row("the request that wakes, until the first byte", first)
    row("those that come meanwhile", rest)
    tell_errors(errors, len(first) + len(rest))
    storm(cloud, machine, min(count, STORM_MAX))


def tell_errors(errors, count):
    kinds = sorted(set(map(str, errors)))[:5]
    print(f"\nerrors in {count} requests: {len(errors)} {kinds or ''}", flush=True)


def storm(cloud, machine, count):
    """Stops in the middle of steady traffic: whatever a request falls on, it is answered with 200."""
    is_over, errors, took = threading.Event(), [], []

    def steady():
        while not is_over.is_set():
            try:
                status, ms = get(cloud.edge, "sleeper")
            except OSError as error:
                errors.append(str(error))
                continue
            took.append(ms)
            if status != 200:
                errors.append(status)

    threads = [threading.Thread(target=steady) for _ in range(4)]
    for thread in threads:
        thread.start()
    stops = 0
    while stops < count:
        try:
            cloud.call("POST", f"/v1/apps/sleeper/machines/{machine}/stop", {})
            stops += 1
        except RuntimeError as error:
            # It is just starting again.
            if "409" not in str(error) and "412" not in str(error) and "422" not in str(error):
                errors.append(str(error))
        time.sleep(STOP_EVERY_S)
    is_over.set()
    for thread in threads:
        thread.join()
    header(f"{count} stops in the middle of steady traffic")
    row("a request until the first byte", took)
    tell_errors(errors, len(took))


def with_stage(cloud, work):
    missing = load.missing()
    if missing:
        print(f"\nskipped: edge: not installed: {', '.join(missing)}", flush=True)
        return
    stage = Stage(cloud)
    try:
        names = ", ".join(proxy.name for proxy in stage.proxies)
        print(f"\n{names} before the machine at {stage.upstream} ({HOST})", flush=True)
        work(stage)
    finally:
        stage.close()


def edge(cloud, rounds):
    def work(stage):
        throughput(stage, rounds)
        fixed_rate(stage, rounds)
        idle_memory(stage)

    with_stage(cloud, work)


def apps(cloud, rounds):
    with_stage(cloud, lambda stage: beside_many_apps(stage, rounds, APPS))
