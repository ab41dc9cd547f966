"""The page of a run: whole by itself, and nothing in it is taken for markup."""

import html.parser
import json

import numpy as np

from goku_jax.data import video_io
from goku_jax.eval import report, results


class Page(html.parser.HTMLParser):
  """Collects what a page links to, its tables' cells and open tags."""

  def __init__(self, text):
    super().__init__()
    self.links, self.cells, self.open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.links += [v for k, v in attrs if k in ("src", "href")]
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1] in ("td", "th"):
      self.cells.append(data)


def test_a_page_has_pictures_tables_and_config_and_needs_no_network(tmp_path):
  run, folder = tmp_path / "run <b>", tmp_path / "run <b>" / "evals"
  (run / "shown").mkdir(parents=True)
  (run / "config.json").write_text(json.dumps({"model": {"text": "<script>"}}))
  picture = np.zeros((1, 16, 16, 3), np.uint8)
  video_io.write_video(run / "shown" / "00000005.png", picture, fps=1)
  with results.open_results(folder) as log:
    for step in (5, 10):
      figures = {"loss": {"all": 1.0 / step}, "network": "<i>"}
      log.add("losses", step, "ema", {}, figures)
  with results.open_results(folder / report.IN_TRAINING) as log:
    log.add("losses", 7, "params", {}, {"loss": {"all": 0.3}})
  sheet = folder / "00000005" / "ema" / "contact_sheet.png"
  sheet.parent.mkdir(parents=True)
  video_io.write_video(sheet, picture, fps=1)
  text = report.write(run, folder).read_text()
  page = Page(text)
  assert not page.open  # every tag is closed
  assert len(page.links) == 4  # drawn in training, two curves, a sheet
  assert "00000005/ema/contact_sheet" in text
  assert all(x.startswith("data:image/png;base64,") for x in page.links)
  for cell in ("5 ema", "10 ema", "7 params", "0.2", "<i>", "<script>"):
    assert cell in page.cells
  assert "<script>" not in text
  assert "http" not in text.replace("doctype html", "")
