"""Files that are there whole or not at all, and the JSON that every command prints or keeps."""

from pathlib import Path

from jsage._internal.files import replaced, to_json


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with replaced(path) as file:
        file.write(text.encode())


def write_json(result: dict, target: str | None) -> None:
    """To a file, or (`-`) as the last line of standard output; None: nowhere."""
    if target == "-":
        print(to_json(result))
    elif target:
        write_whole(Path(target), to_json(result, indent=1) + "\n")
