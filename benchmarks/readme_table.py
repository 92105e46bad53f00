"""README's table of results, made from the files in results/ and nothing else.

    python benchmarks/readme_table.py     # writes it again; `make docs` does so

A test holds the table against the files: a figure that was measured anew is one command away from README.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results, written by `make docs` -->\n", "<!-- end of the results -->\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Args:
        what: that was measured.
        file: in results/.
        begins: the first cells of the row there.
        columns: of the figures, joined by `between`.
        figure: how they are said; `{}` is the figures.
    """

    what: str
    file: str
    begins: tuple[str, ...]
    columns: tuple[str, ...]
    between: str = ", "
    figure: str = "{}"


ROWS = (
    Row(
        what="small way to install beside the large one",
        file="install.md",
        begins=("`.[serve]`",),
        columns=("MB",),
        figure="{} MB",
    ),
    Row(
        what="the large one, with local training",
        file="install.md",
        begins=("`.[all]`",),
        columns=("MB",),
        figure="{} MB",
    ),
    Row(
        what="serving image for CPUs, beside the one with CUDA",
        file="image_small.md",
        begins=("**all**",),
        columns=("serve-cpu", "serve"),
        between=" of ",
        figure="{} MB",
    ),
    Row(
        what="a head trained on 500 photographs for ten epochs, on two cores with AMX, beside a tutorial's script",
        file="training.md",
        begins=("ours",),
        columns=("speed",),
        figure="{} times as fast",
    ),
    Row(
        what="a second job on the same photographs",
        file="training.md",
        begins=("ours, a second job on the same pictures",),
        columns=("speed",),
        figure="{} times as fast",
    ),
    Row(
        what="a search of eight such trainings, beside one training by that script",
        file="tuning.md",
        begins=("8 trials of 10 epochs, fine_tune=head",),
        columns=("time / the baseline's",),
        figure="{} of its time",
    ),
    Row(
        what="the whole network there, ten epochs with the same crops, beside a script of who knows how",
        file="training_full.md",
        begins=("ours, crops as large as what is served",),
        columns=("whole process",),
        figure="time: {}",
    ),
    Row(
        what="images a second of its epochs, beside that script's",
        file="training_full.md",
        begins=("ours, crops as large as what is served",),
        columns=("images a second",),
    ),
    Row(
        what="the whole network trained from nothing on two cores without AMX, the same crops, beside that script",
        file="training_full_drawn.md",
        begins=("ours, crops as large as what is served",),
        columns=("whole process", "test, beside competent's"),
        between="; test accuracy: ",
        figure="time: {}",
    ),
    Row(
        what="the same with crops that grow (`--start-scale 0.57`)",
        file="training_grows_drawn.md",
        begins=("ours, crops that grow from 0.57 of their side",),
        columns=("whole process", "test, beside competent's"),
        between="; test accuracy: ",
        figure="time: {}",
    ),
    Row(
        what="the whole network on an H200: 8,351 photos, 133 classes, ten epochs, from start to model",
        file="gpu.md",
        begins=("a", "8351 photos, 10 epochs, from process start to model in 90 s or less"),
        columns=("measured",),
    ),
    Row(
        what="a training step there, beside PyTorch's own operations, both as a CUDA graph",
        file="gpu.md",
        begins=("a", "our step is faster than torch's own"),
        columns=("measured",),
    ),
    Row(
        what="a training's share of what is fair beside a busy process, without AMX",
        file="neighbour.md",
        begins=("ours", "1"),
        columns=("of a fair share",),
    ),
    Row(
        what="speed of loading photos as data sets have them, 320 x 240 pixels, beside torchvision's ImageFolder",
        file="data.md",
        begins=("of DATA, 320 x 240 in the middle", "2", "ours, cache=none"),
        columns=("speed, first epoch",),
        figure="{} times",
    ),
    Row(
        what="speed of loading 12-megapixel photos, beside torchvision's ImageFolder",
        file="data.md",
        begins=("4000 x 3000", "2", "ours, cache=none"),
        columns=("speed, first epoch",),
        figure="{} times",
    ),
    Row(
        what="the same in later epochs, with the cache",
        file="data.md",
        begins=("4000 x 3000", "2", "ours, cache=decoded"),
        columns=("speed, later",),
        figure="{} times",
    ),
    Row(
        what="served answers in bfloat16 that are those of float32, a head on photographs",
        file="formats.md",
        begins=("bfloat16", "OpenVINO"),
        columns=("same answer",),
    ),
    Row(
        what="the same in int8, which this model's gate refuses (99 % are needed)",
        file="formats.md",
        begins=("int8", "OpenVINO"),
        columns=("same answer",),
    ),
    Row(
        what="requests a second of the endpoint in int8, beside sagemaker-inference's stock handler, 1 client",
        file="serve.md",
        begins=("1", "ours in int8"),
        columns=("requests a second",),
        figure="{} times",
    ),
    Row(
        what="requests a second of the endpoint in int8, beside sagemaker-inference's stock handler, 4 clients",
        file="serve.md",
        begins=("4", "ours in int8"),
        columns=("requests a second",),
        figure="{} times",
    ),
    Row(
        what="requests a second behind our front, beside none, 4 clients",
        file="front.md",
        begins=("our front", "4"),
        columns=("requests a second",),
        figure="{} times",
    ),
    Row(
        what="memory of an endpoint with 2 workers in int8",
        file="server_memory.md",
        begins=("int8", "all of them"),
        columns=("2 workers",),
        figure="{} MB",
    ),
    Row(
        what="photos saved again that are found, and pairs found that are none",
        file="lookalikes.md",
        begins=("as a JPEG of quality 85",),
        columns=("found", "false pairs beside"),
        between=" and ",
    ),
)


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def figure(row: Row) -> tuple[str, str]:
    """What the results' file says, and the command in it. Raises LookupError when it has no such row or column."""
    text = (RESULTS / row.file).read_text(encoding="utf-8")
    wanted = [cell.strip("*") for cell in row.begins]
    header: list[str] = []
    before = ""
    for line in text.splitlines():
        if not line.startswith("|"):
            before = line
            continue
        if not before.startswith("|"):
            header = cells(line)
        before = line
        found = cells(line)
        if found[: len(wanted)] == wanted and set(row.columns) <= set(header):
            said = row.between.join(found[header.index(column)] for column in row.columns)
            command = re.search(r"^`(.*(?:bench_\w+|gpu_check)\.py.*)`", text, re.MULTILINE)
            if command is None:
                break
            return row.figure.format(said), command[1].removeprefix("PYTHONPATH=code:. ")
    raise LookupError(f"{row.file} has no row {row.begins} with {row.columns}")


def table() -> str:
    """The table as README has it."""
    lines = ["| what | measured | by |\n", "|---|---|---|\n"]
    for row in ROWS:
        said, command = figure(row)
        lines.append(f"| {row.what} | [{said}](benchmarks/results/{row.file}) | `{command}` |\n")
    return "".join(lines)


def written(text: str) -> str:
    """README's text with the table as the results say it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> None:
    """Writes README."""
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
