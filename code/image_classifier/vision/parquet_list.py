"""A list of images in a Parquet file, as the text of the CSV file that it could be.

pyarrow reads it where it is installed (`pip install pyarrow`, or the extra `parquet`). The environment does without its
171 MB: pandas, which smdebug imports, would load them in every training.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Collection
from pathlib import Path

from image_classifier.contract.errors import DataError, describe

PARQUET_SUFFIXES = (".parquet", ".pq")
_ROWS = 10_000  # at a time


def parquet_text(file: Path, columns: Collection[str], limit: int) -> str:
    """The columns of those names, in upper or lower case, as CSV with a first line of their names.

    Args:
        limit: characters that the text may have: a small file may hold much.

    Raises:
        DataError: there is no pyarrow, or the file cannot be read.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        how = f"pandas.read_parquet({file.name!r}).to_csv({file.with_suffix('.csv').name!r}, index=False)"
        raise DataError(
            f"{file} is a Parquet file, and there is no pyarrow here to read it",
            f"pip install pyarrow, or save it as CSV: {how}",
        ) from None
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    try:
        with file.open("rb") as stream:
            table = parquet.ParquetFile(stream)
            names = [name for name in table.schema_arrow.names if name.strip().lower() in columns]
            writer.writerow(names or table.schema_arrow.names)
            for batch in table.iter_batches(_ROWS, columns=names) if names else ():
                cells = [batch.column(name).to_pylist() for name in names]
                writer.writerows(
                    ["" if cell is None else str(cell) for cell in row] for row in zip(*cells, strict=True)
                )
                if text.tell() > limit:
                    raise DataError(
                        f"{file} holds more than {limit / 1e9:g} GB", "list the images in several data sets"
                    )
    except DataError:
        raise
    except Exception as error:  # any: pyarrow has many of its own
        reason = describe(error).partition("\n")[0]
        raise DataError(
            f"{file} cannot be read as a Parquet file: {reason}", "write it again, or take a CSV file"
        ) from None
    return text.getvalue()
