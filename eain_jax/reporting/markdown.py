"""A report as Markdown, which reads on GitHub and in a terminal."""

import re
import textwrap

from eain_jax.reporting import document


def _escape(text: str) -> str:
  """Text as Markdown shows it literally."""
  text = re.sub(r'&(?=#?\w+;)', '&amp;', document.printable(text))
  # A lone < stays as it is, for the reader at a terminal.
  text = re.sub(r'<(?=[A-Za-z/!?])', '&lt;', text)
  return re.sub(r'([\\`*|\[\]])', r'\\\1', text)


def _grid_lines(grid: document.Grid) -> list[str]:
  """A table whose columns align in a terminal too."""
  lines = [
    [_escape(name) for name in grid.header],
    *(
      [
        f'**{_escape(cell.text)}**' if cell.best else _escape(cell.text)
        for cell in row
      ]
      for row in grid.rows
    ),
  ]
  widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
  right = [place >= grid.num_text for place in range(len(widths))]
  rule = [
    '-' * (width - 1) + ':' if at_right else '-' * width
    for width, at_right in zip(widths, right, strict=True)
  ]
  return [
    '| '
    + ' | '.join(
      text.rjust(width) if at_right else text.ljust(width)
      for text, width, at_right in zip(line, widths, right, strict=True)
    )
    + ' |'
    for line in (lines[0], rule, *lines[1:])
  ]


def _block_lines(block: document.Block) -> list[str]:
  match block:
    case document.Paragraph(text):
      return textwrap.wrap(_escape(text), 80, break_on_hyphens=False)
    case document.Points(items):
      return [
        line
        for name, text in items
        for line in _point(f'**{_escape(name)}:** ' if name else '', text)
      ]
    case document.Verdicts(claims):
      return [
        line
        for claim in claims
        for line in _point(
          f'**{_escape(claim["verdict"])}**: ',
          f'{claim["claim"]}. {claim["measured"]}',
        )
      ]
    case document.Lines(lines):
      return ['```', *lines, '```']
    case document.Grid():
      caption = [_escape(block.caption), ''] if block.caption else []
      return caption + _grid_lines(block)


def _point(name: str, text: str) -> list[str]:
  return textwrap.wrap(
    f'- {name}{_escape(text)}',
    80,
    subsequent_indent='  ',
    break_on_hyphens=False,
    break_long_words=False,
  )


def render_markdown(report: document.Report) -> str:
  """The text of a report; figures are files beside it."""
  blocks = [
    [f'# {report.title}'],
    _block_lines(document.Paragraph(report.subtitle)),
  ]
  for section in report.sections:
    blocks.append([f'## {section.title}'])
    blocks += [_block_lines(block) for block in section.blocks]
  return '\n\n'.join('\n'.join(lines) for lines in blocks) + '\n'
