"""Files that are there whole or not at all, and the JSON that every command prints or keeps."""

import json
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)


def write_json(result: dict, target: str | None) -> None:
    """To a file, or (`-`) as the last line of standard output; None: nowhere."""
    if target == "-":
        print(json.dumps(result))
    elif target:
        write_whole(Path(target), json.dumps(result, indent=1) + "\n")
