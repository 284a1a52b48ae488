"""Measures the edge beside nginx and haproxy, in turns, before the same machine.

Never lets one row end the others: what fails is told, and its promise counts as not measured.
"""

import json
import statistics
import subprocess
import sys
import time

import load
import names
import wakes
from names import APPS, SIEGE, Many
from proxies import APP, HOST, Stage
from siege import Target, kinds
from tables import header, percentile, row
from turns import RUN_S, Memory, in_turns, is_ours, ratios, throughput
from verdicts import Verdicts

RATE = 8000
IDLE_CONNECTIONS = 2000
KIB, MIB = "/bytes?n=1024", "/bytes?n=1048576"
# All rows together, and each alone, at the most.
ALL_S, ROW_S = 24 * 60, 100
SIEGE_S, SETTLE_S = 8, 3
# Memory that does not grow while a siege goes on: what its second half may have over its first.
GROWTH_MAX, GROWTH_SPARE_MIB = 1.15, 8
WAKES, WAKES_S = 10_000, 40 * 60


class Bench:
    """What a row needs: who takes part, how often, until when, and where it is judged."""

    def __init__(self, cloud, rounds):
        self.cloud, self.rounds = cloud, rounds
        self.verdicts, self.stage, self.until = Verdicts(), Stage(cloud), 0

    def judge(self, title, found, floor, aim):
        """Both kinds of concurrency beside nginx."""
        for ours in (self.stage.perch.name, self.stage.by_request.name):
            self.verdicts.at_least(f"{title}, {ours} x nginx", found.get((ours, "nginx")), floor, aim)

    def fast(self, title, run, floor, aim):
        found = throughput(title, self.stage.all, self.rounds, run, self.until)
        self.judge(title, found, floor, aim)


def wrk(bench, path, **settings):
    return lambda proxy: load.by_wrk(bench.stage, proxy, path, RUN_S, **settings)


def plain(bench):
    bench.fast("HTTP/1.1, keep-alive, 1 KB", wrk(bench, KIB), 1.0, 1.25)


def big(bench):
    bench.fast("HTTP/1.1, bodies of 1 MB", wrk(bench, MIB, connections=16), 2.0, 3.0)


def tls(bench):
    bench.fast("HTTP/1.1 under TLS, keep-alive, 1 KB", wrk(bench, KIB, tls=True), 1.15, 1.4)


def handshakes(bench):
    run = wrk(bench, KIB, tls=True, fresh=True, connections=16)
    bench.fast("TLS sessions taken up again: a connection for each request", run, 1.5, 1.6)
    name = names.bring(bench.stage, APP)
    whole = "TLS handshakes, no session taken up, nothing asked"
    found = throughput(whole, bench.stage.proxies, bench.rounds, names.hands(bench.stage, [name]), bench.until,
                       "handshakes a CPU s")
    bench.verdicts.at_least(f"{whole}, perch x nginx", found.get(("perch", "nginx")), 1.5, 1.6)


def h2(bench):
    def run(proxy):
        return load.by_h2load(bench.stage, proxy, KIB, RUN_S, tls=True, streams=32, clients=8)[0]

    bench.fast("HTTP/2 under TLS, 8 connections with 32 streams, 1 KB", run, 1.0, 1.2)


def raw(bench):
    """Connections passed on as they are: haproxy's `mode tcp` does the same. No promise was made."""
    passing = bench.stage.raw()
    for title, path, connections in [("1 KB", KIB, load.CONNECTIONS), ("1 MB", MIB, 16)]:
        def run(proxy, path=path, connections=connections):
            url = proxy.raw_url(path)
            return load.by_wrk(bench.stage, proxy, path, RUN_S, connections=connections, url=url)

        throughput(f"Raw TCP, requests of {title} over kept connections", passing, bench.rounds, run, bench.until)


def fixed_rate(bench, title, **settings):
    """What requests take at a rate that none of them is full at."""
    header(f"{RATE} requests a second, {title}: from the request to the end of its answer")
    p50, p99 = {}, {}

    def run(proxy):
        count, took = load.by_h2load(bench.stage, proxy, KIB, RUN_S, rate=RATE, **settings)
        if count < 0.9 * RATE * RUN_S:
            print(f"\nnote: {proxy.name} answered {count / RUN_S:.0f} a second", flush=True)
        middle, late = load.latency(took)
        p50.setdefault(proxy.name, []).append(1000 * middle)
        p99.setdefault(proxy.name, []).append(1000 * late)
        return count

    in_turns(bench.stage.all, bench.rounds, run, bench.until, looks=False)
    # Without the turn that warms up.
    p50, p99 = ({name: taken[1:] for name, taken in all_.items()} for all_ in (p50, p99))
    for name in p50:
        row(f"{name}, p50 of a run", p50[name], "us")
        row(f"{name}, p99 of a run", p99[name], "us")
    found = ratios(p50)
    for ours in filter(is_ours, p50):
        name = f"p50 at {RATE} a second, {title}, {ours} x nginx"
        bench.verdicts.at_most(name, found.get((ours, "nginx")), 1.0, 1.0, "x")


def rate(bench):
    fixed_rate(bench, "HTTP/1.1", h1=True)


def rate_tls(bench):
    fixed_rate(bench, "HTTP/1.1 under TLS", h1=True, tls=True)


def rate_h2(bench):
    fixed_rate(bench, "HTTP/2 under TLS", tls=True, streams=32, clients=8)


def idle(bench):
    """First of all and once for each, plain and TLS on top of each other: freed memory would be found again."""
    used, kept = {}, {}
    for proxy in bench.stage.all:
        for number, is_tls in enumerate([False, True]):
            before = proxy.memory_kb()
            # Addresses of its own for each thousand or two: they are counted.
            source = f"127.0.0.{2 + 2 * bench.stage.all.index(proxy) + number}"
            kept[proxy.name, is_tls] = load.idle(proxy, IDLE_CONNECTIONS, is_tls, source)
            # What the last request took goes back first.
            time.sleep(1)
            used[proxy.name, is_tls] = (proxy.memory_kb() - before) / IDLE_CONNECTIONS
    for stream in (stream for streams in kept.values() for stream in streams):
        stream.close()
    for is_tls, floor, aim in [(False, 22, 2), (True, 36, 24)]:
        title = f"idle keep-alive connection{' under TLS' if is_tls else ''}"
        header(f"Memory of an {title}, {IDLE_CONNECTIONS} of them")
        for proxy in bench.stage.all:
            row(proxy.name, [used[proxy.name, is_tls]], "KiB")
        for proxy in (bench.stage.perch, bench.stage.by_request):
            bench.verdicts.at_most(f"{title}, {proxy.name}", used[proxy.name, is_tls], floor, aim, "KiB")


def siege(bench):
    """Honest clients beside each kind of harmful ones: late at most so much, no error, memory flat."""
    perch, until = bench.stage.perch, bench.until
    header(f"Honest requests beside harmful clients, {SIEGE_S} s each")
    names = ["nobody", *kinds(Target(perch.plain, perch.tls, perch.host))]
    worst, wrong, grown, seen = 0.0, 0, 0.0, 0
    for name in names:
        if time.monotonic() > until:
            print(f"\nnote: out of time before {name}", flush=True)
            break
        took, errors, memory = beside(perch, name)
        row(f"beside {name}, {len(errors)} errors, memory {memory[0]:.0f} then {memory[1]:.0f} MiB", took)
        if errors:
            wakes.tell_errors(errors, len(took) + len(errors))
        worst, wrong, seen = max(worst, percentile(took, 0.99)), wrong + len(errors), seen + 1
        grown = max(grown, memory[1] / (memory[0] * GROWTH_MAX + GROWTH_SPARE_MIB))
    is_whole = seen == len(names)
    title = f"honest requests beside {len(names) - 1} kinds of harm"
    bench.verdicts.at_most(f"{title}, worst p99", worst if is_whole else None, 1000, 1000, "ms")
    bench.verdicts.at_most(f"{title}, errors", wrong if is_whole else None, 0, 0, "")
    bench.verdicts.at_most(
        f"{title}, memory of the second half to {GROWTH_MAX} of the first and {GROWTH_SPARE_MIB} MiB",
        grown if is_whole else None, 1.0, 1.0, "x")


def beside(proxy, name):
    """What honest clients saw, and the memory in the first half and the second once it has begun."""
    where = [str(proxy.plain), str(proxy.tls), proxy.host]
    start = [sys.executable, "-B", SIEGE]
    harm = None
    if name != "nobody":
        harm = subprocess.Popen([*start, name, *where, str(SETTLE_S + SIEGE_S)], stderr=subprocess.DEVNULL)
        time.sleep(SETTLE_S)
    try:
        with Memory(proxy) as used:
            done = subprocess.run(
                [*start, "honest", *where, str(SIEGE_S)], check=True, capture_output=True, text=True,
                timeout=SIEGE_S + load.SPARE_S)
        if harm is not None and harm.poll() not in (None, 0):
            raise RuntimeError(f"the harmful clients of {name} ended by themselves")
    finally:
        if harm is not None:
            harm.kill()
            harm.wait()
    clients = json.loads(done.stdout).values()
    half = len(used.values) // 2
    memory = statistics.median(used.values[:half]), statistics.median(used.values[half:])
    return [ms for took, _ in clients for ms in took], [error for _, errors in clients for error in errors], memory


def apps(bench):
    Many(bench.stage, max(2, bench.rounds // 2), bench.until, bench.verdicts).all(APPS)


def sleepers(bench):
    wakes.all_kinds(bench.cloud, WAKES, bench.until, bench.verdicts)


# In the order in which they run: idle memory wants a process that has had no load.
ROWS = {
    "idle": (idle, ROW_S), "plain": (plain, ROW_S), "tls": (tls, ROW_S), "handshakes": (handshakes, ROW_S),
    "h2": (h2, ROW_S), "big": (big, ROW_S), "rate": (rate, ROW_S), "rate-tls": (rate_tls, ROW_S),
    "rate-h2": (rate_h2, ROW_S), "raw": (raw, ROW_S), "siege": (siege, 2 * ROW_S), "sleepers": (sleepers, 200),
    "apps": (apps, 520),
}


def edge(cloud, rounds, wanted=None):
    """Some rows, or all of them; returns whether every promise was kept that was looked at."""
    missing = load.missing()
    if missing:
        print(f"\nskipped: edge: not installed: {', '.join(missing)}", flush=True)
        return False
    began, failed = time.monotonic(), []
    bench = Bench(cloud, rounds)
    try:
        names = ", ".join(proxy.name for proxy in bench.stage.all)
        print(f"\n{names} before the machine at {bench.stage.upstream} ({HOST}).\nperch writes up to 100 events of "
              "requests a second to its log, and counts all; nginx and haproxy write and count nothing.\n"
              "`perch` is what an app gets that says nothing of concurrency; the other has `type = \"requests\"`.",
              flush=True)
        for name, (measure, seconds) in ROWS.items():
            if wanted and name not in wanted:
                continue
            now = time.monotonic()
            if now > began + ALL_S:
                print(f"\nskipped: {name}: out of time", flush=True)
                failed.append(name)
                continue
            bench.until = min(now + seconds, began + ALL_S)
            try:
                measure(bench)
            except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                failed.append(name)
                said = getattr(error, "stderr", None) or ""
                print(f"\nfailed: {name}: {error} {said}", flush=True)
            print(f"\n{name} took {time.monotonic() - now:.0f} s", flush=True)
    finally:
        bench.stage.close()
    is_kept = bench.verdicts.show()
    if failed:
        print(f"\nnot measured: {', '.join(failed)}", flush=True)
    return is_kept and not failed


def ten_thousand_wakes(cloud, count):
    verdicts = Verdicts()
    wakes.many_wakes(cloud, count, time.monotonic() + WAKES_S, verdicts)
    return verdicts.show()
