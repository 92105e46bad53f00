"""What is done with a model that is there: predict, evaluate, which knows what is right, and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from image_classifier.cli import flags
from image_classifier.cli.commands import AS_JSON, PATH, Call, app
from image_classifier.cli.settings import PredictSettings
from image_classifier.cli.targets import target_of
from image_classifier.contract.endpoint import EXPORT_FORMATS
from image_classifier.contract.paths import path_here

__all__ = ["app"]  # with these commands


@app.command(
    epilog="""
python deploy.py predict photo.jpg
python deploy.py predict data/test --top-k 1 --json > predictions.jsonl
python deploy.py predict photos --csv predictions.csv
""",
)
@click.argument("images", metavar="IMAGE|FOLDER...", nargs=-1, required=True, type=PATH, help="files and folders")
@flags.settings_of(PredictSettings, "predict", "Options")
@click.option("--json", "as_json", is_flag=True, help="print a line of JSON for each image, as the answers come")
@click.option("--csv", "csv_file", metavar="FILE", type=PATH, help="write a row for each image, as the answers come")
@click.option("--abstain", "with_abstain", is_flag=True, help="with --csv: a column, true where the model abstains")
@click.pass_obj
def predict(
    call: Call, /, images: tuple[Path, ...], as_json: bool, csv_file: Path | None, with_abstain: bool, **given: Any
) -> int:
    """Ask the endpoint about images."""
    from image_classifier.cli import render, show_answers
    from image_classifier.launch.client import find_images

    if as_json and csv_file is not None:
        raise click.UsageError("--json prints and --csv writes the same: give one of them")
    if with_abstain and csv_file is None:
        raise click.UsageError("--abstain is of --csv: tables and --json say it by themselves")
    settings = call.settings(flags.given(given, "predict"))
    connection, top_k = target_of(settings).connection(), settings.predict.top_k
    files = find_images(images, render.Console())
    writer = show_answers.writer(
        as_json=as_json, csv_file=csv_file, top_k=top_k, total=len(files), with_abstain=with_abstain
    )
    return show_answers.stream(connection.predict_all(files, top_k=top_k), writer, len(files))


@app.command(
    epilog="""
python deploy.py evaluate data
python deploy.py evaluate data/test train-20260102-030405 --out evaluation
python deploy.py evaluate labels.csv http://127.0.0.1:8080 --json
""",
)
@click.argument("data", metavar="DATA", type=PATH, help="labelled images: a data set, its test folder, or a list")
@click.argument(
    "where", metavar="[MODEL|RUN|URL]", required=False, default="", help="what is asked; without it, the endpoint"
)
@click.option("--out", metavar="DIR", type=PATH, help="also write per_class.csv, confusion.csv, test_predictions.csv")
@AS_JSON
@click.pass_obj
def evaluate(call: Call, /, data: Path, where: str, out: Path | None, as_json: bool) -> int:
    """Compare a model's served answers with the labels of DATA."""
    from image_classifier.cli import show_answers

    settings = call.settings()
    return show_answers.evaluate(target_of(settings), path_here(data), where, out=out, as_json=as_json)


@app.command(
    epilog="""
python deploy.py export --format onnx
python deploy.py export train-20260102-030405 --format openvino --out deployed/model.xml
""",
)
@click.argument("model", metavar="[MODEL|RUN]", required=False, default="", help="model.tar.gz, or a run")
@click.option(
    "--format", "kind", type=click.Choice(list(EXPORT_FORMATS)), default="onnx", show_default=True, help="of the file"
)
@click.option("--out", metavar="FILE", type=PATH, help="the file  [default: model.onnx, model.xml or model.pt]")
@click.pass_obj
def export(call: Call, /, model: str, kind: str, out: Path | None) -> None:
    """Write a model for other programs, if it still answers its golden samples there."""
    from image_classifier.cli import render
    from image_classifier.launch.export_run import export
    from image_classifier.launch.serving_run import find_archive

    file = out or Path("model").with_suffix(EXPORT_FORMATS[kind])
    if file.suffix.lower() != EXPORT_FORMATS[kind]:
        raise click.UsageError(f"a file of {kind} is called *{EXPORT_FORMATS[kind]}, not {file.name}")
    export(find_archive(model, Path(call.settings().general.runs_dir)), kind, file)
    render.facts([("model", file), ("labels and preprocessing", file.with_name(f"{file.name}.json"))])
