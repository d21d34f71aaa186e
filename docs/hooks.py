"""Puts a table of every setting in the place of its mark in settings.md."""

import dataclasses
import html

from eain_jax import config

MARK = '<!-- settings -->'


def _tables() -> str:
  lines = []
  for name, of in vars(config).items():
    is_config = isinstance(of, type) and issubclass(of, config.Settings)
    if not is_config or not dataclasses.is_dataclass(of):
      continue
    if not (fields := dataclasses.fields(of)):
      continue
    lines += [f'### {name}', '', (of.__doc__ or '').split('\n')[0], '']
    lines += ['| setting | default | what it is |', '|---|---|---|']
    for field in fields:
      default = field.default
      if isinstance(default, tuple):
        default = ','.join(map(str, default))
      text = html.escape(field.metadata['help'])
      if choices := field.metadata['choices']:
        text += f' One of: {", ".join(map(str, choices))}.'
      text = text.replace('|', '\\|').replace('*', '\\*')
      shown = f'`{default}`' if default not in ('', None) else ''
      lines.append(f'| `--{field.name}` | {shown} | {text} |')
    lines.append('')
  return '\n'.join(lines)


def on_page_markdown(markdown: str, **_: object) -> str:
  """Called by mkdocs for every page."""
  return markdown.replace(MARK, _tables()) if MARK in markdown else markdown
