"""A written table says where it comes from, and is called stale once it no longer follows from the trials."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.preregistration import register_claims
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.results.analyses.comparison import compare
from gatelab.results.report import write
from gatelab.results.report.artifacts import TABLES, render, write_table
from gatelab.results.report.context import read_results
from gatelab.results.report.stamp import (
    LAYOUT,
    Stamp,
    json_with_provenance,
    make_stamp,
    read_stamp,
    with_origin,
    with_provenance,
)
from gatelab.results.report.verify import check, same_text, stamped_tables
from gatelab.results.store.layout import NotFound
from gatelab.results.store.records import read_json, write_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.views.table import Column, Table, to_csv, to_html, to_latex, to_markdown

NASTY = ["a --> b", "--!><script>alert(1)</script>", "------", '"}{\\', "two\nlines\r\n", "% } gatelab-table {}", "Δ é"]
STAMP = Stamp(
    table="comparison",
    study="gates-1",
    study_hash="0123456789abcdef" * 4,
    commits=("1a" * 20, "2b" * 20),
    data=("3c" * 32,),
    finished=5,
    trials=6,
    seeds=3,
    options={"metric": "validation/loss", "margin": 0.005, "rows": NASTY, "columns": []},
)
GRID = Table("gates-1: a table", (Column("axis"), Column("loss", True)), (("a", "1.5"), ("b", "1.6")), (True, False))
TEXTS = {
    "md": to_markdown(GRID),
    "tex": to_latex(GRID),
    "html": to_html(GRID),
    "csv": 'variant,mean\r\n"a, b",1.5\r\n"two\nlines",\r\n',
    "json": json.dumps({"rows": [{"mean": 1.5}, {"mean": None}]}),
}
FORMS = sorted(TEXTS)


def stamped(text: str, form: str, stamp: Stamp) -> str:
    """A table that is given as text, with its stamp, as each form is given one."""
    if form == "csv":
        frame = pa.Table.from_pandas(pd.read_csv(io.StringIO(text)), preserve_index=False)
        return to_csv(with_origin(frame, stamp))
    if form == "json":
        return json_with_provenance(json.loads(text), stamp)
    return with_provenance(text, form, stamp)


# --- Stamps ---


@pytest.mark.parametrize("suffix", FORMS)
def test_every_form_gives_its_stamp_back(suffix: str, tmp_path: Path) -> None:
    """All that makes a table again is in the file, whatever names its options contain."""
    for form, text in TEXTS.items():
        (tmp_path / f"table.{form}").write_text(stamped(text, form, STAMP), encoding="utf-8")
    assert read_stamp(tmp_path / f"table.{suffix}") == STAMP


def test_the_line_for_people() -> None:
    """Study, commit, data and n, short enough for the foot of a table; a single seed is one seed."""
    assert str(STAMP) == (
        f"Study gates-1 0123456789ab, commit {'1a' * 20}, {'2b' * 20}, data 3c3c3c3c3c3c, "
        "n: 5 of 6 trials finished, 3 seeds"
    )
    bare = Stamp("comparison", "s", "h", (), (), 0, 1, 1)
    assert str(bare) == "Study s h, commit unknown, data unknown, n: 0 of 1 trials finished, 1 seed"
    for form in ("md", "tex", "html"):
        assert str(STAMP) in stamped(TEXTS[form], form, STAMP)


class Page(HTMLParser):
    """What a browser makes of a page: its comments, its elements, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.comments: list[str] = []
        self.elements: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("form", ["html", "md"])
def test_no_name_ends_the_comment(form: str) -> None:
    """A level that is called `--> <script>` must stay text: reports are passed on."""
    page = Page(stamped(TEXTS[form], form, STAMP))
    [comment] = page.comments
    assert "--" not in comment
    assert json.loads(comment.removeprefix(" gatelab-table "))["options"]["rows"] == NASTY
    assert "script" not in page.elements
    assert "alert" not in page.text
    assert str(STAMP) in page.text


def test_latex_stays_a_table_and_comments() -> None:
    """A paper that includes it compiles: beneath the table every line is a comment, line breaks in names or not."""
    text = stamped(TEXTS["tex"], "tex", STAMP)
    assert text.startswith(TEXTS["tex"])
    after = text.partition("\\end{tabular}\n")[2]
    assert after.count("\n") == 2
    assert all(line.startswith("% ") for line in after.splitlines())


def test_spreadsheets_get_columns() -> None:
    """pandas reads the table as it was, numbers as numbers, with the origin of each row beside it."""
    frame = pd.read_csv(io.StringIO(stamped(TEXTS["csv"], "csv", STAMP)))
    assert frame.columns.tolist() == ["variant", "mean", "study", "study_hash", "commit", "data"]
    assert frame["variant"].tolist() == ["a, b", "two\nlines"]
    assert frame["mean"].dtype == float
    assert frame["mean"].isna().tolist() == [False, True]
    assert set(frame["study"]) == {STAMP.study}
    assert set(frame["study_hash"]) == {STAMP.study_hash}
    assert set(frame["commit"]) == {"1a" * 20 + " " + "2b" * 20}
    assert set(frame["data"]) == {"3c" * 32}


def test_columns_that_a_table_has_already_are_not_doubled() -> None:
    """A comparison's rows name their study themselves: a second column of that name would be read in its place."""
    text = "study,data,mean\r\ngates-1,of the row,1.5\r\n"
    frame = pd.read_csv(io.StringIO(stamped(text, "csv", STAMP)))
    assert frame.columns.tolist() == ["study", "data", "mean", "study_hash", "commit"]
    assert frame.loc[0, ["study", "data", "mean"]].tolist() == ["gates-1", "of the row", 1.5]
    nothing = stamped("variant,mean\r\n", "csv", STAMP)
    assert nothing == "variant,mean,study,study_hash,commit,data\r\n"


def test_json_keeps_its_content() -> None:
    """Programs find what they found before, and the stamp beside it."""
    loaded = json.loads(stamped(TEXTS["json"], "json", STAMP))
    assert loaded.pop("stamp")["study"] == "gates-1"
    assert loaded == json.loads(TEXTS["json"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "<!-- gatelab-table {not json} -->",
        '<!-- gatelab-table {"table": "comparison"} -->',
        "<!-- gatelab-table {} -->",
        "<!-- gatelab-table {{}} -->",
        "[1]",
        "3",
        '{"stamp": 3}',
        '{"stamp": [["table", "comparison"]]}',
        '{"stamp": {"commits": 1, "data": []}}',
        '{"stamp": null}',
    ],
)
def test_what_has_no_stamp_has_none(text: str, tmp_path: Path) -> None:
    """Files of others lie in the same folder: they are left alone, not stumbled over."""
    for suffix in ("md", "json", "csv"):
        path = tmp_path / f"other.{suffix}"
        path.write_text(text)
        assert read_stamp(path) is None
    for changed in ({"table": ["comparison"]}, {"study": 3}, {"commits": [1]}, {"data": [None]}, {"more": 1}):
        path.write_text(json.dumps({"stamp": {**vars(STAMP), **changed}}))
        assert read_stamp(path.with_suffix(".json")) is None


def test_a_stamp_is_of_the_trials(laboratory: Any) -> None:
    """Commits and data of all trials, each once; trials that have not finished are told from those that have."""
    lab = laboratory(("none", "sdpa"), seeds=3)
    for seed, commit in enumerate(("b", "a", "b")):
        lab.finish(0, seed, commit=commit)
    stamp = make_stamp(runs_from_journals(lab.folder, lab.name), "comparison", margin=0.5)
    origin = (lab.record.hash, ("a", "b"), ("this data",))
    assert stamp == Stamp("comparison", lab.name, *origin, 3, 6, 3, {"margin": 0.5}, LAYOUT)


# --- Checking ---

STEMS = {kind: kind for kind in ("comparison", "effects", "pivot")} | {"claims": "claim-verdicts"}
CLAIMS = {"a -- gate > none": {"margin": 0.001}, "speed, too": {"metric": "train/seconds", "direction": "higher"}}


@pytest.fixture
def lab(laboratory: Callable[..., Any]) -> Any:
    """A study of four variants with claims, of which one trial has still to run, with all its tables."""
    axes = {
        "model.gate.position": ["none", "sdpa"],
        "training.schedule.warmup": [0.0, 0.1],
    }
    lab = laboratory(seeds=3, axes=axes, baseline={"model.gate.position": "none"}, claims=CLAIMS)
    register_claims(lab.folder, lab.matrix)
    for variant in range(4):
        for seed in range(3):
            if (variant, seed) != (3, 2):
                lab.finish(variant, seed)
    runs = runs_from_journals(lab.folder, lab.name)
    path = lab.folder.study(lab.name).path
    trials = read_results(lab.folder, lab.name)
    made: dict[str, dict[str, Any]] = {  # kind -> options
        "comparison": {},
        "claims": {},
        "effects": {"metric": "train/seconds"},
        "pivot": {"metric": "train/seconds", "margin": 0.5, "rows": ["position"], "columns": ["warmup"]},
    }
    for kind, options in made.items():
        write_table(TABLES[kind].compute(trials, options), path / STEMS[kind], make_stamp(runs, kind, **options))
    return lab


def problems(lab: Any, *paths: Path) -> dict[str, str]:
    """What is wrong with tables of a study, by file: with all of its own unless some are named."""
    checked = check(lab.folder, lab.name, paths or stamped_tables(lab.folder, lab.name))
    return {each.path.name: each.problem for each in checked}


def test_tables_hold_until_something_changes(lab: Any, tmp_path: Path) -> None:
    """Every kind in every form follows from the trials, wherever it lies and whatever its line ends have become."""
    found = problems(lab)
    assert found == {f"{stem}.{form}": "" for stem in STEMS.values() for form in FORMS}
    path = lab.folder.study(lab.name).path
    for name in found:
        (tmp_path / name).write_bytes((path / name).read_bytes())
    assert problems(lab, *(tmp_path / name for name in found)) == found
    for name in ("comparison.tex", "pivot.csv"):
        (tmp_path / name).write_bytes((path / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert problems(lab, tmp_path / name) == {name: ""}


@pytest.mark.parametrize("form", FORMS)
def test_a_digit_that_is_edited_by_hand_is_found(form: str, lab: Any) -> None:
    """A number that no trial has must not stay in a table, in whatever form; the lines that differ are shown."""
    path = lab.folder.study(lab.name).path / f"comparison.{form}"
    text = path.read_text(encoding="utf-8")
    digits = re.findall(r"\b2\.493\d*", text)[0]
    mine = digits.replace("2.493", "2.393")
    path.write_text(text.replace(digits, mine, 1), encoding="utf-8")
    found = problems(lab)
    assert [name for name, problem in found.items() if problem] == [path.name]
    first, *lines = found[path.name].splitlines()
    assert first == "the text is not what follows from the trials"
    assert any(line.startswith("-") and mine in line for line in lines)
    assert any(line.startswith("+") and digits in line for line in lines)


def test_a_trial_that_has_changed_makes_its_tables_stale(lab: Any) -> None:
    """A loss that is another now: the tables that show it are stale, those of another metric hold."""
    outcome = lab.trial(2, 1).outcome  # of the variant that the claim's table shows
    changed = read_json(outcome)
    assert changed is not None
    changed["metrics"]["validation/loss"] += 0.25
    write_json(outcome, changed)
    found = problems(lab)
    assert {name for name, problem in found.items() if problem} == {
        f"{stem}.{form}" for stem in ("comparison", "claim-verdicts") for form in FORMS
    }


def test_a_trial_that_has_finished_since_is_said(lab: Any) -> None:
    """More trials make another table: the problem begins with how many there are now."""
    lab.finish(3, 2, commit="another")
    for name, problem in problems(lab).items():
        said = "commits: this commit -> another, this commit; finished: 11 -> 12\n"
        assert problem.startswith(said), name


def test_long_differences_are_cut(lab: Any) -> None:
    """A screen must hold the list of tables."""
    path = lab.folder.study(lab.name).path / "comparison.json"
    write_json(path, {"stamp": json.loads(path.read_text())["stamp"]})
    lines = problems(lab, path)[path.name].splitlines()
    assert len(lines) == 14
    assert re.fullmatch(r"… and \d+ lines more", lines[-1])


def test_an_amended_claim_makes_its_table_stale(lab: Any) -> None:
    """The table must show each amendment; one whose register was edited by hand follows from nothing any more."""
    path = lab.folder.study(lab.name).claims
    register = json.loads(path.read_text())
    register["entries"][0]["ended"] = 7
    write_json(path, register)
    found = problems(lab)
    assert {name for name, problem in found.items() if problem} == {f"claim-verdicts.{form}" for form in FORMS}
    assert "does not follow from the trials any more" in found["claim-verdicts.md"]
    assert "entry 1 is not as it was written" in found["claim-verdicts.md"]


def test_what_cannot_be_checked_is_stale_and_says_why(lab: Any, laboratory: Any, tmp_path: Path) -> None:
    """A table that nobody can make again is no better than one that differs."""
    path = lab.folder.study(lab.name).path
    other = laboratory(seeds=1)
    runs = runs_from_journals(other.folder, other.name)
    write_table(compare(runs), tmp_path / "foreign", make_stamp(runs, "comparison"))
    stamp = make_stamp(runs_from_journals(lab.folder, lab.name), "comparison")
    written = {
        "plain.md": "| a |\n|---|\n",
        "alone.csv": (path / "comparison.csv").read_text(encoding="utf-8"),
        "newer.md": stamped(TEXTS["md"], "md", Stamp(**{**vars(stamp), "table": "prophecy"})),
        "table.txt": stamped(TEXTS["md"], "md", stamp),
        "wide.csvx": "a,b",
        "odd.md": stamped(TEXTS["md"], "md", Stamp(**{**vars(stamp), "options": {"metric": ["validation/loss"]}})),
        "list.md": stamped(TEXTS["md"], "md", Stamp(**{**vars(stamp), "options": {"table": "x", "runs": 1}})),
        "pivot.md": stamped(TEXTS["md"], "md", Stamp(**{**vars(stamp), "table": "pivot", "options": {"rows": 3}})),
        "torn.md": stamped(TEXTS["md"], "md", stamp).replace('"commits"', '"commit"'),
        "gone.md": stamped(TEXTS["md"], "md", Stamp(**{**vars(stamp), "options": {"metric": "validation/los"}})),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "picture.md").write_bytes(b"\x89PNG\xff\xfe")
    found = problems(lab, *(tmp_path / name for name in (*written, "foreign.tex", "picture.md", "nowhere.md")))
    assert found == {
        "plain.md": "has no stamp: write it again with this version",
        "alone.csv": "has no stamp (of CSV it is that of the JSON beside it): write it again with this version",
        "newer.md": "is a table of a kind or a form that this version does not know: 'prophecy', .md",
        "table.txt": "is a table of a kind or a form that this version does not know: 'comparison', .txt",
        "wide.csvx": "has no stamp: write it again with this version",
        "odd.md": found["odd.md"],
        "list.md": "has a stamp that makes no table: {'runs': 1, 'table': 'x'}",
        "pivot.md": "has a stamp that makes no table: {'rows': 3}",
        "torn.md": "has no stamp: write it again with this version",
        "gone.md": found["gone.md"],
        "foreign.tex": f"is of study {other.name!r}, not of {lab.name!r}",
        "picture.md": "is no text",
        "nowhere.md": "cannot be read (No such file or directory)",
    }
    assert found["odd.md"].startswith(("does not follow from the trials any more", "has a stamp that makes no table"))
    assert found["gone.md"].startswith(
        "does not follow from the trials any more: no trial has 'validation/los', but for example validation/loss"
    )
    with pytest.raises(NotFound):
        stamped_tables(lab.folder, "unheard-of")
    with pytest.raises(NotFound):
        list(check(lab.folder, "unheard-of", []))


def test_what_a_study_publishes_holds(lab: Any) -> None:
    """The very files that `gatelab run` leaves are found by their stamps, and all of them hold."""
    published = write.write_study(lab.folder, lab.name)
    assert {path.name for path in published.tables} >= {f"{stem}.{form}" for stem in ("comparison", "claim-verdicts")
                                                        for form in FORMS}  # fmt: skip
    register = lab.folder.study(lab.name).claims
    assert register in published.tables  # goes to MLflow with the tables, and is none
    own = problems(lab, *(path for path in published.tables if path != register))
    assert len(own) == len(published.tables) - 1
    assert set(own.values()) == {""}
    assert set(own) <= set(problems(lab))


def test_claims_that_were_withdrawn_still_show(lab: Any) -> None:
    """A study that claims nothing any more has a table that says what it claimed, and when it took that back."""
    raw = {**lab.matrix.plan.study.model_dump(mode="json"), "claims": {}}
    matrix = build_matrix(make_study(raw, "test"), lambda config: lab.name)
    register_claims(lab.folder, matrix)
    write_record(lab.folder, study_record(matrix))
    published = write.write_study(lab.folder, lab.name)
    path = lab.folder.study(lab.name).path
    assert {path / f"claim-verdicts.{form}" for form in FORMS} <= set(published.tables)
    text = (path / "claim-verdicts.md").read_text(encoding="utf-8")
    assert "after 11 of 12 trials: a -- gate > none: withdrawn; speed, too: withdrawn." in text
    assert set(problems(lab, *(path / f"claim-verdicts.{form}" for form in FORMS)).values()) == {""}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.12345678901234567", "0.12345678901234568", True),
        ("a 1.2345678901234567e-05, b", "a 1.2345678901234569e-05, b", True),
        ("-2.4934721498721234", "-2.4934721498721", True),  # the same number, to fewer digits
        ("0.12345678901234567", "0.12345679901234567", False),
        ("0.12345678901234567", "-0.12345678901234567", False),
        ("2.4935", "2.4936", False),
        ("2.49350", "2.4935", False),
        ("n 3, 0.12345678901234567", "n 4, 0.12345678901234567", False),
        ("0.12345678901234567", "0.12345678901234567 0.5", False),
        ("1.2345678901234567e-05", "1.2345678901234567e-06", False),
        ("0.12345678901234567", "null", False),
    ],
)
def test_only_the_last_digits_of_full_precision_may_differ(one: str, other: str, same: bool) -> None:
    """Another processor adds in another order; nobody's rounding changes a number that was written for reading."""
    assert same_text(one, other) == same_text(other, one) == same


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_table_of_another_processor_holds(form: str, lab: Any) -> None:
    """The last digit of a mean is no finding; the sixth is one."""
    path = lab.folder.study(lab.name).path / f"comparison.{form}"
    text = path.read_text(encoding="utf-8")
    number = next(number for number in re.findall(r"\d\.\d{14,}", text) if float(number) > 0.1)
    for edited, holds in ((float(number) * (1 + 4e-16), True), (float(number) * (1 + 1e-6), False)):
        assert repr(edited) != number
        path.write_bytes(text.replace(number, repr(edited)).encode())
        assert (problems(lab, path)[path.name] == "") == holds


def test_all_forms_of_a_real_table_load(lab: Any) -> None:
    """CSV in pandas with numbers as numbers, JSON without NaN, HTML as one table: with the stamp in them."""
    path = lab.folder.study(lab.name).path
    for kind in ("comparison", "claim-verdicts", "pivot"):
        frame = pd.read_csv(path / f"{kind}.csv")
        assert set(frame["study_hash"]) == {lab.record.hash}
        assert set(frame["commit"]) == {"this commit"}
        json.loads((path / f"{kind}.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        page = Page((path / f"{kind}.html").read_text(encoding="utf-8"))
        assert page.elements.count("table") == len(page.comments) == 1
        assert ("a -- gate > none" if kind == "claim-verdicts" else "sdpa") in page.text
        table, _, after = (path / f"{kind}.tex").read_text(encoding="utf-8").partition("\\end{tabular}")
        assert table.count("\\toprule") == 1
        assert all(line.startswith("%") for line in after.strip().splitlines())
    frame = pd.read_csv(path / "comparison.csv")
    assert set(frame["study"]) == {lab.name}
    for name in ("mean", "delta", "p_t", "p_dunnett", "q_benjamini_hochberg", "detectable", "correlation"):
        assert frame[name].dtype == float
    assert frame["unfinished"].sum() == 1
    runs = runs_from_journals(lab.folder, lab.name)
    assert render(compare(runs), "md", make_stamp(runs, "comparison")) == (path / "comparison.md").read_text("utf-8")
