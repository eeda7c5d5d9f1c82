"""Options that several commands share, each group written once."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.study import StudyPlan
from gatelab.cli import arguments as args
from gatelab.results.store.layout import RunsFolder

if TYPE_CHECKING:
    from gatelab.orchestrator.executor import Executor
    from gatelab.orchestrator.study_run import RunOptions


@dataclass(frozen=True)
class StudyFlags:
    """Flags that define a study, without a file or in addition to one."""

    preset: args.Preset = None
    axis: args.Axes = field(default_factory=list)
    set_: args.Sets = field(default_factory=list)
    seeds: args.Seeds = None
    baseline: args.Baseline = field(default_factory=list)
    match: args.Match = None
    name: args.Name = None

    def plan(self, path: Path | None, tolerance: Mapping[str, Any] | None = None) -> StudyPlan:
        """Read the study of a file, if there is one, with these flags. Raises StudyError."""
        return study_from_flags(
            path,
            preset=self.preset,
            axes=self.axis,
            sets=self.set_,
            seeds=self.seeds,
            baseline=self.baseline,
            match=self.match,
            name=self.name,
            tolerance=tolerance,
        )

    @property
    def given(self) -> dict[str, Any]:
        """The flags by name, as they are typed."""
        return {each.name.removesuffix("_"): getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class RunFlags:
    """Flags that say where and how trials run."""

    runs: args.Runs = args.DEFAULT_RUNS
    concurrency: args.Concurrency = None
    gpus_per_trial: args.GpusPerTrial = None
    address: args.Address = None
    tracking_uri: args.TrackingUri = None
    retries: args.Retries = 1
    checkpoint_seconds: args.CheckpointSeconds = 60.0
    system_metrics: args.SystemMetrics = False
    keep_going: args.KeepGoing = False
    notify: args.Notify = field(default_factory=list)

    @property
    def folder(self) -> RunsFolder:
        """The runs folder."""
        return RunsFolder(self.runs)

    def executor(self) -> "Executor":
        """Return the executor on Ray that the flags ask for."""
        from gatelab.orchestrator.ray_executor import RayExecutor

        return RayExecutor(self.address, self.gpus_per_trial, self.concurrency)

    def options(self) -> "RunOptions":
        """Return the options of a run that do not depend on the executor."""
        from gatelab.orchestrator.study_run import RunOptions

        return RunOptions(
            self.tracking_uri,
            self.retries,
            self.checkpoint_seconds,
            self.system_metrics,
            self.keep_going,
            tuple(self.notify),
        )


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its parameters that are data classes.

    Typer reads options from a signature; the one that it sees has the fields in the place of their group.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _options(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        command(**given)

    del run.__wrapped__  # else its signature would be seen
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default if each.default_factory is MISSING else each.default_factory(),
            annotation=hints[each.name],
        )
        for each in fields(group)
    ]
