"""A study as an object: made or read, planned, run."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gatelab.ablations.loading import load_study, make_study
from gatelab.ablations.study import DEFAULT_BASE
from gatelab.api.plan import Plan
from gatelab.api.results import Folder, Results
from gatelab.names import search_of
from gatelab.results.store.layout import DEFAULT_ROOT, RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator.executor import Executor
    from gatelab.orchestrator.progress import Progress
    from gatelab.orchestrator.study_run import RunOptions
    from gatelab.orchestrator.workflow import StudyStart

TELL_SECONDS = 10.0  # between two lines of progress


class Study:
    """One question: a base configuration, axes, seeds and a baseline, checked when it is made.

    Example:
        >>> study = Study("gates", axes={"model.gate.position": ["none", "value", "sdpa"]}, seeds=3)
        >>> study.plan()
        >>> results = study.run("gatelab-runs")
    """

    def __init__(
        self,
        name: str,
        *,
        base: str | Mapping[str, Any] = DEFAULT_BASE,
        axes: Mapping[str, Any] | None = None,
        seeds: int | Collection[int] | Literal["auto"] = 1,
        **fields: Any,
    ) -> None:
        """Make a study.

        Args:
            name: names its folder and its MLflow experiment.
            base: a named base, or a configuration, or a configuration whose `preset` names the base that it overrides.
            axes: dotted path -> its levels; or a name -> named levels, each of which sets several paths together.
            seeds: how many, which, or "auto".
            fields: any other field of a study file: baseline, exclude, match, claims, budget and so on.

        Raises:
            StudyError: with all that is wrong, by key and value.
        """
        raw = {
            "name": name,
            "base": dict(base) if isinstance(base, Mapping) else base,
            "axes": dict(axes) if isinstance(axes, Mapping) else axes if axes is not None else {},
            "seeds": list(seeds) if isinstance(seeds, Collection) and not isinstance(seeds, str) else seeds,
            **fields,
        }
        self._plan = make_study(raw, f"gl.Study({name!r})")

    @classmethod
    def load(cls, path: Folder, *, overrides: Mapping[str, Any] | None = None, **fields: Any) -> "Study":
        """Read a study file.

        Args:
            path: the file (YAML).
            overrides: dotted path -> value, in its base: what `--set` does.
            fields: take the place of fields of the file; axes are added to those of the file.

        Raises:
            StudyError: with all that is wrong, by file, line, key and value.
        """
        study = cls.__new__(cls)
        study._plan = load_study(Path(path), overrides, **fields)
        return study

    @property
    def name(self) -> str:
        """The name of its folder and its MLflow experiment."""
        return self._plan.study.name

    @property
    def hash(self) -> str:
        """SHA-256 of what is asked, in hexadecimal."""
        return self._plan.hash

    def plan(self, folder: Folder = DEFAULT_ROOT) -> "Plan":
        """Return its variants and trials, with their sizes and costs; nothing runs, nothing is written.

        Learning rates that a search is to find are shown as given until it has found them. Raises StudyError.
        """
        return Plan.make(self._plan, RunsFolder(Path(folder)))

    def run(
        self,
        folder: Folder = DEFAULT_ROOT,
        executor: "Executor | Literal['inline', 'ray']" = "inline",
        *,
        tracking_uri: str | None = None,
        retries: int = 1,
        checkpoint_seconds: float = 60.0,
        system_metrics: bool = False,
        progress: bool = True,
    ) -> "Results":
        """Run it: what is finished is kept, what was interrupted goes on, what is new runs.

        An interrupt (KeyboardInterrupt) is raised once running trials have written a checkpoint: the same call goes on
        from there.

        Args:
            folder: where trials, tables and plots are written.
            executor: "inline": one trial after another in this process, without Ray, where a debugger can stop; "ray":
                on all cores or GPUs of this machine; or `RayExecutor(...)`, on a cluster, say.
            tracking_uri: of an MLflow store. Default: SQLite in the runs folder.
            retries: how often a trial that failed is tried again.
            checkpoint_seconds: time between two checkpoints.
            system_metrics: whether trials record what their machine is doing.
            progress: whether to say on standard error how far it is.

        Raises:
            StudyError: it cannot be run as it is written, or exceeds its budget.
            CannotRun: another process is running it, or the executor has nowhere to run it.
            DataError: its data cannot be used.
        """
        from gatelab.orchestrator.workflow import make_executor, run_study, unwatched

        options = _options(tracking_uri, retries, checkpoint_seconds, system_metrics)
        runs, watch = RunsFolder(Path(folder)), _tell if progress else unwatched
        if run_study(self._plan, runs, make_executor(executor), options, watch=watch).interrupted:
            raise KeyboardInterrupt
        return Results(runs, self.name)

    def search_learning_rates(
        self,
        folder: Folder = DEFAULT_ROOT,
        executor: "Executor | Literal['inline', 'ray']" = "inline",
        *,
        tracking_uri: str | None = None,
        retries: int = 1,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
    ) -> "Results":
        """Search the learning rates of its variants, from where an earlier search was left.

        What was found is `results.learning_rates()`. The arguments, and what is raised, are those of `run`.
        """
        from gatelab.orchestrator.workflow import make_executor, search_learning_rates, unwatched

        options = _options(tracking_uri, retries, checkpoint_seconds, False)
        runs, watch = RunsFolder(Path(folder)), _tell if progress else unwatched
        if search_learning_rates(self._plan, runs, make_executor(executor), options, watch=watch).interrupted:
            raise KeyboardInterrupt
        return Results(runs, search_of(self.name))

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis.name} ({len(axis.levels)})" for axis in self._plan.axes) or "no axes"
        seeds = len(self._plan.study.common_seeds)
        return f"Study({self.name!r}: {axes}; {seeds} seed{'' if seeds == 1 else 's'})"


def _options(tracking_uri: str | None, retries: int, checkpoint_seconds: float, system_metrics: bool) -> "RunOptions":
    from gatelab.orchestrator.study_run import RunOptions

    return RunOptions(tracking_uri, retries, checkpoint_seconds, system_metrics)


@contextmanager
def _tell(start: "StudyStart") -> "Iterator[Callable[[Progress], None]]":
    """Say on standard error what is about to run, and now and then how far it is."""
    name, due, told = start.matrix.plan.study.name, time.monotonic(), ""
    for note in (*start.changes, *start.matrix.notes):
        print(f"{name}: {note}", file=sys.stderr)

    def tell(progress: "Progress") -> None:
        nonlocal due, told
        if (time.monotonic() >= due or progress.is_over) and str(progress) != told:
            due, told = time.monotonic() + TELL_SECONDS, str(progress)
            print(f"{name}: {told}", file=sys.stderr)

    yield tell
