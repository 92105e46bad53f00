"""What there is on SageMaker alone: doctor, batch and register."""

from __future__ import annotations

import math
from pathlib import Path

import click

from image_classifier.cli.answer_commands import app
from image_classifier.cli.commands import AS_JSON, DRY_RUN, YES, Call
from image_classifier.contract.errors import ConfigError

__all__ = ["app"]  # with these commands
RATE = "predictions a second that a machine answered at full load"
APPROVALS = ("PendingManualApproval", "Approved", "Rejected")


@app.command()
@AS_JSON
@click.pass_obj
def doctor(call: Call, as_json: bool) -> int:
    """Check credentials, role, bucket, images and quotas."""
    from image_classifier.cli import show_remote
    from image_classifier.sagemaker.doctor import examine

    return show_remote.checks(examine(call.settings().sagemaker), as_json=as_json)


@app.command(
    epilog="""
python deploy.py --target sagemaker batch photos
python deploy.py --target sagemaker batch s3://bucket/photos/ --model train-20260102-030405 --json
""",
)
@click.argument(
    "sources", metavar="IMAGE|FOLDER...|S3_PREFIX", nargs=-1, required=True, help="files and folders, or one s3://..."
)
@click.option("--model", metavar="MODEL|RUN", default="", help="model.tar.gz or run, the newest training without it")
@YES
@DRY_RUN
@AS_JSON
@click.pass_obj
def batch(call: Call, *, sources: tuple[str, ...], model: str, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Ask about many images with one job and no endpoint."""
    from image_classifier.cli import show_data
    from image_classifier.cli.render import Console
    from image_classifier.launch.serving_run import find_archive
    from image_classifier.sagemaker.batch import predict

    settings = call.settings()
    aws, runs_dir, precision = settings.sagemaker, Path(settings.general.runs_dir), settings.serve.precision
    archive, view = find_archive(model, runs_dir), Console()
    answers = predict(aws, sources, archive, runs_dir, precision=precision, yes=yes, dry_run=dry_run, view=view)
    return 0 if answers is None else show_data.predictions("the batch job", iter(answers), as_json=as_json)


@app.command(
    epilog="""
python deploy.py cost --rate 42
python deploy.py cost --rate 42 --cores 2 --busy 0.3
python deploy.py cost --rate 900 --instance ml.g5.xlarge
python deploy.py cost --rate 900 --instance ml.g6e.xlarge --hour 2.5
""",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), required=True, help=RATE)
@click.option("--cores", type=click.IntRange(min=1), help="cores that it had  [default: this machine's]")
@click.option(
    "--busy",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="share of the paid hours in which there is as much to do",
)
@click.option("--instance", metavar="TYPE", help="the rate was measured on this instance type: tell of it alone")
@click.option("--hour", type=click.FloatRange(min=0, min_open=True), help="its price an hour, instead of the table's")
@AS_JSON
@click.pass_obj
def cost(
    call: Call, *, rate: float, cores: int | None, busy: float, instance: str | None, hour: float | None, as_json: bool
) -> None:
    """Guess what 1,000 predictions cost on each instance type."""
    from image_classifier.cli import show_remote
    from image_classifier.contract.machine import usable_cores
    from image_classifier.sagemaker.cost_by_instance import LEFT_OUT, cost_of_measured, cost_of_thousand

    if not all(math.isfinite(number) for number in (rate, busy, hour or 0)):
        raise click.UsageError("--rate, --busy and --hour are finite numbers")
    if instance and cores:
        raise click.UsageError("--cores is for a rate of another machine, --instance for one of its own")
    if hour and not instance:
        raise click.UsageError("--hour is the price of an --instance")
    if instance:
        row, assumed = cost_of_measured(instance, rate, hour=hour, busy=busy)
        show_remote.costs([row], assumed, as_json=as_json)
        return
    rows, assumed = cost_of_thousand(rate, cores or usable_cores(), call.settings().sagemaker, busy=busy)
    show_remote.costs(rows, assumed, left_out=LEFT_OUT, as_json=as_json)


@app.command(
    epilog="""
python deploy.py --target sagemaker register
python deploy.py --target sagemaker register train-20260102-030405 --status Approved
python deploy.py --target sagemaker register --approve image-classifier/3
python deploy.py --target sagemaker serve image-classifier/3
""",
)
@click.argument("model", metavar="[MODEL|RUN]", required=False, default="", help="model.tar.gz, or a run")
@click.option(
    "--status",
    type=click.Choice(APPROVALS),
    help="whether the version may be served  [default: PendingManualApproval; with --approve Approved]",
)
@click.option("--approve", metavar="VERSION", default="", help="judge a version that is there: ARN, GROUP/NUMBER, run")
@DRY_RUN
@click.pass_obj
def register(call: Call, *, model: str, status: str | None, approve: str, dry_run: bool) -> None:
    """Add a model to SageMaker's model registry, with its metrics."""
    from image_classifier.cli import show_remote
    from image_classifier.cli.render import Console
    from image_classifier.launch.serving_run import find_archive
    from image_classifier.sagemaker import registering

    if approve and (model or dry_run):
        raise click.UsageError("--approve judges a version that is there: give it alone, or with --status")
    settings = call.settings()
    if settings.general.target != "sagemaker":
        raise ConfigError(
            "models are registered with SageMaker, for others to approve and serve them there",
            "give --target sagemaker; on this machine a run is its model's record: `deploy.py serve RUN`",
        )
    aws, runs_dir, view = settings.sagemaker, Path(settings.general.runs_dir), Console()
    if approve:
        verdict = status or APPROVALS[1]
        show_remote.judged(registering.judge(aws, approve, runs_dir, verdict, view), verdict)
        return
    archive, verdict = find_archive(model, runs_dir), status or APPROVALS[0]
    if arn := registering.register(aws, archive, runs_dir, status=verdict, dry_run=dry_run, view=view):
        show_remote.judged(arn, verdict)
