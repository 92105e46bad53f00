"""`deploy.py serve` and `delete` where the endpoint is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.aws.conftest import ENDPOINT, ENDPOINT_ARN, described, golden_answers, names, only_run
from tests.aws.gate import Body, Gate

from image_classifier.launch.runs import list_runs

Deploy = Callable[..., tuple[int, str, str]]


class Existing:
    """An endpoint that is there already, and what UpdateEndpoint makes of it: moto does not know that operation."""

    def __init__(self, gate: Gate, *, takes_effect: bool = True) -> None:
        self.config = "serve-old"
        self.updates: list[Body] = []
        self.tags: list[Body] = []
        self._takes_effect = takes_effect
        gate.answer("DescribeEndpoint", self.describe)
        gate.answer("UpdateEndpoint", self.update)
        gate.answer("AddTags", self.tag)

    def describe(self, body: Body) -> Body:
        return described(body, "InService", EndpointConfigName=self.config)

    def update(self, body: Body) -> Body:
        self.updates.append(body)
        if self._takes_effect or body["EndpointConfigName"] == "serve-old":
            self.config = body["EndpointConfigName"]
        return {"EndpointArn": ENDPOINT_ARN}

    def tag(self, body: Body) -> Body:
        self.tags = body["Tags"]
        return {"Tags": self.tags}


def test_existing_endpoint_is_updated_blue_green(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    existing = Existing(gate)
    gate.invoke = golden_answers(model)
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 0, err
    (update,) = existing.updates
    policy = update["DeploymentConfig"]
    assert policy["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": f"{ENDPOINT}-5xx"}]}
    assert policy["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["WaitIntervalInSeconds"] == 300
    assert [name for name, _ in gate.calls].index("UpdateEndpoint") > [name for name, _ in gate.calls].index(
        "CreateEndpointConfig"
    )
    assert any(tag["Value"] == only_run(project).name for tag in existing.tags)
    assert not gate.bodies("CreateEndpoint")


def test_update_with_wrong_answers_goes_back_to_what_was_there(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    existing = Existing(gate)
    gate.invoke = golden_answers(model, wrong=True)
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert "does not reproduce its golden sample" in err
    assert existing.config == "serve-old"
    assert len(existing.updates) == 2
    assert not gate.bodies("DeleteEndpoint")
    assert not names("list_models", "ModelName")
    assert not names("list_endpoint_configs", "EndpointConfigName")


def test_update_that_sagemaker_rolls_back_is_a_failure(gate: Gate, deploy: Deploy, archive: Path, model: Path) -> None:
    existing = Existing(gate, takes_effect=False)
    gate.invoke = golden_answers(model)
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert "error: the update was rolled back" in err
    assert existing.config == "serve-old"
    assert not gate.bodies("DeleteEndpoint")


def test_endpoint_that_another_run_has_updated_is_not_deleted(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    gate.invoke = golden_answers(model)
    assert deploy("serve", str(archive), "--yes")[0] == 0
    first = only_run(project)
    ours = gate.bodies("CreateEndpoint")[0]["Tags"]
    another = [{"Key": "image-classifier:id", "Value": "another"}]
    gate.answer("ListTags", lambda body: {"Tags": another if body["ResourceArn"] == ENDPOINT_ARN else ours})
    code, out, err = deploy("delete", first.name, "--yes")
    assert code == 0, err
    assert f"left\tendpoint {ENDPOINT} belongs to another run by now" in out
    assert names("list_endpoints", "EndpointName") == [ENDPOINT]


def test_endpoint_that_is_changing_is_not_touched(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    gate.answer("DescribeEndpoint", lambda body: described(body, "Updating"))
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert f"error: the endpoint {ENDPOINT} is Updating and cannot be updated now" in err
    assert not list_runs(project / "runs")
