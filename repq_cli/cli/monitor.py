"""The line that tells how far a sweep has come: from the rows in its folder, whichever launcher runs the jobs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

from repq_cli.runs.sweep import Plan, SweepFolder
from repq_cli.train.interrupt import StopRequest

PERIOD = 0.5  # seconds between two looks at the folder


class Count(NamedTuple):
    """Jobs of a sweep by their state."""

    done: int
    failed: int
    running: int
    left: int
    pruned: int = 0


def describe(count: Count, seconds_left: float | None, now: datetime) -> str:
    """The line.

    >>> describe(Count(5, 1, 1, 17), 600, datetime(2026, 1, 1, 12, 0))
    '5 done, 1 failed, 1 running, 17 left, until about 12:10'
    >>> describe(Count(0, 0, 1, 17), None, datetime(2026, 1, 1, 12, 0))
    '0 done, 0 failed, 1 running, 17 left'
    >>> describe(Count(3, 0, 1, 2, pruned=4), None, datetime(2026, 1, 1, 12, 0))
    '3 done, 0 failed, 4 pruned, 1 running, 2 left'
    """
    pruned = f"{count.pruned} pruned, " if count.pruned else ""
    text = f"{count.done} done, {count.failed} failed, {pruned}{count.running} running, {count.left} left"
    if seconds_left is None or not count.running + count.left:
        return text
    end = now + timedelta(seconds=seconds_left)
    return f"{text}, until about {end:%H:%M}" + (f" on {end:%Y-%m-%d}" if end.date() != now.date() else "")


class Monitor:
    """Shows the line while the block runs, from a thread; and tells jobs in other processes of a request to stop.

    look: is called now and then with the jobs that run, such as to see whether they are worth going on.
    """

    def __init__(
        self, folder: SweepFolder, plan: Plan, stop: StopRequest, look: Callable[[set[int]], None] | None = None
    ) -> None:
        self.folder, self.plan, self.stop, self.shown, self._look = folder, plan, stop, not plan.quiet, look
        self.started = time.monotonic()
        self.ended: dict[int, str] = {}  # jobs that are done, pruned, or have failed
        self._old = {job.number: self._written(job.number) for job in plan.legal}
        self.before = set(self._look_for_ended())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def count(self) -> Count:
        """The jobs by state, as the folder has them now."""
        running = self.folder.running_now()
        states = list(self._look_for_ended().values())  # behind that, so that nobody is counted twice
        at_work = len(running - self.ended.keys())
        left = max(0, self.plan.total - len(states) - at_work)
        return Count(states.count("done"), states.count("failed"), at_work, left, states.count("pruned"))

    def seconds_left(self) -> float | None:
        """By the time that the runs since the start took; identical ones are carried out once."""
        if self.plan.trials is not None:
            number = len(self.ended.keys() - self.before)
            return (time.monotonic() - self.started) / number * (self.plan.total - len(self.ended)) if number else None
        keys = {job.number: job.key for job in self.plan.legal}
        now_ended = {keys[number] for number in self.ended.keys() - self.before}
        missing = set(keys.values()) - {keys[number] for number in self.ended}
        return (time.monotonic() - self.started) / len(now_ended) * len(missing) if now_ended else None

    def _look_for_ended(self) -> dict[int, str]:
        for job in self.plan.legal:
            if job.number not in self.ended and (written := self._written(job.number)):
                status = self.folder.job(job.number).status
                # A failure of an earlier attempt is about to be tried again.
                if status in ("done", "pruned") or (status == "failed" and written != self._old.get(job.number, 0.0)):
                    self.ended[job.number] = status
        return self.ended

    def _written(self, number: int) -> float:
        """When a job's row was written; 0 where there is none."""
        try:
            return self.folder.job(number).row_file.stat().st_mtime
        except OSError:
            return 0.0

    def _watch(self) -> None:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        layout = "sweep {bar:10} {desc}"
        hidden = not (self.shown and terminal)
        with tqdm(total=self.plan.total, bar_format=layout, leave=False, disable=hidden) as bar:
            before = len(self.ended)
            while not self._over.wait(PERIOD):
                if self.stop.signal_number is not None and self.folder.stopped_by is None:
                    self.folder.ask_to_stop(self.stop.signal_number)
                if self._look is not None:
                    self._look(self.folder.running_now() - self.ended.keys())
                count = self.count()
                line = describe(count, self.seconds_left(), datetime.now())
                bar.n = len(self.ended)
                bar.set_description_str(line)
                if self.shown and not terminal and len(self.ended) != before:
                    print(f"sweep: {line}", flush=True)
                before = len(self.ended)
