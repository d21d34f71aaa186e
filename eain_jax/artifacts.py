"""Files that are whole or absent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
  """Writes beside and renames, so that a reader sees all or nothing."""
  beside = path.with_name(f'.{path.name}.unfinished')
  beside.write_text(text, encoding='utf-8')
  beside.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
  """As `write_text`."""
  write_text(path, json.dumps(values, indent=2) + '\n')
