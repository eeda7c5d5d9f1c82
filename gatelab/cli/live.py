"""The live view of a study as it runs: a display on a terminal, a line now and then elsewhere."""

import time

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from gatelab.cli.console import console
from gatelab.orchestrator.progress import Progress, TrialProgress
from gatelab.results.views.format import duration
from gatelab.status import Status

LINE_SECONDS = 15.0  # between two lines where there is no terminal
SHOWN = 16  # running trials
STOPPING = "stopping: each running trial writes a checkpoint; Ctrl-C again to leave at once"


class LiveView:
    """Shows each Progress that it is called with."""

    def __init__(self) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_line = 0.0
        self._reported: set[str] = set()
        self._held: dict[str, str] = {}
        self._stopping = False
        self._lines = 0  # of those about MLflow, how many were shown

    def __enter__(self) -> "LiveView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show a study as it is now."""
        self._report_ends(progress)
        self._report_held(progress)
        if progress.stopping and not self._stopping:
            self._stopping = True
            console.print(f"[yellow]{STOPPING}[/]")
        for line in progress.tracking_lines[self._lines :]:
            console.print(f"[yellow]{escape(line)}[/]")
            self._lines += 1
        if self._live:
            self._live.update(_picture(progress), refresh=True)
        elif time.monotonic() >= self._next_line and progress.running:
            self._next_line = time.monotonic() + LINE_SECONDS
            console.print(f"{_counts(progress)}; {_times(progress)}")

    def _report_ends(self, progress: Progress) -> None:
        """Say once of each trial that it diverged or failed, above the live picture."""
        for entry in progress.trials.values():
            if entry.state in (Status.DIVERGED, Status.FAILED) and entry.trial.id not in self._reported:
                self._reported.add(entry.trial.id)
                console.print(f"[yellow]{entry.state}[/] {_name(entry)}: {escape(entry.reason)}")
                if entry.log:
                    console.print(f"  log: {escape(entry.log)}")

    def _report_held(self, progress: Progress) -> None:
        """Say once of each trial that another process is at work on it, and which."""
        for entry in progress.trials.values():
            if entry.held and self._held.get(entry.trial.id) != entry.held:
                self._held[entry.trial.id] = entry.held
                console.print(f"[yellow]waits[/] {_name(entry)}: {escape(entry.held)} is at work on it")


def _picture(progress: Progress) -> Group:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("trial", "", "step", "loss", "tokens/s", "left"):
        table.add_column(heading, justify="left" if heading in ("trial", "") else "right")
    for entry in progress.running[:SHOWN]:
        steps = entry.trial.config.training.steps
        table.add_row(
            _name(entry),
            ProgressBar(total=steps, completed=entry.step, width=24),
            f"{entry.step}/{steps}",
            "–" if entry.loss is None else f"{entry.loss:.4f}",
            "–" if entry.tokens_per_second is None else f"{entry.tokens_per_second:,.0f}",
            duration(entry.seconds_left),
        )
    lines = [f"[bold]{_counts(progress)}[/]; {_times(progress)}"]
    return Group(table, *lines)


def _name(entry: TrialProgress) -> str:
    return escape(f"{entry.trial.variant}, seed={entry.trial.seed}")


def _counts(progress: Progress) -> str:
    states = (Status.FINISHED, Status.RUNNING, Status.WAITING, Status.DIVERGED, Status.FAILED)
    return ", ".join(f"{progress.count(state)} {'done' if state is Status.FINISHED else state}" for state in states)


def _times(progress: Progress) -> str:
    return f"{duration(time.monotonic() - progress.started)} so far, {duration(progress.seconds_left)} left"
