from pathlib import Path


def draw(results: Path) -> None:
    ...
