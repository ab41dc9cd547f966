"""One page of a run: what it draws over its steps, curves, tables, its config.

Pictures are inside, so that the page opens anywhere, without a network.
"""

import base64
import html
import json
import pathlib

from goku_jax import files
from goku_jax.config import flatten
from goku_jax.eval import results

NAME = "report.html"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #555; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .6rem;
  border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
"""


def write(workdir, folder) -> pathlib.Path:
  """Writes the page of a run into the folder of its `Results`.

  Args:
    workdir: of the run, with config.json and what training left there.
    folder: of results.jsonl and curves.

  Returns:
    path: of the page.
  """
  workdir, folder = pathlib.Path(workdir), pathlib.Path(folder)
  records = results.Results(folder).records()
  config = json.loads((workdir / "config.json").read_text())
  parts = [
    *_pictures("Drawn during training", sorted(workdir.glob("shown/*.png"))),
    *_pictures("Sheets", sorted(folder.glob("**/contact_sheet.png"))),
    *_pictures("Training", [workdir / "curves.png"]),
    *_pictures("Figures over steps", sorted(folder.glob("curves/*.png"))),
    *_tables(records),
    "<h2>Config</h2>",
    _table(["key", "value"], [[k, v] for k, v in flatten(config).items()]),
  ]
  title = html.escape(workdir.resolve().name)
  page = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">'
    f"<title>{title}</title><style>{STYLE}</style></head>"
    f"<body><h1>{title}</h1>{''.join(parts)}</body></html>"
  )
  path = folder / NAME
  files.write_whole(path, page.encode())
  return path


def _pictures(title, paths) -> list[str]:
  """Pictures under a title; nothing where there are none."""
  found = [path for path in paths if path.exists()]
  if not found:
    return []
  figures = [
    f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,'
    f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>'
    f"{html.escape(path.stem)}</figcaption></figure>"
    for path in found
  ]
  return [f"<h2>{title}</h2>", *figures]


def _tables(records) -> list[str]:
  """Of each suite its figures, one a row, and a column for each record."""
  parts = []
  for suite in dict.fromkeys(record["suite"] for record in records):
    rows = [record for record in records if record["suite"] == suite]
    names = dict.fromkeys(name for row in rows for name in row["figures"])
    head = ["", *(f"{row['step']} {row['weights']}" for row in rows)]
    body = [
      [name, *(_shown(row["figures"].get(name)) for row in rows)]
      for name in names
    ]
    commands = dict.fromkeys(row["command"] for row in rows)
    parts += [
      f"<h2>{html.escape(suite)}</h2>",
      _table(head, body),
      f"<pre>{html.escape(chr(10).join(commands))}</pre>",
    ]
  return parts


def _shown(value):
  if value is None:
    return ""
  return f"{value:.5g}" if isinstance(value, float) else value


def _table(head, rows) -> str:
  line = lambda cells, tag: "".join(
    f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells
  )
  rows = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
  rows = f"<tr>{line(head, 'th')}</tr>{rows}"
  return f'<div class="scroll"><table>{rows}</table></div>'
