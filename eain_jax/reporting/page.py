"""The report as one HTML file that needs nothing else, not even a script."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from eain_jax.reporting import document

_FOLDED = ('Data', 'Flags', 'Versions')

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1c2330; --muted: #5c6675;
  --line: #e1e5eb; --accent: #b34700; --good: #00694c; --good-back: #dff3ec;
  --bad: #a12626; --bad-back: #fbe5e3; --open: #6b5200; --open-back: #fbf0d0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12151b; --card: #1a1f28; --ink: #e6eaf0; --muted: #9aa5b5;
    --line: #2c3442; --accent: #ff9d5c; --good: #6fdcb4; --good-back: #12352a;
    --bad: #ff9c94; --bad-back: #40201f; --open: #f0cf6a; --open-back: #3a3113;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 8px; }
h2 { font-size: 1.2rem; margin: 0 0 14px; }
header p { color: var(--muted); margin: 0; overflow-wrap: anywhere; }
section, details {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 22px 24px; margin-top: 20px;
}
summary { cursor: pointer; font-size: 1.2rem; font-weight: 700; }
details[open] summary { margin-bottom: 14px; }
p { margin: 12px 0; }
section > p, li, .verdicts p, caption { overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: .93rem; max-width: 75ch; }
.tiles {
  display: grid; gap: 14px; margin-top: 24px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
}
.tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 14px 18px;
}
.tile b {
  display: block; font-size: 1.55rem; line-height: 1.25;
  font-variant-numeric: tabular-nums;
}
.tile span { color: var(--muted); font-size: .87rem; }
.scroll { overflow-x: auto; margin: 14px -24px; padding: 0 24px; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
caption {
  text-align: left; color: var(--muted); font-size: .93rem; padding: 4px 0 8px;
}
th, td { padding: 8px 12px; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th {
  font-size: .82rem; color: var(--muted); font-weight: 600;
  border-bottom: 2px solid var(--line);
}
td { border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th.quoted, td.quoted { color: var(--muted); font-style: italic; }
td.best { font-weight: 700; color: var(--accent); }
td:first-child { font-weight: 600; }
.verdicts { list-style: none; margin: 0; padding: 0; }
.verdicts li {
  display: grid; grid-template-columns: 9.5em 1fr; gap: 4px 16px;
  padding: 12px 0; border-top: 1px solid var(--line); align-items: start;
}
.verdicts p { margin: 0; }
.verdicts p + p { color: var(--muted); font-size: .93rem; grid-column: 2; }
.badge {
  justify-self: start; border-radius: 999px; padding: 2px 12px;
  font-size: .82rem; font-weight: 600; white-space: nowrap;
  color: var(--open); background: var(--open-back);
}
.badge.holds { color: var(--good); background: var(--good-back); }
.badge.fails { color: var(--bad); background: var(--bad-back); }
ul.points { padding-left: 1.1em; margin: 10px 0; }
ul.points li { margin: 5px 0; max-width: 85ch; }
pre {
  margin: 8px 0; padding: 12px 14px; border-radius: 10px; overflow-x: auto;
  background: var(--paper); font: .84rem/1.5 ui-monospace, Menlo, Consolas,
  monospace;
}
figure { margin: 8px 0 0; overflow-x: auto; }
figure img {
  display: block; width: 100%; min-width: 620px; height: auto;
  border-radius: 10px; background: #fff; padding: 8px;
}
@media (max-width: 640px) {
  main { padding: 24px 12px 48px; }
  section, details { padding: 16px; border-radius: 12px; }
  .scroll { margin: 12px -16px; padding: 0 16px; }
  .verdicts li { grid-template-columns: 1fr; }
  .verdicts p + p { grid-column: 1; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def _text(value: Any) -> str:
  """Any text as HTML shows it literally."""
  return escape(document.printable(value))


def _grid(grid: document.Grid) -> str:
  def classes(place: int, best: bool = False) -> str:
    names = ['number'] * (place >= grid.num_text)
    names += ['quoted'] * (place in grid.quoted) + ['best'] * best
    return f' class="{" ".join(names)}"' if names else ''

  head = ''.join(
    f'<th scope="col"{classes(place)}>{_text(name)}</th>'
    for place, name in enumerate(grid.header)
  )
  body = ''.join(
    '<tr>'
    + ''.join(
      f'<td{classes(place, cell.best)}>{_text(cell.text)}</td>'
      for place, cell in enumerate(row)
    )
    + '</tr>\n'
    for row in grid.rows
  )
  caption = f'<caption>{_text(grid.caption)}</caption>' if grid.caption else ''
  return (
    f'<div class="scroll" tabindex="0"><table>{caption}\n'
    f'<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
  )


def _verdict(claim: Mapping[str, Any]) -> str:
  # Of one seed a verdict is no more than what was seen once.
  name = claim['verdict'] if claim['verdict'] in ('holds', 'fails') else 'open'
  return (
    f'<li><span class="badge {name}">{_text(claim["verdict"])}</span>'
    f'<p>{_text(claim["claim"])}.</p><p>{_text(claim["measured"])}</p></li>'
  )


def _block(block: document.Block) -> str:
  match block:
    case document.Paragraph(text):
      return f'<p class="note">{_text(text)}</p>'
    case document.Points(items):
      lines = ''.join(
        '<li>'
        + (f'<b>{_text(name)}:</b> ' if name else '')
        + _text(text)
        + '</li>\n'
        for name, text in items
      )
      return f'<ul class="points">{lines}</ul>'
    case document.Verdicts(claims):
      lines = '\n'.join(_verdict(claim) for claim in claims)
      return f'<ul class="verdicts">{lines}</ul>'
    case document.Lines(lines):
      return f'<pre>{escape(chr(10).join(lines))}</pre>'
    case document.Grid():
      return _grid(block)


def _section(section: document.Section) -> str:
  body = '\n'.join(_block(block) for block in section.blocks)
  title = _text(section.title)
  if section.title in _FOLDED:
    return f'<details><summary>{title}</summary>\n{body}\n</details>'
  return f'<section>\n<h2>{title}</h2>\n{body}\n</section>'


def _figure(name: str, path: Path) -> str:
  data, title = base64.b64encode(path.read_bytes()).decode(), _text(name)
  return (
    f'<section>\n<h2>{title}</h2>\n<figure tabindex="0"><img alt="{title}" '
    f'src="data:image/png;base64,{data}"></figure>\n</section>'
  )


def _tile(value: str, text: str) -> str:
  return (
    f'<div class="tile"><b>{_text(value)}</b><span>{_text(text)}</span></div>'
  )


def render_page(report: document.Report, figures: Mapping[str, Path]) -> str:
  """`report.html`: the whole report in one file, figures included.

  Args:
    report: all else.
    figures: PNG files by the title that they get, shown after the numbers.
  """
  first, *others = report.sections
  tiles = ''.join(_tile(*tile) for tile in report.tiles)
  body = '\n'.join(
    [
      _section(first),
      *(_figure(name, Path(path)) for name, path in figures.items()),
      *(_section(section) for section in others),
    ]
  )
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{_text(report.title)}</h1>
<p>{_text(report.subtitle)}</p>
</header>
<div class="tiles">{tiles}</div>
{body}
</main>
</body>
</html>
"""
