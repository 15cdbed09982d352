"""Prints a quick-start command of README.md, so that CI runs exactly what newcomers are told.

eval "$(python scripts/readme_commands.py --name test)"
"""

import argparse
import pathlib
import re

NAMES = ("train", "test")


def quick_start_commands(readme: str) -> dict[str, str]:
    """The two commands of the section "Quick start", by name.

    Raises:
        ValueError: the section does not hold exactly two fenced ``sh`` blocks of one line each.
    """
    section = re.search(r"^## Quick start\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError("README.md has no section 'Quick start'")
    blocks = [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)]
    if len(blocks) != len(NAMES) or any("\n" in block for block in blocks):
        raise ValueError(f"'Quick start' must hold {len(NAMES)} sh blocks of one line each, not {blocks}")
    return dict(zip(NAMES, blocks, strict=True))


def main() -> None:
    """Prints one command."""
    parser = argparse.ArgumentParser(description="Prints a quick-start command of README.md.")
    parser.add_argument("--name", choices=NAMES, required=True)
    readme = pathlib.Path(__file__).resolve().parent.parent / "README.md"
    print(quick_start_commands(readme.read_text())[parser.parse_args().name])


if __name__ == "__main__":
    main()
