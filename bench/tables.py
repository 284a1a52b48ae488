"""Prints measured values as rows of a table, with their spread.

Never measures by itself, but for the processor time of the whole machine.
"""

import statistics

from processes import TICK_S


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
