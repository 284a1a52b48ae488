"""Holds what is measured against what was promised, and says at the end which of it is met.

Never measures; a value that could not be measured is told as that, never as met.
"""

NOT_MEASURED = "not measured"


class Verdicts:
    """One line for each promise, in the order in which they were judged."""

    def __init__(self):
        self.lines = []

    def at_least(self, name, value, floor, aim, unit="x"):
        self.judge(name, value, (floor, aim), unit, lambda value, bound: value >= bound)

    def at_most(self, name, value, floor, aim, unit):
        self.judge(name, value, (floor, aim), unit, lambda value, bound: value <= bound)

    def judge(self, name, value, bounds, unit, holds):
        floor, aim = bounds
        if value is None:
            verdict, shown = NOT_MEASURED, "-"
        else:
            shown = f"{value:.3g}" if unit == "x" else f"{value:.1f}"
            if holds(value, aim):
                verdict = "met" if floor == aim else "aim met"
            else:
                verdict = "floor met, aim missed" if holds(value, floor) else "MISSED"
        self.lines.append((name, shown, f"{floor:g}", f"{aim:g}", unit, verdict))
        print(f"\n{name}: {shown} {unit}: {verdict}", flush=True)

    def show(self):
        """The table; returns whether every floor is met."""
        if not self.lines:
            return True
        print("\n### Verdicts\n\n| what | measured | floor | aim | unit | verdict |\n|---|---|---|---|---|---|")
        for line in self.lines:
            print(f"| {' | '.join(line)} |")
        print(flush=True)
        return all(line[-1] not in ("MISSED", NOT_MEASURED) for line in self.lines)
