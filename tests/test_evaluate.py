"""The command on hand-made judgments and on published ones: results, tables, page; its mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_grading, a_pair, a_question, write
from tests.stages.small_runs import make_recipe
from zephyr_jax import evaluate, judge_agreement
from zephyr_jax.evaluation.mt_bench import CATEGORIES
from zephyr_jax.evaluation.published import MT_BENCH
from zephyr_jax.evaluation_recipe import evaluation_recipe_to_yaml, load_evaluation_recipe
from zephyr_jax.recipe import recipe_to_yaml
from zephyr_jax.records import InputError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two models graded on 16 questions, one pair of them judged in both orders, and two contests of AlpacaEval."""
    questions = [a_question(number, CATEGORIES[number % 8]) for number in range(16)]
    gradings = [
        a_grading(number, (5 if model == "ours" else 3) + number % 4, turn=turn, model=model)
        for number in range(16)
        for turn in (1, 2)
        for model in ("ours", "theirs")
    ]
    pairs = [a_pair(number, "model_1", "model_1" if number < 4 else "model_2") for number in range(8)]
    annotations = [
        {"generator_1": "base", "generator_2": model, "index": index, "preference": 1 + (index % 4 < share),
         "len_1": 10, "len_2": 10 + index}
        for index in range(40)
        for model, share in (("ours", 3), ("theirs", 2))
    ]  # fmt: skip
    files = {
        "questions": write(tmp_path / "question.jsonl", questions),
        "judgments": write(tmp_path / "judgments.jsonl", [*gradings, *pairs, a_grading(0, -1)]),
        "annotations": write(tmp_path / "annotations.jsonl", annotations),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: small
output_dir: {tmp_path / "runs"}
report: false
statistics: {{resamples: 500}}
alpaca_eval:
  annotations: {files["annotations"]}
mt_bench:
  questions: {files["questions"]}
  judgments: [{files["judgments"]}]
agreement:
  - {{judge: {files["judgments"]}, reference: {files["judgments"]}}}
""")
    return path


def test_results_and_tables_come_from_stored_judgments(recipe: Path, tmp_path: Path, capsys) -> None:
    """Mean of 5, 6, 7, 8 and of 3, 4, 5, 6: 6.5 and 4.5, 2 apart on every question; 30 and 20 wins of 40."""
    assert evaluate.main(["--config", str(recipe)]) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "runs" / "small" / "evaluation"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    ours, theirs = results["mt_bench"]["models"]
    assert (ours["score"], theirs["score"], ours["num_unparsed"]) == (6.5, 4.5, 1)
    assert list(ours["categories"]) == list(CATEGORIES) and ours["num_groups"] == 16
    (comparison,) = results["mt_bench"]["comparisons"]
    assert comparison["difference"] == 2 and comparison["interval"] == [2, 2] and not comparison["within_noise"]
    assert [model["win_rate"] for model in results["alpaca_eval"]["models"]] == [75, 50]
    (contest,) = results["alpaca_eval"]["comparisons"]
    assert contest["difference"] == 25 and not contest["within_noise"]
    assert results["mt_bench"]["pairs"][0]["position"]["went_to_the_first"] == 4
    assert results["mt_bench"]["pairs"][0]["judge_agreement"]["status"] == "measured"
    assert ours["judge_agreement"]["kind"] == "gradings" and ours["judge_agreement"]["share"] == 1
    assert results["alpaca_eval"]["models"][0]["judge_agreement"] == {"status": "not measured"}
    assert {kind["kind"] for kind in results["agreement"][0]["agreements"]} == {"verdicts", "gradings"}
    for text in (
        "| ours   | base     | -     | 75.0000",
        "| not measured ",
        "Agreement of the judge with a trusted judge: not measured.",
        "| 100.0 % of 4",
        "Agreement of gpt-4 with gpt-4: agrees on 100.0%",
        "ours is 2.00 above theirs",
        "theirs is within noise of base",
        "gpt-4 gave no rating for 1 of 33 answers of ours",
        "| writing    | 4        |",
        "GPT-3.5-turbo",
        "agrees on 100.0%",
    ):
        assert text in printed.out
    assert "recipe.yaml, results.json in" in printed.err and not (folder / "report.html").exists()
    again = load_evaluation_recipe(folder / "recipe.yaml")
    assert evaluation_recipe_to_yaml(again) == (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert again == load_evaluation_recipe(recipe)


def test_no_jax_is_needed_for_stored_judgments(recipe: Path, repository: Path) -> None:
    code = (
        "import sys; from zephyr_jax import evaluate; status = evaluate.main(sys.argv[1:]); "
        "sys.exit(status or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, "--config", str(recipe)], cwd=repository, check=True, timeout=120)


def test_json_goes_to_stdout_alone_and_the_same_seed_gives_the_same(recipe: Path, tmp_path: Path, capsys) -> None:
    assert evaluate.main(["--config", str(recipe), "--json"]) == 0
    first = capsys.readouterr().out
    assert json.loads(first) == json.loads((tmp_path / "runs/small/evaluation/results.json").read_text())
    assert evaluate.main(["--config", str(recipe), "--json"]) == 0
    assert capsys.readouterr().out == first


def test_results_of_another_recipe_are_not_written_over(recipe: Path, tmp_path: Path, capsys) -> None:
    """As `train` has it; what decides no result may change, and --new-run takes the next free name."""
    assert evaluate.main(["--config", str(recipe)]) == 0
    file = tmp_path / "runs/small/evaluation/results.json"
    before = file.read_bytes()
    assert evaluate.main(["--config", str(recipe), "budget.requests=5", "models={m: {model: x}}"]) == 2
    assert evaluate.main(["--config", str(recipe), "budget.requests=5"]) == 0
    capsys.readouterr()
    assert evaluate.main(["--config", str(recipe), "mt_bench=null", "seed=1"]) == 2
    said = capsys.readouterr().err
    assert "seed: 42 -> 1" in said and "mt_bench" in said and "--new-run" in said and file.read_bytes() == before
    assert evaluate.main(["--config", str(recipe), "seed=1", "--new-run"]) == 0
    assert (tmp_path / "runs/small-2/evaluation/results.json").exists() and file.read_bytes() == before
    assert evaluate.main(["--config", str(recipe), "name=trained", "--new-run"]) == 0  # free: it has no results
    assert (tmp_path / "runs/trained/evaluation/results.json").exists()


def test_the_page_shows_the_radar_beside_published_models(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")
    assert evaluate.main(["--config", str(recipe), "report=true", "name=page"]) == 0
    page = (tmp_path / "runs/page/evaluation/report.html").read_text(encoding="utf-8")
    assert 'aria-label="MT-Bench categories of ours and theirs"' in page and "GPT-3.5-turbo" in page
    assert MT_BENCH[0].source in page and page.count("<svg") == 3


def test_the_page_of_the_training_run_of_that_name_has_the_results(recipe: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")
    page = tmp_path / "runs/small/report.html"
    page.parent.mkdir(parents=True)
    (page.parent / "recipe.yaml").write_text(recipe_to_yaml(make_recipe(tmp_path)))
    assert evaluate.main(["--config", str(recipe), "report=true"]) == 0
    assert "ours against base" in page.read_text(encoding="utf-8")
    assert f"report: {page}" in capsys.readouterr().err


def test_published_categories_average_to_the_published_score() -> None:
    """Twenty gradings each, so that the mean of the categories is the mean of all."""
    whole = [entry for entry in MT_BENCH if entry.categories]
    assert len(whole) == 2 and all(entry.source for entry in MT_BENCH)
    for entry in whole:
        assert set(entry.categories) == set(CATEGORIES)
        assert sum(entry.categories.values()) / 8 == pytest.approx(entry.score, abs=1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mt_bench=null", None),
        ("mt_bench.judgements=[x]", r"unknown key 'mt_bench.judgements'; did you mean 'mt_bench.judgments'"),
        ("alpaca_eval.annotations=[]", "alpaca_eval.annotations: "),
        ("statistics.resamples=10", "statistics.resamples: got 10, wanted at least 100"),
        ("mt_bench.judgments=null", "mt_bench: has neither judgments nor judging"),
        ("alpaca_eval.annotations=null", "alpaca_eval: has neither annotations nor judging"),
        (
            "mt_bench.judging={answers: a, prompts: p, replay: r, mode: pair, repetitions: 2}",
            "mt_bench.judging.repetitions: got 2, wanted 1 with mode pair",
        ),
        (
            "mt_bench.judging={answers: a, prompts: p}",
            r"mt_bench.judging: got no judge, wanted one of judge \(a name of models\), replay",
        ),
        ("mt_bench.judging={answers: a, prompts: p, judge: j, replay: r}", "mt_bench.judging: got judge and replay"),
        (
            "mt_bench.judging={answers: a, prompts: p, judge: gpt}",
            r"mt_bench.judging.judge: got 'gpt', wanted one of models \(none\)",
        ),
        ("mt_bench.judging={answers: a, replay: r}", "mt_bench.judging.prompts: got none, wanted one for replay"),
        ("mt_bench.judging={answers: a, rules: r, max_tries: 3}", "judging.max_tries: got a value, but rules are no"),
        ("mt_bench.judging={answers: a, rules: r, repetitions: 2}", "rules say the same each time"),
        ("alpaca_eval.judging={outputs: a, baseline: b, rules: r, both_orders: true}", "rules look at no order"),
        (
            "agreement=[{judge: a}]",
            r"agreement\[0\]: got judge, wanted reference .*, judge and reference, or measured",
        ),
        ("agreement=[{reference: a}]", "agreement.0: got a reference alone, but nothing is judged here"),
        ("agreement=[{judge: a, reference: b, measured: c}]", "got judge and reference and measured, wanted"),
        ("models={j: {model: x, concurrency: 3}}", "models.j.concurrency: got a value, but without base_url"),
        ("alpaca_eval.length_control={}", "length_control.file: got none, wanted AlpacaEval's df_gamed.csv"),
        ("alpaca_eval.length_control={glm: length_controlled_minimal, file: x}", "reads none; leave it out"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(recipe: Path, override: str, message: str | None) -> None:
    if message is None:
        assert load_evaluation_recipe(recipe, [override]).mt_bench is None
        return
    with pytest.raises(InputError, match=message):
        load_evaluation_recipe(recipe, [override])


def test_a_recipe_without_anything_to_evaluate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: nothing\n")
    with pytest.raises(InputError, match="recipe.yaml: has none of the blocks alpaca_eval, mt_bench, academic"):
        load_evaluation_recipe(path)


def test_a_file_that_is_not_there_is_the_users_error(recipe: Path, capsys) -> None:
    assert evaluate.main(["--config", str(recipe), "mt_bench.questions=nowhere.jsonl"]) == 2
    assert "'nowhere.jsonl': no such file" in capsys.readouterr().err


def test_without_matplotlib_the_page_is_refused_before_any_work(recipe: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert evaluate.main(["--config", str(recipe), "report=true", "mt_bench.questions=nowhere.jsonl"]) == 2
    assert "report=false" in capsys.readouterr().err


def test_agreement_is_a_command(tmp_path: Path, capsys) -> None:
    judge = write(tmp_path / "judge.jsonl", [a_grading(number, number % 5 + 1) for number in range(20)])
    reference = write(tmp_path / "gpt-4.jsonl", [a_grading(number, 10 - number % 5) for number in range(20)])
    assert judge_agreement.main(["--judge", judge, "--reference", reference]) == 0
    printed = capsys.readouterr()
    assert "judge.jsonl beside gpt-4.jsonl: " in printed.err and "WEAK" in printed.err
    assert json.loads(printed.out)["agreements"][0]["rank_correlation"] == pytest.approx(-1)
    other = write(tmp_path / "other.jsonl", [a_grading(99, 5)])
    assert judge_agreement.main(["--judge", judge, "--reference", other]) == 2
    assert "no item with a parsed judgment by both" in capsys.readouterr().err
    assert judge_agreement.main(["--judge", judge, "--reference", reference, "--items", "5", "--both-orders"]) == 2
    assert "--items, --both-orders: for a model that is asked now" in capsys.readouterr().err


def test_the_shipped_recipe_gives_the_published_figures(zephyr_data: Path, repository: Path, tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path}", "report=false", "statistics.resamples=500"]
    config = repository / "configs" / "evaluation" / "published.yaml"
    assert evaluate.main(["--config", str(config), *overrides]) == 0
    results = json.loads((tmp_path / "published-judgments/evaluation/results.json").read_text(encoding="utf-8"))
    rates = {model["model"]: model for model in results["alpaca_eval"]["models"]}
    assert round(rates["zephyr-7b-beta"]["win_rate"], 4) == 90.5978
    assert round(rates["zephyr-7b-beta"]["standard_error"], 4) == 1.0287
    assert round(rates["OpenHermes-2.5-Mistral-7B"]["win_rate"], 4) == 10.3404
    assert {model["model"]: model["score"] for model in results["mt_bench"]["models"]} == pytest.approx(
        {"mistral-orpo-trl": 7.165625, "mistral-orpo-capybara": 6.81875}
    )
