"""The command line: parse, call, render. What a command needs is imported when it runs, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import image_classifier
from image_classifier.cli import flags
from image_classifier.cli.settings import General, ServeSettings, Settings, load
from image_classifier.cli.targets import target_of
from image_classifier.contract.config import Value, parameters_of
from image_classifier.contract.endpoint import MAX_PORT
from image_classifier.contract.paths import path_here
from image_classifier.tuning.tune_settings import KIND as TUNE
from image_classifier.tuning.tune_settings import TuneSettings

if TYPE_CHECKING:
    from image_classifier.launch.runs import Run

GENERAL = {param.name: param for param in parameters_of(General)}
PATH = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="print one JSON document")
YES = click.option("--yes", is_flag=True, help="spend money on AWS without asking")
DRY_RUN = click.option("--dry-run", is_flag=True, help="print the requests to AWS and send none")
DATA = flags.setting("", GENERAL["data"], "Options")


@dataclass
class Call:
    """What stands before the command."""

    debug: bool = False
    file: Path | None = None
    given: dict[str, Value] = field(default_factory=dict)

    def settings(self, given: dict[str, Value] | None = None, best: Path | None = None) -> Settings:
        """All settings, with the flags of a command on top."""
        return load(self.given | (given or {}), file=self.file, best=best)


class Commands(flags.StoryGroup):
    """The commands in the order of the story."""

    stories = {  # noqa: RUF012  # a constant of the class
        "From images to predictions": (
            "check",
            "sample-data",
            "tune",
            "train",
            "serve",
            "predict",
            "evaluate",
            "export",
        ),
        "Look after it": ("report", "rules", "status", "logs", "delete", "prune", "config", "demo"),
        "On SageMaker (--target sagemaker)": ("doctor", "batch", "register", "cost"),
    }


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda text: text.replace("_", "-"),
    },
    epilog="""
python deploy.py sample-data data                  # or your own data/CLASS/*.jpg
python deploy.py tune --data data --trials 8
python deploy.py train --data data --best tune-20260102-030405
python deploy.py serve                             # in one terminal
python deploy.py predict photo.jpg                 # in another
""",
)
@click.option("--config", "file", type=PATH, help="settings file  [default: deploy.toml, if there is one]")
@flags.setting("", GENERAL["target"], "Options")
@flags.setting("", GENERAL["runs_dir"], "Options")
@click.option("--debug", is_flag=True, help="show the traceback and the end of the log with an error")
@click.version_option(image_classifier.__version__, message="%(version)s")
@click.pass_obj
def app(call: Call, file: Path | None, target: str | None, runs_dir: str | None, debug: bool) -> None:
    """Folders of images to a tuned ResNet50 behind an endpoint, on this machine."""
    call.debug, call.file = debug, file
    call.given = {key: value for key, value in (("target", target), ("runs_dir", runs_dir)) if value is not None}


@app.command()
@click.argument("data", type=PATH, required=False, help="the data set; without it, data of the settings")
@AS_JSON
@click.option("--html", "page", metavar="FILE", type=PATH, help="write the findings as one page with pictures")
@click.pass_obj
def check(call: Call, data: Path | None, as_json: bool, page: Path | None) -> int:
    """Look for unreadable files, duplicates, lookalikes, bad pictures and imbalance in DATA."""
    from image_classifier.cli import show_data

    settings = call.settings()
    return show_data.check(path_here(data or settings.general.data), settings.train, as_json=as_json, page=page)


@app.command(name="sample-data")
@click.argument("folder", metavar="DIR", type=PATH, help="a new folder")
@click.option("--classes", default=4, show_default=True, help="number of classes, 2 to 8")
@click.option(
    "--images", default=30, show_default=True, help="training images a class; a quarter more to valid and test"
)
@click.option("--size", default=96, show_default=True, help="side of the images in pixels, 32 to 1024")
@click.option("--seed", default=0, show_default=True, help="another seed makes other images")
def sample_data(folder: Path, classes: int, images: int, size: int, seed: int) -> None:
    """Make a small photo-like data set in DIR."""
    from image_classifier.cli import render
    from image_classifier.vision.sample_data import make_sample_data

    held_out = max(1, round(images / 4))
    count = make_sample_data(
        path_here(folder),
        num_classes=classes,
        train_per_class=images,
        valid_per_class=held_out,
        test_per_class=held_out,
        size=size,
        seed=seed,
    )
    render.note(f"{count} images in {classes} classes: {folder}")
    render.note(f"next: python deploy.py train --data {folder} --weights none --image-size 64")


@app.command(
    epilog="""
python deploy.py tune --data data --trials 8 --parallel 2
python deploy.py tune --resume tune-20260102-030405 --trials 16
python deploy.py tune --data data --from tune-20260102-030405 --strategy Hyperband
""",
)
@DATA
@click.option("--name", default="", help="added to the name of the run's folder")
@click.option("--resume", metavar="RUN", default="", help="go on with an interrupted search")
@YES
@DRY_RUN
@flags.settings_of(TuneSettings, "tune", "Search", without=("seed", "warm_start"))
@flags.from_searches
@flags.hyperparameters(without=("epochs",))
@click.pass_obj
def tune(call: Call, /, *, data: str | None, name: str, resume: str, yes: bool, dry_run: bool, **given: Any) -> None:
    """Search the best hyperparameters with many training jobs.

    What is searched stands under [tune.search] in the settings file: learning rate and batch size by default. A
    hyperparameter that is given as a flag is not searched.
    """
    from image_classifier.cli import show_jobs
    from image_classifier.tuning import tuner as tuning

    chosen = flags.given(given, "tune", "train")
    target = target_of(call.settings(chosen | _data(data)), yes=yes, dry_run=dry_run)
    if resume:
        _refuse(
            resume, {key: value for key, value in chosen.items() if key not in tuning.RESUME_MAY_CHANGE}, data, name
        )
        found = target.resume_tuning(_run(target.settings, resume, kind=TUNE), chosen)
    else:
        found = target.tune(name)
    if found is not None:
        show_jobs.tuned(found)


@app.command(
    epilog="""
python deploy.py train --data data --epochs 20 --lr 0.02
python deploy.py train --data data --best tune-20260102-030405
python deploy.py train --resume train-20260102-030405
""",
)
@DATA
@click.option("--best", metavar="FILE|RUN", default="", help="take the best hyperparameters of a tuning run")
@click.option("--name", default="", help="added to the name of the run's folder")
@click.option("--resume", metavar="RUN", default="", help="go on with an interrupted training")
@YES
@DRY_RUN
@flags.hyperparameters()
@click.pass_obj
def train(
    call: Call, /, *, data: str | None, best: str, name: str, resume: str, yes: bool, dry_run: bool, **given: Any
) -> None:
    """Train a model."""
    from image_classifier.cli import show_jobs
    from image_classifier.launch import training_run as training
    from image_classifier.tuning.tuner import find_best

    chosen = flags.given(given, "train")
    settings = call.settings(chosen | _data(data))
    if best:
        runs_dir = Path(settings.general.runs_dir)
        settings = call.settings(chosen | _data(data), best=find_best(best, runs_dir))
    target = target_of(settings, yes=yes, dry_run=dry_run)
    if resume:
        _refuse(resume, chosen, data, name or best)
        outcome = target.resume_training(_run(settings, resume, kind=training.KIND))
    else:
        show_jobs.announce(settings)
        outcome = target.train(name)
    if outcome is not None:
        show_jobs.trained(outcome)


@app.command(
    epilog="""
python deploy.py serve
python deploy.py serve train-20260102-030405 --port 9000
python deploy.py serve model.tar.gz
""",
)
@click.argument("model", metavar="[MODEL|RUN]", required=False, default="", help="model.tar.gz, or a run")
@YES
@DRY_RUN
@flags.settings_of(ServeSettings, "serve", "Options")
@click.pass_obj
def serve(call: Call, /, model: str, yes: bool, dry_run: bool, **given: Any) -> None:
    """Serve a model.tar.gz, or the model of a run (the newest without a name), until Ctrl-C."""
    target_of(call.settings(flags.given(given, "serve")), yes=yes, dry_run=dry_run).serve(model)


@app.command(
    epilog="""
python deploy.py report --open
python deploy.py report downloaded/output
python deploy.py report s3://bucket/jobs/NAME
""",
)
@click.argument("run", metavar="[RUN|FOLDER|S3]", required=False, default="", help="a run, or a job's output")
@click.option("--open", "browse", is_flag=True, help="show it in the browser")
@AS_JSON
@click.pass_obj
def report(call: Call, run: str, browse: bool, as_json: bool) -> None:
    """Make the report of a training or a search again (the newest without a name)."""
    from image_classifier.cli import report_command as show_report

    show_report.report(call.settings(), run, as_json=as_json, browse=browse)


@app.command()
@click.argument("run", metavar="[RUN|FOLDER|S3]", required=False, default="", help="a run, or a job's output")
@flags.of_rules
@AS_JSON
@click.pass_obj
def rules(call: Call, /, run: str, names: str, explain: str, **how: bool) -> int:
    """Judge a training by the debugger's rules again (the newest without a name)."""
    from image_classifier.cli import rules_command

    return rules_command.explain(explain, **how) if explain else rules_command.rules(call.settings(), run, names, **how)


@app.command()
@click.argument("run", metavar="[RUN]", required=False, default="", help="its name, or its folder")
@AS_JSON
@click.pass_obj
def status(call: Call, run: str, as_json: bool) -> None:
    """List the runs, or show one of them."""
    from image_classifier.cli import show_jobs
    from image_classifier.launch.runs import list_runs

    settings = call.settings()
    runs = [_run(settings, run)] if run else list_runs(Path(settings.general.runs_dir))
    if any(each.is_active_remotely for each in runs):  # loads the SDK
        from image_classifier.cli.render import Console
        from image_classifier.sagemaker.status import refresh

        refresh(runs, settings.sagemaker, Console())
    if run:
        show_jobs.one_run(*runs, as_json=as_json)
    else:
        show_jobs.all_runs(runs, Path(settings.general.runs_dir), as_json=as_json)


@app.command()
@click.argument("run", metavar="[RUN]", required=False, default="", help="its name, or its folder")
@click.option("-f", "--follow", is_flag=True, help="go on until the job ends")
@click.pass_obj
def logs(call: Call, run: str, follow: bool) -> None:
    """Print what a job logged (the newest without a name)."""
    from image_classifier.cli import show_jobs

    settings = call.settings()
    found = _run(settings, run)
    if follow and found.is_active_remotely:
        from image_classifier.cli.render import Console
        from image_classifier.sagemaker import status

        status.follow(found, settings.sagemaker, Console())
    else:
        show_jobs.log(found, follow=follow)


@app.command(
    epilog="""
python deploy.py config
python deploy.py config --example > deploy.toml
""",
)
@click.option("--example", is_flag=True, help="print a settings file with every setting at its default")
@AS_JSON
@click.pass_obj
def config(call: Call, example: bool, as_json: bool) -> None:
    """Show every setting and where its value comes from."""
    from image_classifier.cli import show_data
    from image_classifier.cli.example_file import example_file

    if example:
        click.echo(example_file(), nl=False)
        return
    show_data.settings(call.settings(), as_json=as_json)


@app.command()
@click.argument("folder", metavar="[DIR]", type=PATH, default=Path("demo"), help="where everything is kept")
@click.option(
    "--port", type=click.IntRange(1, MAX_PORT), help="port to serve on  [default: 8080, or the next free one]"
)
def demo(folder: Path, port: int | None) -> int:
    """Go through all of the above on sample images, in DIR (default: demo)."""
    from image_classifier.cli.demo import run_demo

    return run_demo(path_here(folder), port=port)


@app.command()
@click.argument("run", metavar="RUN", help="its name, or its folder")
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def delete(call: Call, run: str, yes: bool) -> None:
    """Remove a run: what it made on AWS, or its folder here."""
    from image_classifier.cli.delete_command import delete

    settings = call.settings()
    delete(_run(settings, run), settings.sagemaker, yes=yes)


@app.command(epilog="\npython deploy.py prune --keep 5\n")
@click.option("--keep", type=click.IntRange(min=0), required=True, help="how many runs of each kind stay, the newest")
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def prune(call: Call, keep: int, yes: bool) -> None:
    """Remove the folders of old runs of this machine."""
    from image_classifier.cli.delete_command import prune

    prune(Path(call.settings().general.runs_dir), keep, yes=yes)


def _data(data: str | None) -> dict[str, Value]:
    return {} if data is None else {"data": data}


def _run(settings: Settings, text: str, kind: str = "") -> Run:
    from image_classifier.launch.runs import find_run

    return find_run(Path(settings.general.runs_dir), text, kind=kind)


def _refuse(run: str, chosen: dict[str, Value], *others: str | None) -> None:
    """A resumed run keeps its settings: raises a usage error when some were given."""
    if chosen or any(others):
        raise click.UsageError(f"{run} goes on with the settings it was started with: give --resume alone")
