"""The line that tells how far a sweep has come: from the rows in its folder, whichever launcher runs the jobs."""

from __future__ import annotations

import sys
import threading
import time
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


def describe(count: Count, seconds_left: float | None, now: datetime) -> str:
    """The line.

    >>> describe(Count(5, 1, 1, 17), 600, datetime(2026, 1, 1, 12, 0))
    '5 done, 1 failed, 1 running, 17 left, until about 12:10'
    >>> describe(Count(0, 0, 1, 17), None, datetime(2026, 1, 1, 12, 0))
    '0 done, 0 failed, 1 running, 17 left'
    """
    text = f"{count.done} done, {count.failed} failed, {count.running} running, {count.left} left"
    if seconds_left is None or not count.running + count.left:
        return text
    end = now + timedelta(seconds=seconds_left)
    return f"{text}, until about {end:%H:%M}" + (f" on {end:%Y-%m-%d}" if end.date() != now.date() else "")


class Monitor:
    """Shows the line while the block runs, from a thread; and tells jobs in other processes of a request to stop."""

    def __init__(self, folder: SweepFolder, plan: Plan, stop: StopRequest) -> None:
        self.folder, self.plan, self.stop, self.shown = folder, plan, stop, not plan.quiet
        self.started = time.monotonic()
        self.ended: dict[int, str] = {}  # jobs that are done or have failed
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
        states = list(self._look_for_ended().values())
        running = self.folder.count_running()
        left = len(self.plan.legal) - len(states) - running
        return Count(states.count("done"), states.count("failed"), running, max(0, left))

    def seconds_left(self) -> float | None:
        """By the time that the runs since the start took; identical ones are carried out once."""
        keys = {job.number: job.key for job in self.plan.legal}
        now_ended = {keys[number] for number in self.ended.keys() - self.before}
        missing = set(keys.values()) - {keys[number] for number in self.ended}
        return (time.monotonic() - self.started) / len(now_ended) * len(missing) if now_ended else None

    def _look_for_ended(self) -> dict[int, str]:
        for job in self.plan.legal:
            if job.number not in self.ended and (written := self._written(job.number)):
                status = self.folder.job(job.number).status
                # A failure of an earlier attempt is about to be tried again.
                if status == "done" or (status == "failed" and written != self._old.get(job.number, written)):
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
        layout = "{desc} {bar:20} {postfix}"
        total = len(self.plan.legal)
        hidden = not (self.shown and terminal)
        with tqdm(total=total, desc="sweep", bar_format=layout, leave=False, disable=hidden) as bar:
            last = self.count()
            while not self._over.wait(PERIOD):
                if self.stop.signal_number is not None and self.folder.stopped_by is None:
                    self.folder.ask_to_stop(self.stop.signal_number)
                count = self.count()
                line = describe(count, self.seconds_left(), datetime.now())
                bar.n = count.done + count.failed
                bar.set_postfix_str(line)
                if self.shown and not terminal and count[:2] != last[:2]:
                    print(f"sweep: {line}", flush=True)
                last = count
