"""Lets the proxies take turns, so that what the host does to this machine hits all of them.

Never counts the load generator or the upstream: a number is requests a CPU second of the proxy's own processes.
"""

import statistics
import threading
import time

from tables import header, row

RUN_S = 3
# Fewer turns than this are no median.
TURNS_MIN = 2
LOOK_EVERY_S = 0.5


class Memory:
    """The most memory that a proxy had while something ran, in MiB."""

    def __init__(self, proxy, every_s=LOOK_EVERY_S):
        self.proxy, self.every_s, self.values, self.is_over = proxy, every_s, [], threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.is_over.wait(self.every_s) and self.every_s:
            self.values.append(self.proxy.memory_kb() / 1024)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()


def in_turns(proxies, rounds, run, until, looks=True):
    """What each run counts a CPU second of its proxy, and the memory meanwhile: one value a round.

    The first turn warms up and is not counted; when the time is over, what there is has to do. Nobody looks at the
    memory where that would be in the way of what is measured.
    """
    values, memory = {proxy.name: [] for proxy in proxies}, {proxy.name: [] for proxy in proxies}
    for turn in range(rounds + 1):
        if turn > TURNS_MIN and time.monotonic() > until:
            print(f"\nnote: out of time after {turn - 1} of {rounds} rounds", flush=True)
            break
        for proxy in proxies:
            with Memory(proxy, LOOK_EVERY_S if looks else None) as used:
                before = proxy.cpu_s()
                count = run(proxy)
                spent = proxy.cpu_s() - before
            if turn > 0:
                values[proxy.name].append(count / max(spent, 0.01))
                memory[proxy.name].extend([max(used.values)] if used.values else [])
    return values, memory


def throughput(title, proxies, rounds, run, until, unit="requests a CPU s"):
    """Measures and prints; returns each ratio as (ours, theirs): value."""
    header(title)
    values, memory = in_turns(proxies, rounds, run, until)
    for name, taken in values.items():
        row(name, taken, unit)
    for name, taken in memory.items():
        if taken:
            row(f"{name}, memory meanwhile", taken, "MiB")
    return ratios(values)


def ratios(values):
    """Each turn with its own neighbour's, and the median of these."""
    found = {}
    for ours in filter(is_ours, values):
        for theirs in values:
            if not is_ours(theirs):
                pairs = list(zip(values[ours], values[theirs]))
                found[ours, theirs] = statistics.median(a / b for a, b in pairs)
                print(f"\n{ours} is {found[ours, theirs]:.2f} of {theirs}", flush=True)
    return found


def is_ours(name):
    return name.startswith("perch")
