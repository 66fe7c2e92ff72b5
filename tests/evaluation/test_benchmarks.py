"""lm-eval's own tasks on local data: its numbers are those of direct computation, in one process and in several."""

import json
import math
import os
import subprocess
import sys

import pytest
import task_data
from lm_eval.api.model import LM

from goldfinch.errors import UserError
from goldfinch.evaluation import paper
from goldfinch.evaluation.benchmarks import TaskSettings, evaluate_tasks
from goldfinch.evaluation.harness import GoldFinchLM


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def data(tmp_path):
    task_data.write_all(tmp_path / "data")
    return tmp_path / "data"


class Direct(LM):
    """The slow, obvious model of lm-eval: every request is read whole."""

    def __init__(self, lm, direct):
        super().__init__()
        self._lm, self._direct = lm, direct

    def loglikelihood(self, requests):
        def score(context, continuation):
            moved = context[len(context.rstrip()) :] + continuation
            ids = list(context.rstrip().encode()) or [self._lm.tokenizer.end_of_text]
            return self._direct(self._lm, ids, moved.encode())

        return [score(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [self._direct(self._lm, [self._lm.tokenizer.end_of_text], r.args[0].encode())[0] for r in requests]

    def generate_until(self, requests):
        raise NotImplementedError


TASKS = (*task_data.SPLITS, "mmlu_anatomy")


def test_every_task_of_the_paper_has_the_numbers_of_direct_computation(lm, direct, data, tmp_path):
    ours = evaluate_tasks(GoldFinchLM(lm), TaskSettings(tasks=TASKS, data=data, num_fewshot=0), tmp_path / "out")
    expected = evaluate_tasks_directly(Direct(lm, direct), data, tmp_path)
    assert ours.results["results"].keys() == set(TASKS)
    for task, metrics in expected.items():
        for name, value in metrics.items():
            if isinstance(value, float) and "stderr" not in name:
                ours_, direct_ = ours.results["results"][task][name], value
                if "perplexity" in name:  # nats
                    ours_, direct_ = math.log(ours_), math.log(direct_)
                assert ours_ == pytest.approx(direct_, abs=1e-3), (task, name)
    beside = {row[:2]: row[4:] for row in ours.rows}
    assert beside["hellaswag", "acc"] == ("28.7", "28.1", "29.1")
    assert beside["openbookqa", "acc"] == ("", "", "")
    assert beside["average of the paper's", "acc"] == ("42.8", "43.0", "44.2")
    assert (tmp_path / "out" / "results.md").read_text().count("| piqa |") == 2


def evaluate_tasks_directly(model, data, tmp_path):
    from lm_eval import simple_evaluate

    from goldfinch.evaluation.local_tasks import find_tasks, use_local_data

    manager = find_tasks(TASKS)
    use_local_data(manager, TASKS, data, tmp_path / "tasks", num_fewshot=0)
    return simple_evaluate(model, tasks=list(TASKS), task_manager=manager, num_fewshot=0)["results"]


def test_few_shot_examples_are_computed_once(lm, data, tmp_path):
    settings = TaskSettings(tasks=("mmlu_anatomy",), data=data, num_fewshot=5)
    evaluation = evaluate_tasks(GoldFinchLM(lm), settings, tmp_path / "out")
    assert evaluation.counts.asked > 6 * evaluation.counts.computed
    assert evaluation.rows[0][4:] == ("", "", "")
    answers = (tmp_path / "out").glob("samples_mmlu_anatomy_*.jsonl")
    assert len(next(answers).read_text().splitlines()) == 3


def test_an_interrupted_evaluation_continues_from_its_cache(lm, data, tmp_path, monkeypatch):
    settings = TaskSettings(tasks=("hellaswag",), data=data, use_cache=tmp_path / "answers")
    first = evaluate_tasks(GoldFinchLM(lm), settings, tmp_path / "out")
    monkeypatch.setattr(GoldFinchLM, "_loglikelihood_tokens", lambda *args, **options: 1 / 0)
    again = evaluate_tasks(GoldFinchLM(lm), settings, tmp_path / "out")
    assert again.rows == first.rows


def test_missing_data_is_named_with_what_to_fetch(lm, data, tmp_path):
    for path in (data / "hellaswag").iterdir():
        path.unlink()
    with pytest.raises(UserError) as error:
        evaluate_tasks(GoldFinchLM(lm), TaskSettings(tasks=("hellaswag",), data=data), tmp_path / "out")
    assert "load_dataset('Rowan/hellaswag', split='validation')" in str(error.value)
    assert str(data / "hellaswag" / "validation.jsonl") in str(error.value)
    (data / "mmlu_anatomy" / "dev.jsonl").unlink()
    settings = TaskSettings(tasks=("mmlu_anatomy",), data=data, num_fewshot=5)
    with pytest.raises(UserError, match=r"split='dev'\)"):
        evaluate_tasks(GoldFinchLM(lm), settings, tmp_path / "out")
    evaluate_tasks(GoldFinchLM(lm), TaskSettings(tasks=("mmlu_anatomy",), data=data), tmp_path / "out")


def test_a_group_reads_the_local_data_of_its_tasks(data):
    from goldfinch.evaluation.local_tasks import find_tasks, task_names

    names = task_names(find_tasks(["mmlu"]), ["mmlu"])
    assert len(names) == 57
    assert "mmlu_anatomy" in names


def test_results_that_cannot_be_written_are_an_error(lm, data, tmp_path, monkeypatch):
    from lm_eval.loggers import EvaluationTracker

    monkeypatch.setattr(EvaluationTracker, "save_results_samples", lambda *args, **options: None)
    with pytest.raises(UserError, match="cannot write"):
        evaluate_tasks(GoldFinchLM(lm), TaskSettings(tasks=("sciq",), data=data), tmp_path / "out")


def test_the_average_is_of_all_tasks_of_the_paper_or_of_none():
    for number, expected in enumerate(paper.AVERAGE):
        accuracies = {task: values[number] for (task, metric), values in paper.ZERO_SHOT.items() if metric == "acc"}
        assert paper.average_accuracy(accuracies) == pytest.approx(expected, abs=0.06)
        assert paper.average_accuracy(dict(list(accuracies.items())[1:])) is None


def test_two_processes_share_the_documents_and_give_the_numbers_of_one(lm, tmp_path):
    task_data.write_all(tmp_path / "data", count=4)  # as many for each: lm-eval fills up with repetitions
    lm.save(tmp_path / "model")
    arguments = ["evaluate", tmp_path / "model", "--tasks", "hellaswag,lambada_openai", "--data", tmp_path / "data"]
    arguments += ["--dtype", "float32", "--device", "cpu"]
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    results = []
    for count in (1, 2):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m"] if count > 1 else []
        words = [sys.executable, "-m", *launcher, "goldfinch", *arguments, "-o", tmp_path / f"{count}"]
        process = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        (path,) = (tmp_path / f"{count}").glob("results_*.json")
        results.append(json.loads(path.read_text()))
    one, two = results
    assert one["config"]["tokens_asked"] == two["config"]["tokens_asked"]
    for task, metrics in one["results"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float) and "stderr" not in name}
        assert {name: two["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-3)


def test_a_group_is_evaluated_on_local_data(lm, data, tmp_path, monkeypatch):
    from goldfinch.evaluation import local_tasks

    for subject in ("virology", "anatomy"):
        task_data.write(data, f"mmlu_{subject}", "test", task_data.mmlu_questions(subject))
    members = "task: [mmlu_anatomy, mmlu_virology]"
    group = f"group: mmlu_two\n{members}\naggregate_metric_list: [{{metric: acc, weight_by_size: true}}]\n"
    (tmp_path / "two.yaml").write_text(group)
    found = local_tasks.find_tasks(["mmlu_anatomy"])
    found.task_index["mmlu_two"] = local_tasks.dataclasses.replace(
        found.task_index["mmlu"],
        name="mmlu_two",
        yaml_path=tmp_path / "two.yaml",
        cfg=local_tasks.yaml.safe_load(group),
    )
    monkeypatch.setattr("goldfinch.evaluation.benchmarks.find_tasks", lambda names: found)
    evaluation = evaluate_tasks(GoldFinchLM(lm), TaskSettings(tasks=("mmlu_two",), data=data), tmp_path / "out")
    scores = {row[0]: float(row[2]) for row in evaluation.rows}
    assert scores.keys() == {"mmlu_two", "mmlu_anatomy", "mmlu_virology"}
    assert scores["mmlu_two"] == pytest.approx((scores["mmlu_anatomy"] + scores["mmlu_virology"]) / 2, abs=0.11)
