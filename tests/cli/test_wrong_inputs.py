"""What people type by mistake: each is refused in a sentence that says what is wrong and what would be right."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gatelab.cli.main import app

LONG = "n" * 300


@pytest.fixture(scope="module", autouse=True)
def _mistakes(older_runs: Path) -> None:
    """Files that are not right."""
    (older_runs / "afile").write_text("no table\n")
    (older_runs / "latin.txt").write_bytes(b"caf\xe9")
    (older_runs / "blank.yaml").write_text("")
    (older_runs / "open.yaml").write_text("name: x\naxes: [")
    (older_runs / "sizes.yaml").write_text("axes: {model.layers: [1]}\n")
    (older_runs / "three.yaml").write_text("axes: {model.layers: [1, 2, 3], model.gate.position: [none, sdpa]}\n")


def gatelab(command: str) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(app, shlex.split(command))


def words(text: str) -> str:
    """A text without the frames and line breaks that a terminal's width makes."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


A_NAME = "is no name of a study: letters, digits"
A_FILE = "is a file, where a folder is needed"

WRONG = {  # id -> (what is typed, what must be said, exit code)
    "a path as a name": ("status ../../outside", (A_NAME, "'../../outside'"), 2),
    "an absolute path as a name": ("compare /etc", (A_NAME,), 2),
    "a name too long": (f"status {LONG}", (A_NAME, "300 characters"), 2),
    "an empty name": ("compare ''", (A_NAME,), 2),
    "a name that rings": ("status 'a\x1b[31m\x07b'", (A_NAME, r"a\x1b[31m\x07b"), 2),
    "a name with a dot before it": ("report .hidden", (A_NAME,), 2),
    "a mistyped study": ("compare gate", ("no study 'gate'", "did you mean gates?"), 2),
    "a study that never ran": ("claims nothing", ("no study 'nothing'", "there are: "), 2),
    "the study of a search": ("scaling stopped-lr-tolerance", ("no study 'stopped-lr-tolerance'",), 2),
    "no studies": ("list --runs nowhere", ("no study in nowhere yet: gatelab run STUDY.yaml",), 2),
    "nothing was run": ("compare gates --runs nowhere", ("there is none yet: gatelab run STUDY.yaml",), 2),
    "a file as runs folder": ("list --runs afile", ("'--runs'", "'afile' is a file"), 2),
    "run into a file": ("run sizes.yaml --runs afile", ("'--runs'", "'afile' is a file"), 2),
    "plan on a file": ("plan sizes.yaml --runs afile", ("'--runs'", "'afile' is a file"), 2),
    "export into a file": ("export gates -o afile", ("'--output'", "'afile' is a file"), 2),
    "diagnose into a file": ("diagnose gates -o afile", ("'--output'", "'afile' is a file"), 2),
    "export below a file": ("export gates -o afile/in", ("afile/in", A_FILE), 2),
    "effects below a file": ("effects ladder -o afile/in", ("afile/in", A_FILE), 2),
    "a page below a file": ("report gates -o afile/page.html", (f"afile: {A_FILE}",), 2),
    "a page over a folder": ("report gates -o studies", ("'--output'", "'studies' is a directory"), 2),
    "a table over a folder": ("compare gates -f md -o studies", ("'--output'", "'studies' is a directory"), 2),
    "a table below a file": ("compare gates -f md -o afile/t.md", (f"afile: {A_FILE}",), 2),
    "a table nowhere": ("compare gates -f md -o /proc/no/t.md", ("/proc/no: No such file or directory",), 2),
    "a file without a form": ("compare gates -o t.md", ("--output needs --format md, tex",), 2),
    "tests in a file": ("compare gates --tests -f md", ("--tests is for the terminal",), 2),
    "a metric that is none": ("compare gates --metric validation/los", ("--metric:", "validation/loss"), 2),
    "a curve that is none": ("curves gates --metric train/los", ("--metric:", "did you mean train/loss?"), 2),
    "effects on what is none": ("effects gates --metric validation/los", ("for example validation/loss",), 2),
    "a report by what is none": ("report gates --metric los", ("--metric:", "for example validation/loss"), 2),
    "a margin below 0": ("compare gates --margin -1", ("'--margin'", "0"), 2),
    "an export that is none": ("compare gates --from parquet --parquet no", ("no Parquet", "gatelab export gates"), 2),
    "an export that is not asked for": ("compare gates --parquet x", ("--parquet needs --from parquet",), 2),
    "a source that is none": ("compare gates --from wandb", ("'wandb'", "'journal'", "'mlflow'", "'parquet'"), 2),
    "an axis that is none": ("compare gates --rows spot --columns rate", ("'spot' is no axis (there are:", "rate"), 2),
    "an axis twice": ("compare gates --rows rate --columns rate", ("both in rows and in columns",), 2),
    "an axis too few": ("compare gates --rows position --columns rate", ("put them into rows or columns",), 2),
    "claims of none": ("claims rates", ("makes no claims: state them in its file, under claims",), 2),
    "effects of nothing": ("effects stopped", ("two must have finished (got 0 of 2)",), 2),
    "diagnostics of nothing": ("diagnose stopped", ("no trial has recorded diagnostics yet",), 2),
    "a variant that is none": ("stability rates --variant position=spda", ("--variant 'position=spda'", "sdpa"), 2),
    "a table that is missing": ("report gates --check --file no.md", ("missing no.md", "cannot be read"), 1),
    "a table that is none": ("report gates --check --file afile", ("out of date afile", "has no stamp"), 1),
    "laws without a ladder": ("scaling gates", ("gates has no scaling ladder: no axis sets a size",), 2),
    "laws of one size": ("scaling sizes.yaml", ("axes.model.layers", "needs 4 rungs", "has 1"), 2),
    "laws of three sizes": ("scaling three.yaml", ("axes.model.layers", "needs 4 rungs", "has 3: add levels"), 2),
    "laws of no size": ("scaling studies/rates.yaml", ("none makes a ladder",), 2),
    "flags with a name": ("scaling ladder --seeds 2", ("--seeds: needs the file of the study",), 2),
    "few replicates": ("scaling ladder --bootstraps 5", ("'--bootstraps'", "100"), 2),
    "no search": ("lr-tolerance stopped", ("no study 'stopped-lr-tolerance'",), 2),
    "one rate": ("lr-tolerance studies/rates.yaml --rates 1e-3", ("at least three learning rates, ascending",), 2),
    "a device that is none": (
        "train sizes.yaml --device gpu",
        ("--device 'gpu': expected auto, cpu, cuda or cuda:N",),
        2,
    ),
    "a device of others": ("train sizes.yaml --device mps", ("--device 'mps': expected auto, cpu, cuda",), 2),
    "a device too many": ("train sizes.yaml --device cuda:99", ("--device 'cuda:99': torch", "sees"), 2),
    "a seed below 0": ("train sizes.yaml --seed -1", ("'--seed'", "0"), 2),
    "train nothing": ("train", ("name a study file, --preset NAME",), 2),
    "a length that is none": ("evaluate gates --lengths 12x", ("--lengths: expected a count such as 4096",), 2),
    "a rope that is none": ("evaluate gates --ropes yran", ("--ropes: expected plain, ntk, yarn",), 2),
    "a task that is none": ("evaluate gates --retrieval nedle", ("--retrieval: expected none, or some of needle",), 2),
    "tasks without lengths": ("evaluate gates --lengths none --retrieval needle", ("are those of --lengths",), 2),
    "nothing to evaluate": ("evaluate stopped", ("no trial of study 'stopped' has finished yet",), 2),
    "a map of nothing": ("attention-map gates", ("give --text or --file",), 2),
    "a map of a missing file": ("attention-map gates --file no.txt", ("--file no.txt: No such file or directory",), 2),
    "a map of bytes": ("attention-map gates --file latin.txt", ("--file latin.txt: is no UTF-8 text",), 2),
    "a map of no seed": ("attention-map gates --text abc --seed 99", ("--seed 99: finished are 0, 1, 2",), 2),
    "an open bracket": ("plan open.yaml", ("open.yaml:2: YAML",), 2),
    "a blank study": ("plan blank.yaml", ("blank.yaml: file: is empty: a study is a mapping with name",), 2),
    "a folder as a study": ("plan studies", ("studies: file: cannot be read (a folder: name a file in it)",), 2),
    "a preset that is none": ("presets tiny-dens", ("did you mean tiny-dense?",), 2),
    "a study over another": ("init sizes.yaml", ("sizes.yaml exists already, and is left as it is",), 2),
    "a study that is no YAML": ("init study.txt", ("the name of a study file ends in .yaml",), 2),
    "a study below a file": ("init afile/in/x.yaml", ("afile/in",), 2),
    "clean": ("clean", ("there is no command 'clean'", "delete what is not needed"), 2),
    "a command that is none": ("lst", ("No such command 'lst'", "list"), 2),
    "an option that is none": ("compare gates --metrc x", ("--metrc", "--metric"), 2),
}


@pytest.mark.parametrize(("command", "said", "code"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_answered_in_a_sentence(command: str, said: tuple[str, ...], code: int, desk: Path) -> None:
    """No traceback, nothing is done, and a person reads what was wrong and what would be right."""
    result = gatelab(command)
    assert isinstance(result.exception, SystemExit), result.exception
    told = words(result.output)
    assert result.exit_code == code, told
    for text in said:
        assert text in told
    assert "Traceback" not in told
    assert "\x1b" not in result.output
