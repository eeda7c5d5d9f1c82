"""A history: studies that are run in a simulated world until they are done, whatever happens; and what must hold then.

The code under test is the real one: `run_matrix`, `run_task`, leases, journals, checkpoints, records. Simulated are the
executor, whose messages may be late or lost, and training, which takes a second a step and whose numbers are a function
of trial and step. MLflow and the preparation of data are left out.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic

import torch

from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.study import StudyPlan
from gatelab.ablations.study_file import study_files
from gatelab.errors import GatelabError, Unavailable
from gatelab.metrics import NATS
from gatelab.orchestrator import study_manifest, study_run, worker
from gatelab.orchestrator.failures import FailureKind, Lost
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.pool import POLL_SECONDS, Pool, Result, Task, Worker, WorkerSetup, do_nothing, never
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.results.store import trials
from gatelab.results.store.journal import Journal, read_journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import Outcome, write_json
from gatelab.status import Status
from gatelab.training.checkpoint import save_checkpoint, sweep, whole_checkpoints
from gatelab.training.loop import Outcome as Trained
from tests.simulation.world import Process, World, inhabited

STEPS, EVALUATED = 4, 2
STUDY_SECONDS = 3_000.0
"""A run must have come to an end, or said why not, after so long."""
FAULTS = ("kill worker", "kill driver", "interrupt", "terminate", "pause", "power cut", "machine", "full disk", "clock")

# What all histories have in common is made once.
MODEL = torch.nn.Linear(1, 1)
"""The weights in every checkpoint."""
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
SPECS = {"train/loss": NATS, "validation/loss": NATS}
"""The metrics of simulated training."""
_STUDY_FILES: dict[str, dict[str, str]] = {}


def expected_value(trial: str, step: int) -> float:
    """Return the loss of a trial at a step."""
    return int(hashlib.sha256(f"{trial} {step}".encode()).hexdigest()[:8], 16) / 2**32


def diverges(trial: str) -> bool:
    """Return whether a trial diverges, one step before the last."""
    return int(trial[-1], 16) < 3


@cache
def small_matrix(name: str, positions: tuple[str, ...]) -> Matrix:
    """Plan a study of a few trials, without data."""
    raw = {"name": name, "base": "tiny-dense", "axes": {"model.gate.position": list(positions)}, "seeds": 1}
    return plan_study(make_study(raw, "simulated", {}), identify=lambda data: "d" * 64)


def known_study_files(plan: StudyPlan, name: str) -> dict[str, str]:
    """Return the files that say what a study asks for. YAML is slow to write, and the same in all histories."""
    if plan.study.name not in _STUDY_FILES:
        _STUDY_FILES[plan.study.name] = study_files(plan, name)
    return _STUDY_FILES[plan.study.name]


class SimulatedExecutor:
    """Workers that are processes of a world, on a machine of it."""

    concurrency = 2

    def __init__(self, history: "History", machine: str) -> None:
        self._history, self._machine = history, machine

    def session(self) -> Any:
        return nullcontext()

    @contextmanager
    def open_pool(
        self, worker: type[Worker[Task, Result]], tasks: int, spoils: Callable[[Result], bool] = never
    ) -> Iterator[Pool[Task, Result]]:
        pool = SimulatedPool(self._history, self._machine, worker, spoils)
        try:
            yield pool
        finally:
            pool.close()


@dataclass
class _Slot(Generic[Task, Result]):
    """A worker, what it has to do, and what it has answered."""

    process: Process | None = None
    task: Task | None = None
    answer: Result | None = None
    answers_at: float = float("inf")
    """When its answer arrives."""
    stops: bool = False


class SimulatedPool(Generic[Task, Result]):
    """Two workers, whose answers may be late or lost; that one is gone is noticed after a while."""

    concurrency = 2

    def __init__(
        self,
        history: "History",
        machine: str,
        worker: type[Worker[Task, Result]],
        spoils: Callable[[Result], bool],
    ) -> None:
        self._history, self._machine, self._worker, self._spoils = history, machine, worker, spoils
        self._slots: list[_Slot[Task, Result]] = []

    @property
    def busy(self) -> int:
        return sum(slot.task is not None for slot in self._slots)

    def submit(self, task: Task) -> None:
        free = [slot for slot in self._slots if slot.task is None and slot.process in self._history.world.living()]
        slot = free[0] if free else self._start()
        slot.task = task
        assert slot.process is not None
        slot.process.wakes_at = self._history.world.now

    def wait(self, meanwhile: Callable[[], None] = do_nothing) -> list[tuple[Task, Result | Unavailable]]:
        world = self._history.world
        if not self.busy:
            return []
        world.sleep(POLL_SECONDS)
        found: list[tuple[Task, Result | Unavailable]] = []
        for slot in list(self._slots):
            if slot.task is None:
                continue
            if slot.answer is not None and slot.answers_at <= world.now:
                found.append((slot.task, slot.answer))
                slot.task, answer, slot.answer = None, slot.answer, None
                if self._spoils(answer):
                    self._drop(slot)
            elif slot.answer is None and slot.process not in world.living():
                if slot.answers_at == float("inf"):
                    slot.answers_at = world.now + world.random.choice([0.0, 5.0, 30.0])
                elif slot.answers_at <= world.now:
                    found.append((slot.task, Lost("the worker died", FailureKind.MACHINE)))
                    self._slots.remove(slot)
        return found

    def abandon(self, unwanted: Callable[[Task], bool]) -> None:
        for slot in list(self._slots):
            if slot.task is not None and unwanted(slot.task):
                self._drop(slot)

    def close(self) -> None:
        for slot in list(self._slots):
            self._drop(slot)

    def _drop(self, slot: _Slot[Task, Result]) -> None:
        self._slots.remove(slot)
        slot.stops = True
        process = slot.process
        if process is not None:
            self._history.world.events.append((self._history.world.now, lambda: self._history.world.kill(process)))

    def _start(self) -> _Slot[Task, Result]:
        history, world = self._history, self._history.world
        slot: _Slot[Task, Result] = _Slot()
        owner = world.current()

        def work() -> None:
            made = self._worker(WorkerSetup(should_stop=lambda: world.current() in history.told_to_end))
            while not slot.stops and not (owner is not None and (owner.over or owner.killed)):
                if slot.task is None or slot.answer is not None:
                    world.sleep(60.0)
                    continue
                slot.answer = made.run(slot.task)
                slot.answers_at = world.now + history.delay(slot.answer)

        slot.process = world.start(f"worker of {owner.name if owner else ''}", self._machine, work)
        self._slots.append(slot)
        return slot


class NoSync:
    """Stands for MLflow."""

    problem = ""
    lines: tuple[str, ...] = ()

    def __init__(self, *arguments: object) -> None: ...

    def __enter__(self) -> "NoSync":
        return self

    def __exit__(self, *exception: object) -> None: ...


@dataclass
class History:
    """One history: what is planned, what happened."""

    seed: int
    root: Path
    matrices: tuple[Matrix, ...]
    world: World
    faulty: bool = True
    told_to_end: set[Process | None] = field(default_factory=set)
    committed: dict[str, set[tuple[int, str]]] = field(default_factory=dict)
    """Trial -> (step, name) of the rows that a commit has returned for."""
    over: set[str] = field(default_factory=set)
    """Trials whose outcome has been written."""
    rerun: list[str] = field(default_factory=list)
    """Trials that were trained after that."""
    attempts: int = 0
    """Times that a trial was trained, or went on."""
    happened: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def random(self) -> Any:
        """The world's source of randomness."""
        return self.world.random

    # what can happen

    def start_driver(self, matrix: Matrix, machine: str) -> Process:
        """Run a study, as a user would."""
        runs = RunsFolder(self.root)

        def main() -> Progress:
            return run_matrix(matrix, runs, SimulatedExecutor(self, machine), RunOptions(checkpoint_seconds=2.0))

        return self.world.start(f"driver of {matrix.plan.study.name}", machine, main)

    def happen(self, fault: str) -> None:
        """Let something go wrong now."""
        world = self.world
        workers, drivers = world.living("worker"), world.living("driver")
        self.happened.append(f"{world.now:.1f} s, operation {world.operations}: {fault}")
        if fault == "kill worker" and workers:
            world.kill(self.random.choice(workers))
        elif fault == "kill driver" and drivers:
            self.kill_driver(self.random.choice(drivers))
        elif fault == "interrupt" and drivers:
            world.interrupt(self.random.choice(drivers))
        elif fault == "terminate" and workers:
            self.told_to_end.add(self.random.choice(workers))
        elif fault == "pause" and world.living():
            world.pause(self.random.choice(world.living()), self.random.choice([3.0, 30.0, 200.0]))
        elif fault == "power cut":
            for process in world.living():
                world.kill(process)
            world.disk.cut(self.random)
        elif fault == "machine":
            machine = self.random.choice(["one", "two"])
            for process in [each for each in world.living() if each.machine == machine]:
                world.kill(process)
        elif fault == "full disk":
            world.full = world.ever_full = True
            world.events.append((world.now + self.random.choice([1.0, 10.0, 100.0]), self.empty_disk))
        elif fault == "clock":
            world.skew[self.random.choice(["one", "two"])] = self.random.choice([-3600.0, -30.0, 30.0, 3600.0])

    def delay(self, answer: Any) -> float:
        """Return how long an answer is on its way. One whose outcome is on disk may be lost."""
        lost = [1e9] if isinstance(answer, Outcome) and answer.status.is_over else []
        return self.random.choice([0.0, 0.0, 0.0, 0.0, 20.0, *lost]) if self.faulty else 0.0

    def kill_driver(self, driver: Process) -> None:
        """Kill a driver; its workers end with it, at once or after a while."""
        self.world.kill(driver)
        after = self.random.choice([0.0, 2.0, 1e9])
        for process in self.world.living(f"worker of {driver.name}"):
            self.world.events.append((self.world.now + after, lambda process=process: self.world.kill(process)))

    def empty_disk(self) -> None:
        """Let there be space again."""
        self.world.full = False

    # from beginning to end

    def play(self, faults: int) -> None:
        """Run the studies among so many faults, then once more in peace, and check what must hold."""
        world = self.world
        for _ in range(faults):
            fault = self.random.choice(FAULTS)
            at = int(self.random.triangular(1, 400, 60))
            world.at_operation[at] = lambda fault=fault: self.happen(fault)
        with inhabited(world), self.patched():
            for number in range(2 + faults):
                drivers = [
                    self.start_driver(matrix, self.random.choice(["one", "two"]))
                    for matrix in self.matrices
                    for _ in range(self.random.choice([1, 1, 1, 2]))
                ]
                ended = self.until_over(drivers)
                self.see(drivers, ended, number)
                if all(self.is_done(matrix) for matrix in self.matrices) and not world.at_operation:
                    break
            self.finish()

    def finish(self) -> None:
        """Run the studies once more, in peace, and check what must hold."""
        world = self.world
        self.faulty, world.at_operation, world.full = False, {}, False
        for process in world.living():
            world.kill(process)
        for matrix in self.matrices:
            world.now += 100.0  # what another machine held has lapsed
            driver = self.start_driver(matrix, "one")
            ended = self.until_over([driver])
            self.see([driver], ended, -1)
        self.check()

    def until_over(self, drivers: list[Process]) -> bool:
        """Let the world go on until some runs have ended; return False if they do not."""
        return self.world.run(lambda: all(each.over for each in drivers), STUDY_SECONDS)

    def see(self, drivers: list[Process], ended: bool, number: int) -> None:
        """Note how runs ended: they are done, or say why not."""
        if not ended:
            waiting = ", ".join(f"{each.name} until {each.wakes_at:.0f}" for each in self.world.living())
            self.problems.append(f"run {number} has not ended after {STUDY_SECONDS:g} s ({waiting})")
            for process in self.world.living():
                self.world.kill(process)
        for driver in drivers:
            result = driver.result
            said = isinstance(result, GatelabError | KeyboardInterrupt | Progress) or driver.killed
            if not said and not (isinstance(result, OSError) and self.world.ever_full):
                self.problems.append(f"run {number} ended by {result!r}\n{driver.error}")
        for each in self.world.processes:
            if isinstance(each.result, BaseException) and each.name.startswith("worker"):
                self.problems.append(f"{each.name} ended by\n{each.error}")
                each.result = None

    def is_done(self, matrix: Matrix) -> bool:
        """Return whether all trials of a study are over."""
        runs = RunsFolder(self.root)
        found = [Outcome.read(runs.trial(trial.id).outcome) for trial in matrix.trials]
        return all(outcome is not None and outcome.status.is_over for outcome in found)

    def check(self) -> None:
        """Compare with a history without faults, whose every number is known."""
        for trial in {trial.id: trial for matrix in self.matrices for trial in matrix.trials}.values():
            self.problems += list(check_trial(RunsFolder(self.root), trial.id, self.committed.get(trial.id, set())))
        self.problems += [f"trial {trial[:8]} was trained again after its end" for trial in self.rerun]

    # the seams

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Put simulated training, data and MLflow in the place of real ones."""
        commit = Journal.commit
        history = self

        def commit_and_note(journal: Journal) -> None:
            rows = set(zip(journal._steps, journal._names, strict=True))
            commit(journal)
            trial = Path(journal._file.name).parts[-3]
            history.committed.setdefault(trial, set()).update(rows)

        patches: list[tuple[Any, str, Any]] = [
            (study_run, "SyncThread", NoSync),
            (study_manifest, "study_files", known_study_files),
            (study_run, "_prepare_data", lambda trials, folder: None),
            (worker, "Dataset", lambda path: None),
            (worker, "code_version", lambda: {}),
            (worker, "environment", lambda device, dtype: {}),
            (worker, "_logging_to", lambda path: nullcontext()),
            (worker, "trial_metric_specs", lambda config: SPECS),
            (worker, "train", self.train),
            (worker, "write_json", self.write_record),
            (trials, "write_json", self.write_record),
            (Journal, "commit", commit_and_note),
        ]
        before = [(place, name, getattr(place, name)) for place, name, _ in patches]
        for place, name, value in patches:
            setattr(place, name, value)
        try:
            yield
        finally:
            for place, name, value in before:
                setattr(place, name, value)

    def write_record(self, path: Path, value: Any) -> None:
        """Write a record, and note when a trial is over."""
        write_json(path, value)
        if path.name == "outcome.json" and value["status"] in ("finished", "diverged"):
            self.over.add(path.parent.name)

    def train(
        self, config: Any, recorder: Any, workdir: Path, device: str, *, should_stop: Any, **options: Any
    ) -> Trained:
        """Do what `training.loop.train` does, in the same order, with numbers that are known."""
        trial = workdir.name
        self.attempts += 1
        if trial in self.over:
            self.rerun.append(trial)
        sweep(workdir / "checkpoints")
        restored = next(whole_checkpoints(workdir / "checkpoints", options["recorded"]), None)
        step = restored.step if restored else 0
        metrics: dict[str, float] = dict(restored.state["metrics"]) if restored else {}
        saved_at = self.world.now
        while step < STEPS:
            self.world.sleep(1.0)
            step += 1
            value = expected_value(trial, step)
            recorder.record(step, {"train/loss": value})
            if diverges(trial) and step == STEPS - 1:
                recorder.commit()
                return Trained(Status.DIVERGED, step, metrics, "the loss was nan")
            if step % EVALUATED == 0:
                metrics = {"validation/loss": value + 1.0}
                recorder.record(step, metrics)
            recorder.flush()
            stops = step < STEPS and should_stop()
            if step == STEPS or stops or self.world.now - saved_at >= options["checkpoint_seconds"]:
                recorder.commit()
                save_checkpoint(workdir / "checkpoints", step, MODEL, OPTIMIZER, {"metrics": metrics})
                saved_at = self.world.now
            if stops:
                return Trained(Status.STOPPED, step, metrics)
        return Trained(Status.FINISHED, step, metrics)


def check_trial(runs: RunsFolder, trial: str, committed: set[tuple[int, str]]) -> Iterator[str]:
    """Yield in what a trial's files differ from those of an undisturbed one."""
    last = STEPS - 1 if diverges(trial) else STEPS
    rows = {(step, "train/loss"): expected_value(trial, step) for step in range(1, last + 1)}
    evaluations = {step: expected_value(trial, step) + 1.0 for step in range(EVALUATED, last + 1, EVALUATED)}
    rows |= {(step, "validation/loss"): value for step, value in evaluations.items()}
    found = read_journal(runs.trial(trial).journal)
    keys = list(zip(found["step"].to_pylist(), found["name"].to_pylist(), strict=True))
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        yield f"trial {trial[:8]}: rows twice: {twice}"
    values = dict(zip(keys, found["value"].to_pylist(), strict=True))
    if values != rows:
        lost, new = rows.keys() - values.keys(), values.keys() - rows.keys()
        yield f"trial {trial[:8]}: rows lost {sorted(lost)}, from nowhere {sorted(new)}, or other values"
    if committed - values.keys():
        yield f"trial {trial[:8]}: committed rows lost: {sorted(committed - values.keys())}"
    outcome = Outcome.read(runs.trial(trial).outcome)
    status = Status.DIVERGED if diverges(trial) else Status.FINISHED
    final = {"validation/loss": evaluations[max(evaluations)]}
    if outcome is None or (outcome.status, outcome.step, outcome.metrics) != (status, last, final):
        yield f"trial {trial[:8]}: ended as {outcome}"


def play(seed: int, folder: Path) -> History:
    """Play the history of a seed in an empty folder, which is removed."""
    root = folder / f"history-{seed}"
    root.mkdir()
    world = World(seed, root, locks=seed % 4 != 3)
    one, two = small_matrix("one", ("none", "sdpa")), small_matrix("two", ("sdpa", "value"))
    matrices = (one,) if world.random.random() < 0.6 else (one, two)
    history = History(seed, root, matrices, world)
    try:
        history.play(world.random.choice([0, 1, 1, 2, 2, 3, 4, 6]))
    finally:
        shutil.rmtree(root)
    return history
