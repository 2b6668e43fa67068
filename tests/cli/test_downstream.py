"""`downstream` and `evaluate --probe`: what is measured, and which report it goes into."""

import json

import pytest

from dictionary_learning.cli import main
from dictionary_learning.evaluation import read_report
from dictionary_learning.evaluation.downstream import ProbingConfig, as_probe_tasks, probe_latents
from tests import tiny
from tests.cli.test_evaluate import OPTIONS, SITE, place, save  # noqa: F401  (fixtures)

QUICK = ["--n-resamples", "0", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def labelled(place):  # noqa: F811
    """A run with a dictionary, and labelled texts."""
    save(place / "a")
    rows = [f"{text},{n % 3},{n // 3 % 2}" for n, text in enumerate(tiny.documents(90, 9, seed=3))]
    (place / "tasks.csv").write_text("text,label,attribute\n" + "\n".join(rows))
    return place


def downstream(*words: str, ks: tuple[int, ...] = (4,)) -> int:
    """Measures; of few sizes, as most of the time goes into fits of probes, one for each size."""
    return main(["downstream", *words, "--ks", *map(str, ks), *QUICK])


def test_a_run_without_a_report_gets_one(labelled, capsys):
    assert downstream("a", "--data", "tasks.csv", ks=(1, 4)) == 0
    page = labelled / capsys.readouterr().out.strip()
    assert page == labelled / "a" / "report.html" and "Probing: tasks" in page.read_text()
    found = read_report(labelled / "a").downstream.probing
    (task,) = found.tasks
    assert task.name == "tasks" and list(task.classes) == ["0", "1", "2"] and found.settings["ks"] == [1, 4]
    # the same by Python
    from dictionary_learning import Candidate, load_dictionary, load_model

    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    config = ProbingConfig(ks=(1, 4), n_resamples=0)
    again = probe_latents(model, Candidate(task.scores[-1].name, load_dictionary(labelled / "a" / "trainer_0"), SITE),
                          as_probe_tasks(labelled / "tasks.csv"), config)  # fmt: skip
    assert [one.metrics["auc"] for one in again.tasks[0].scores] == pytest.approx(
        [one.metrics["auc"] for one in task.scores]
    )


def test_sections_are_added_to_what_is_there(labelled):
    assert main(["evaluate", "a", *OPTIONS, "--probe", "tasks.csv"]) == 0
    first = read_report(labelled / "a")
    assert first.downstream.probing.tasks[0].name == "tasks" and first.downstream.context is None
    assert (
        downstream(
            "a",
            "--tasks",
            "perturbation",
            "context",
            "--data",
            "tasks.csv",
            "--ns",
            "2",
            "--n-tokens",
            "4",
            "--ctx-len",
            "8",
        )
        == 0
    )
    both = read_report(labelled / "a")
    assert both.downstream.probing == first.downstream.probing
    assert both.downstream.perturbation.kind == "tpp" and both.downstream.context.n_tokens == 4
    assert both.dictionaries == first.dictionaries
    assert (labelled / "a" / "report.safetensors").is_file()


def test_several_runs_go_into_a_folder_of_their_own(labelled, capsys):
    save(labelled / "b", k=6)
    assert downstream("a", "b", "--data", "tasks.csv", "--label-column", "attribute") == 0
    page = labelled / capsys.readouterr().out.strip()
    assert page.parent.parent.name == "reports"
    assert list(read_report(page.parent).downstream.probing.tasks[0].classes) == ["0", "1"]
    assert json.loads((page.parent / "report.json").read_text())["downstream"]["schema_version"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nosuch"], "nosuch"),
        (["--tasks", "removal"], "needs labelled texts"),
        ([], "needs labelled texts"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--data", "sae-probes"], "sae-probes"),
        (["--data", "tasks.csv", "--label-column", "kind"], "'kind'"),
        (["--data", "tasks.csv", "--tasks", "perturbation", "--label-column", "attribute"], "three classes"),
        (["--data", "tasks.csv", "--tasks", "absorption"], "words of one token"),
    ],
)
def test_what_cannot_be_measured_is_one_line(labelled, caplog, monkeypatch, words, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert downstream("a", *words) == 2
    assert said in caplog.text
    assert not (labelled / "a" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["probing", "perturbation", "--label-column", "attribute"], "three classes"),
        (["probing", "perturbation", "--data", "few.csv"], "TPP needs three"),
        (["probing", "removal"], "label has 3 classes"),
        (["probing", "removal", "--label-column", "attribute", "--attribute-column", "kind"], "no column 'kind'"),
        (["probing", "removal", "--data", "tasks.csv", "tasks.csv"], "removal needs one file"),
        (["absorption", "probing", "--data", "few.csv", "--label-column", "attribute"], "needs two classes"),
        (["probing", "context", "--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_is_given_is_checked_before_the_model_is_loaded(labelled, caplog, monkeypatch, words, said):
    few = [f"{text},{n % 2 if n > 1 else 2},{min(n, 1)}" for n, text in enumerate(tiny.documents(18, 9, seed=3))]
    (labelled / "few.csv").write_text("text,label,attribute\n" + "\n".join(few))
    loaded = []
    monkeypatch.setattr("dictionary_learning.models.load_model", lambda *given, **options: loaded.append(given))
    data = [] if "--data" in words else ["--data", "tasks.csv"]
    assert downstream("a", *data, "--tasks", *words) == 2
    assert said in caplog.text and not loaded
    assert not (labelled / "a" / "report.json").exists()


def test_a_measure_that_fails_loses_none_before_it(labelled, caplog):
    assert downstream("a", "--data", "tasks.csv", "--tasks", "probing", "absorption") == 2
    assert "words of one token" in caplog.text
    found = read_report(labelled / "a").downstream
    assert found.probing.tasks[0].name == "tasks" and found.absorption is None
    assert "downstream" in (labelled / "a" / "report.html").read_text()
