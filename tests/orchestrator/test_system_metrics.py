"""What a trial's machine was doing is recorded beside its metrics, and disturbs neither them nor the trial."""

import time
from pathlib import Path

import psutil
import pytest
import torch

from gatelab.metrics import MetricSpec, dump_specs, find_spec, load_specs
from gatelab.orchestrator.system_metrics import SPECS, SystemMetrics
from gatelab.orchestrator.worker import Task, run_task
from gatelab.results.store.journal import Journal, JournalTail, read_journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import BEFORE_SPECS, specs_of_trials
from gatelab.results.store.records import TrialDescription, write_json
from gatelab.results.store.trials import read_description
from gatelab.training.config import TrialConfig
from gatelab.training.preparation import prepare

CPU = torch.device("cpu")
ALWAYS = {
    "system/cpu_utilization_percentage": "%",
    "system/system_memory_usage_megabytes": "MB",
    "system/system_memory_usage_percentage": "%",
    "system/process_cpu_utilization_percentage": "%",
    "system/process_memory_usage_megabytes": "MB",
}


def samples(journal: Path) -> list[tuple[int, dict[str, float]]]:
    """The samples of a journal: step and values."""
    found: dict[int, dict[str, float]] = {}
    for row in read_journal(journal).to_pylist():
        if row["name"].startswith("system/"):
            found.setdefault(row["step"], {})[row["name"]] = row["value"]
    return list(found.items())


def test_a_sample_is_what_the_machine_says(tmp_path: Path) -> None:
    """Memory and utilisation are those that the system's own account has, in the units of their names."""
    with Journal(tmp_path) as journal:
        recorder = SystemMetrics(journal, CPU, seconds=0)
        began, used = time.perf_counter(), time.process_time()
        recorder.flush()  # nothing has been recorded: there is no step to sample at
        while time.process_time() < used + 0.3:
            pass
        utilisation = 100 * (time.process_time() - used) / (time.perf_counter() - began)
        recorder.record(7, {"train/loss": 1.0})
        recorder.flush()
    [(step, sample)] = samples(tmp_path)
    assert (step, set(sample)) == (7, set(ALWAYS))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
    if resident:
        assert sample["system/process_memory_usage_megabytes"] == pytest.approx(resident / 1e6, rel=0.2)
    share = sample["system/system_memory_usage_megabytes"] / (psutil.virtual_memory().total / 1e6)
    assert sample["system/system_memory_usage_percentage"] == pytest.approx(100 * share)
    assert 0 < sample["system/cpu_utilization_percentage"] <= 100
    assert sample["system/process_cpu_utilization_percentage"] == pytest.approx(utilisation, rel=0.3)


def test_samples_come_now_and_then_and_within_their_step(tmp_path: Path) -> None:
    """A reader that follows the journal gets each sample with its step: one between two batches would be lost."""
    tail, seen, began = JournalTail(tmp_path), [], time.monotonic()
    with Journal(tmp_path, flush_seconds=0) as journal:
        recorder = SystemMetrics(journal, CPU, seconds=0.2)
        for step in range(1, 31):
            recorder.record(step, {"train/loss": 1.0})
            recorder.record(step, {"gradient_norm": 1.0}, layer=0)
            recorder.flush()
            recorder.commit()
            seen += [row["step"] for row in tail.read().to_pylist() if row["name"] in ALWAYS]
            time.sleep(0.02)
    steps = [step for step, _ in samples(tmp_path)]
    assert steps[0] == 1
    assert 3 <= len(steps) <= 1 + (time.monotonic() - began) / 0.2
    assert seen == [step for step in steps for _ in ALWAYS]


def test_a_gpu_that_cannot_be_asked_costs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that fails is asked once; processor and memory are sampled on."""
    asked = []

    def fail(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        raise RuntimeError("the driver is away")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with Journal(tmp_path) as journal:
        recorder = SystemMetrics(journal, torch.device("cuda"), seconds=0)
        for step in (1, 2):
            recorder.record(step, {"train/loss": 1.0})
            recorder.flush()
    assert len(asked) == 1
    assert [set(sample) for _, sample in samples(tmp_path)] == [set(ALWAYS), set(ALWAYS)]


def test_a_gpu_is_sampled_under_the_names_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the trial's own GPU: used memory is what is not free, power comes in milliwatts."""
    answers = {"mem_get_info": (6e9, 8e9), "utilization": 42, "power_draw": 123_456}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer if device.index == 1 else None)
    with Journal(tmp_path) as journal:
        recorder = SystemMetrics(journal, torch.device("cuda:1"), seconds=0)
        recorder.record(1, {"train/loss": 1.0})
        recorder.flush()
    [(_, sample)] = samples(tmp_path)
    assert {name: value for name, value in sample.items() if name not in ALWAYS} == {
        "system/gpu_1_memory_usage_megabytes": 2000.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
        "system/gpu_1_utilization_percentage": 42.0,
        "system/gpu_1_power_usage_watts": 123.456,
    }
    for specs in (SPECS, BEFORE_SPECS):
        assert find_spec("system/gpu_1_power_usage_watts", specs).unit == "W"


def test_samples_have_units_and_are_no_columns_of_tables() -> None:
    """MLflow gets them; no single number of them sums a trial up."""
    for name, unit in ALWAYS.items():
        for spec in (find_spec(name, SPECS), find_spec(name, BEFORE_SPECS)):
            assert spec.unit == unit
            assert spec.is_mirrored(None)
            assert not spec.sums_up


def small_task(corpus: Path, tmp_path: Path, asked: bool) -> Task:
    """A trial of a few steps, whose machine is sampled if that is asked."""
    config = TrialConfig.model_validate(
        {
            "model": {"layers": 1, "hidden_size": 8, "query_heads": 1, "kv_heads": 1, "head_dim": 8, "ffn_size": 8},
            "training": {"tokens": 256, "sequence_length": 16, "batch_size": 4},
            "evaluation": {"tokens": 256, "points": 1},
            "data": {"source": str(corpus)},
        }
    )
    folder = RunsFolder(tmp_path / "runs")
    identity = prepare(config.data, folder.data).manifest.identity
    return Task(
        trial_id="a-trial",
        config=config,
        data_identity=identity,
        runs=folder,
        stop_file=tmp_path / "never",
        checkpoint_seconds=60,
        system_metrics=asked,
    )


@pytest.mark.parametrize("asked", [True, False])
def test_a_trial_records_them_only_if_asked(asked: bool, corpus: Path, tmp_path: Path) -> None:
    """The training's own record is the same either way."""
    task = small_task(corpus, tmp_path, asked)
    folder = task.runs
    assert run_task(task, "cpu").status == "finished"
    description = read_description(folder.trial(task.trial_id))
    assert description is not None
    specs = load_specs(description.metrics or {})
    told = {name: find_spec(name, specs) for name in ALWAYS}
    assert told == {name: MetricSpec(unit, kind="series") if asked else MetricSpec() for name, unit in ALWAYS.items()}
    assert find_spec("train/loss", specs) == MetricSpec("nats/token", "lower", kind="series")
    rows = read_journal(folder.trial(task.trial_id).journal).to_pylist()
    names = {row["name"] for row in rows}
    assert (set(ALWAYS) <= names) == asked
    assert any(name.startswith("system/") for name in names) == asked
    assert [row["step"] for row in rows if row["name"] == "train/loss"] == [1, 2, 3, 4]


def test_what_an_earlier_attempt_measured_stays_described(corpus: Path, tmp_path: Path) -> None:
    """Its samples stay in the journal, too: one that goes on without them still knows that they are no summary."""
    task = small_task(corpus, tmp_path, asked=False)
    begun = TrialDescription(id=task.trial_id, config={}, metrics=dump_specs(SPECS))
    write_json(task.files.description, begun.to_json())
    assert run_task(task, "cpu").status == "finished"
    description = read_description(task.files)
    assert description is not None
    specs = specs_of_trials([description])
    assert find_spec("system/cpu_utilization_percentage", specs) == MetricSpec("%", kind="series")
    assert find_spec("train/loss", specs) == MetricSpec("nats/token", "lower", kind="series")
