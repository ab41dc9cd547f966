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


IN_TRAINING = "in_training"  # beside other results, what training found


def write(workdir, folder) -> pathlib.Path:
  """Writes the page of a run into a folder of its `Results`.

  What training found by the same suites is on it too.

  Args:
    workdir: of the run, with config.json and what training left there.
    folder: of results.jsonl and curves.

  Returns:
    path: of the page.
  """
  workdir, folder = pathlib.Path(workdir), pathlib.Path(folder)
  inside = workdir / "evals" / IN_TRAINING
  config = json.loads((workdir / "config.json").read_text())
  parts = [
    *_pictures("Drawn during training", workdir, "shown/*.png"),
    *_pictures("Training", workdir, "curves.png"),
    *_pictures("Figures over steps", folder, "curves/*.png"),
    *_pictures("Figures over steps, in training", inside, "curves/*.png"),
    *_pictures("Sheets", folder, "**/contact_sheet.png"),
    *_tables(results.Results(folder).records(), ""),
    *_tables(results.Results(inside).records(), ", in training"),
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


def _pictures(title, folder, pattern) -> list[str]:
  """Pictures of a folder under a title; nothing where there are none."""
  figures = []
  for path in sorted(folder.glob(pattern)):
    name = html.escape(str(path.relative_to(folder).with_suffix("")))
    data = base64.b64encode(path.read_bytes()).decode()
    figures.append(
      f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
      f"<figcaption>{name}</figcaption></figure>"
    )
  if not figures:
    return []
  return [f"<h2>{title}</h2>", *figures]


def _tables(records, where) -> list[str]:
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
      f"<h2>{html.escape(suite)}{where}</h2>",
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
