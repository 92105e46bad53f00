"""`deploy.py tune` on SageMaker. moto knows tuning jobs but not their trials: the gate answers for those."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.aws.conftest import ACCOUNT, only_run, put_outputs, set_settings, trained
from tests.aws.gate import Body, Fault, Gate

from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.launch.runs import Status, create_run, list_runs

Deploy = Callable[..., tuple[int, str, str]]
ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/"


def history(*accuracies: float) -> list[dict[str, float]]:
    return [
        {"epoch": i, "validation:accuracy": accuracy, "validation:loss": 1 - accuracy}
        for i, accuracy in enumerate(accuracies, 1)
    ]


TRIALS: list[tuple[str, dict[str, str], str, list[dict[str, float]], str]] = [
    ("t-001", {"lr": "0.0123456789", "batch_size": '"2"'}, "Completed", history(0.5, 0.9, 0.8), ""),
    ("t-002", {"lr": "0.05", "batch_size": "4"}, "Stopped", history(0.3), ""),
    (
        "t-003",
        {"lr": "0.1", "batch_size": "4"},
        "Failed",
        [],
        "AlgorithmError: the training loss became nan, exit code: 1",
    ),
]


def summary(name: str, values: dict[str, str], status: str, rows: list[dict[str, float]], reason: str) -> Body:
    body: Body = {
        "TrainingJobName": name,
        "TrainingJobArn": ARN + name,
        "CreationTime": 1_700_000_000,
        "TrainingStartTime": 1_700_000_100,
        "TrainingEndTime": 1_700_000_160,
        "TrainingJobStatus": status,
        "TunedHyperParameters": values,
    }
    if rows:
        best = max(row["validation:accuracy"] for row in rows)
        metric = {"MetricName": "best:accuracy", "Value": best}
        body["FinalHyperParameterTuningJobObjectiveMetric"] = metric
    return body | ({"FailureReason": reason} if reason else {})


def tuned(gate: Gate, trials: list[Any]) -> None:
    """After the tuning job is created, its trials have run."""

    def create(request: Body) -> None:
        output = request["TrainingJobDefinition"]["OutputDataConfig"]["S3OutputPath"]
        for name, _, _, rows, _ in trials:
            if rows:
                put_outputs(output, name, None, rows)

    gate.after["CreateHyperParameterTuningJob"] = create
    gate.answer(
        "ListTrainingJobsForHyperParameterTuningJob",
        lambda body: {"TrainingJobSummaries": [summary(*trial) for trial in trials]},
    )


def test_tuning_writes_the_files_that_train_takes(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    tuned(gate, TRIALS)
    code, out, err = deploy("tune", "--yes")
    assert code == 0, err
    run = only_run(project)
    assert run.record().status == Status.COMPLETED
    best = json.loads((run.path / "best.json").read_text())
    assert best["hyperparameters"] == {"lr": "0.0123456789", "batch_size": "2"}
    assert (best["value"], best["epoch"], best["trial"]) == (0.9, 2, 1)  # the best epoch's, not the last one's
    table = (run.path / "trials.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table[1:]] == ["Completed", "Pruned", "Failed"]
    assert "the training loss became nan" in table[3]
    assert (run.path / "tuning.svg").stat().st_size > 1000
    assert "trial 1/3  lr=0.01235 batch_size=2  0.9000  Completed" in err
    assert "cost: 3 training jobs on 1 x ml.g5.xlarge" in err
    assert "0.9000" in out

    gate.after["CreateTrainingJob"] = trained(archive)
    code, _, err = deploy("train", "--yes", "--best", run.name)
    assert code == 0, err
    (sent,) = gate.bodies("CreateTrainingJob")
    assert (sent["HyperParameters"]["lr"], sent["HyperParameters"]["batch_size"]) == ("0.0123456789", "2")


def test_request_holds_the_local_search_space_and_names(gate: Gate, deploy: Deploy, project: Path) -> None:
    tuned(gate, TRIALS)
    set_settings(project, spot=True, network_isolation=True)
    code, _, err = deploy("tune", "--yes", "--name", "a-name-that-is-rather-long")
    assert code == 0, err
    (sent,) = gate.bodies("CreateHyperParameterTuningJob")
    config, definition = sent["HyperParameterTuningJobConfig"], sent["TrainingJobDefinition"]
    assert len(sent["HyperParameterTuningJobName"]) <= 32
    assert config["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ],
        "IntegerParameterRanges": [],
        "CategoricalParameterRanges": [{"Name": "batch_size", "Values": ["2", "4"]}],
    }
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 2}
    assert config["HyperParameterTuningJobObjective"] == {"Type": "Maximize", "MetricName": "best:accuracy"}
    names = [each["Name"] for each in definition["AlgorithmSpecification"]["MetricDefinitions"]]
    assert "best:accuracy" in names
    assert METRIC_BY_NAME["best:accuracy"].maximize
    assert not {"lr", "batch_size"} & set(definition["StaticHyperParameters"])
    assert definition["StaticHyperParameters"]["epochs"] == "3"
    assert definition["Environment"] == {"CLASSIFIER_SHARED_CHECKPOINTS": "1"}
    assert definition["EnableNetworkIsolation"] is True
    assert not {"DebugHookConfig", "ProfilerConfig"} & set(definition)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"strategy": "Random", "early_stopping": False},
            {"Strategy": "Random", "TrainingJobEarlyStoppingType": "Off"},
        ),
        (
            {"strategy": "Hyperband"},
            {
                "Strategy": "Hyperband",
                "TrainingJobEarlyStoppingType": "Off",
                "StrategyConfig": {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 3}},
            },
        ),
        ({"warm_pool_s": 600}, {"Strategy": "Bayesian", "TrainingJobEarlyStoppingType": "Auto"}),
    ],
)
def test_strategies(gate: Gate, deploy: Deploy, project: Path, settings: dict[str, Any], expected: Body) -> None:
    strategy = settings.pop("strategy", "Bayesian")
    set_settings(project, **settings)
    code, out, err = deploy("tune", "--dry-run", "--strategy", strategy)
    assert code == 0, err
    (request,) = json.loads(out)
    config = request["request"]["HyperParameterTuningJobConfig"]
    assert {name: config[name] for name in expected} == expected
    resources = request["request"]["TrainingJobDefinition"]["ResourceConfig"]
    assert resources.get("KeepAlivePeriodInSeconds", 0) == settings.get("warm_pool_s", 0)


def test_ctrl_c_leaves_the_search_running_and_status_writes_what_it_found(
    gate: Gate, deploy: Deploy, project: Path
) -> None:
    def interrupt(body: Body) -> Body:
        os.kill(os.getpid(), signal.SIGINT)
        raise Fault("ThrottlingException", "so that it cannot have ended")

    tuned(gate, TRIALS)
    finished = gate.answers.pop("ListTrainingJobsForHyperParameterTuningJob")
    gate.answer("ListTrainingJobsForHyperParameterTuningJob", interrupt)
    code, _, err = deploy("tune", "--yes")
    assert code == 130
    run = only_run(project)
    assert f"deploy.py status {run.name}" in err
    assert not gate.bodies("StopHyperParameterTuningJob")
    gate.answer("ListTrainingJobsForHyperParameterTuningJob", finished)
    code, out, err = deploy("status", run.name)
    assert code == 0, err
    assert "status\tCompleted" in out
    assert (run.path / "best.json").is_file()


def test_search_in_which_every_trial_fails_names_the_first_cause(gate: Gate, deploy: Deploy, project: Path) -> None:
    tuned(gate, [TRIALS[2]])
    code, _, err = deploy("tune", "--yes")
    assert code == 1
    assert "error: no trial gave a result: the training loss became nan" in err
    assert only_run(project).record().status == Status.FAILED


def test_quota_for_parallel_jobs_is_one_sentence(gate: Gate, deploy: Deploy) -> None:
    message = "The account-level service limit 'ml.g5.xlarge for training job usage' is 1 Instances, with"
    gate.fail("CreateHyperParameterTuningJob", Fault("ResourceLimitExceeded", message))
    code, _, err = deploy("tune", "--yes")
    assert code == 1
    assert "error: the account's quota 'ml.g5.xlarge for training job usage' is 1" in err


def test_a_search_learns_from_a_run_and_says_whether_data_and_algorithm_are_the_same(
    gate: Gate, deploy: Deploy, project: Path
) -> None:
    tuned(gate, TRIALS)
    assert deploy("tune", "--yes")[0] == 0
    parent = only_run(project)
    job = gate.bodies("CreateHyperParameterTuningJob")[0]["HyperParameterTuningJobName"]
    named = {"ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": job}]}
    for more, kind in (((), "IdenticalDataAndAlgorithm"), (("--weight-decay", "0.5"), "TransferLearning")):
        code, out, err = deploy("tune", "--dry-run", "--from", parent.name, *more)
        assert code == 0, err
        (request,) = json.loads(out)
        assert request["request"]["WarmStartConfig"] == named | {"WarmStartType": kind}
    code, _, err = deploy("tune", "--dry-run", "--from", parent.name, "--objective", "validation:loss")
    assert code == 2
    assert "went by validation:accuracy, this search goes by validation:loss" in err
    code, out, err = deploy("--target", "local", "tune", "--from", parent.name, "--from", parent.name)
    assert (code, "is named twice" in err) == (2, True)  # and what ran there is of use here, too


def test_sagemaker_does_not_learn_from_a_search_on_this_machine(deploy: Deploy, project: Path) -> None:
    made = create_run(project / "runs", "tune", details={"tune": {"objective": "validation:accuracy"}})
    code, _, err = deploy("tune", "--yes", "--from", made.name)
    assert code == 2
    assert "ran on this machine" in err
    assert list_runs(project / "runs") == [made]  # nothing was begun
