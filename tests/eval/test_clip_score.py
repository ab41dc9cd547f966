"""CLIPScore: pixels and tokens as CLIP takes them, and scalings by name."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tokenizers

from goku_jax.convert import formats
from goku_jax.eval import clip_score
from goku_jax.typing import UserError
from tests import clip_folder

CAPTIONS = ["Two red dogs", clip_folder.SENTENCES[0] * 3, ""]
SIZES = (24, 24), (30, 51), (77, 31), (9, 20), (224, 3)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  return clip_folder.write(tmp_path_factory.mktemp("clip") / "theirs")


@pytest.fixture(scope="module")
def folder(theirs):
  out = theirs.parent / "ours"
  formats.convert(theirs, "clip", out, reverse=False)
  return out


@pytest.fixture(scope="module")
def judge(folder):
  return clip_score.load(folder)


def image(*size, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_each_scaling_is_its_formula():
  cosines = [np.array([0.2, -0.1]), np.array([0.4])]
  score = lambda scaling, x=cosines: clip_score.score(x, scaling)
  assert score("cosine") == pytest.approx(0.225)
  assert score("hessel") == pytest.approx(2.5 * (0.1 + 0.4) / 2)
  assert score("torchmetrics") == pytest.approx(22.5)
  far = [np.array([-0.3])]
  assert score("hessel", far) == score("torchmetrics", far) == 0
  assert score("cosine", far) == pytest.approx(-0.3)
  with pytest.raises(UserError, match="scaling='openai' is not one of hessel"):
    score("openai")
  with pytest.raises(UserError, match="needs a sample"):
    score("cosine", [])


def test_a_video_is_the_mean_over_its_frames_and_sizes_may_differ(judge):
  videos = [image(3, 30, 40), image(1, 50, 24, seed=1)]
  cosines = judge.cosines(iter(videos), CAPTIONS[:2])
  assert [len(x) for x in cosines] == [3, 1]
  text = judge.embed_texts(CAPTIONS[:2])
  for video, cosine, row in zip(videos, cosines, text, strict=True):
    expected = judge.embed_images(video) @ row
    np.testing.assert_allclose(cosine, expected, rtol=0, atol=1e-6)
  result = judge.result(cosines, "cosine")
  mean = (cosines[0].mean() + cosines[1].mean()) / 2
  assert result["clip_score"] == pytest.approx(mean)


def test_a_result_names_all_that_it_depends_on(judge, folder):
  cosines = judge.cosines([image(1, 24, 24)], ["dogs"], prefix="A photo of ")
  plain = judge.cosines([image(1, 24, 24)], ["A photo of dogs"])
  np.testing.assert_array_equal(cosines, plain)
  result = judge.result(cosines, "hessel", prefix="A photo of ")
  record = json.loads((folder / "config.json").read_text())["config"]
  assert result == {
    "clip_score": 2.5 * max(float(cosines[0][0]), 0),
    "scaling": "hessel",
    "model": "ViT-32x2/8@24px",
    "sha256": record["source_sha256"],
    "prefix": "A photo of ",
    "resize": "pillow bicubic antialiased, short side, centre crop, 24",
    "num_samples": 1,
    "num_frames": 1,
  }


def test_more_than_a_batch_is_embedded_in_order(judge):
  images = [image(24, 24, seed=i) for i in range(clip_score.ROWS + 2)]
  found = judge.embed_images(iter(images))
  assert found.shape == (len(images), 12)
  np.testing.assert_allclose(
    found[-1:], judge.embed_images(images[-1:]), rtol=0, atol=1e-6
  )
  assert judge.embed_texts([]).shape == (0, 12)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_by_pillow_and_cropped_at_the_centre(size):
  pixels = image(*size)
  found = clip_score.preprocess(pixels, 24)
  scale = 24 / min(size)
  h, w = (int(side * scale + 1e-9) for side in size)
  resized = PIL.Image.fromarray(pixels).resize((w, h), PIL.Image.BICUBIC)
  top, left = (h - 24) // 2, (w - 24) // 2
  crop = np.float64(resized.crop((left, top, left + 24, top + 24)))
  mean = [0.48145466, 0.4578275, 0.40821073]
  std = [0.26862954, 0.26130258, 0.27577711]
  np.testing.assert_allclose(found, (crop / 255 - mean) / std, atol=1e-6)
  assert found.dtype == np.float32


def test_texts_are_cut_before_the_end_token(folder):
  path = folder / "tokenizer.json"
  plain = tokenizers.Tokenizer.from_file(str(path))
  plain.no_truncation()
  plain.no_padding()
  begin, end = map(plain.token_to_id, (clip_folder.BEGIN, clip_folder.END))
  ids_of = clip_score.read_tokenizer(path, 300)
  whole = plain.encode(CAPTIONS[1]).ids
  assert ids_of(CAPTIONS[1], 20) == [begin, *whole[:18], end]
  assert ids_of(CAPTIONS[1], 999) == [begin, *whole, end]
  assert ids_of("", 20) == [begin, end]
  assert ids_of("TWO Dogs", 20) == ids_of("two dogs", 20)


@pytest.mark.parametrize(
  ("videos", "captions", "says"),
  [
    ([image(1, 24, 24)], ["a", "b"], "1 videos have 2 captions"),
    ([], [], "0 videos have 0 captions"),
    ([image(24, 24)], ["a"], r"video 0 is \[T, H, W, 3\], not \[24, 24, 3\]"),
    ([np.zeros((1, 9, 9, 3))], ["a"], "video 0 has pixels of float64, not uin"),
  ],
)
def test_bad_samples_are_refused(judge, videos, captions, says):
  with pytest.raises(UserError, match=says):
    judge.cosines(videos, captions)


def test_another_tokenizer_or_network_is_refused(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  path = copy / "tokenizer.json"
  path.write_text(path.read_text() + " ")
  with pytest.raises(UserError, match="is not the one that was converted"):
    clip_score.load(copy)
  path.unlink()
  with pytest.raises(UserError, match="is not the one that was converted"):
    clip_score.load(copy)
  config = json.loads((copy / "config.json").read_text())
  config["config"]["network"] = "lpips_vgg16"
  (copy / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="has no CLIP"):
    clip_score.load(copy)


def test_what_is_no_tokenizer_of_clip_is_refused(folder, tmp_path):
  with pytest.raises(
    UserError, match=r"has \d+ pieces, but the weights only 100"
  ):
    clip_score.read_tokenizer(folder / "tokenizer.json", 100)
  other = tmp_path / "tokenizer.json"
  tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(other))
  with pytest.raises(UserError, match=r"lacks <\|startoftext\|>"):
    clip_score.read_tokenizer(other, 100)
  other.write_text("{")
  with pytest.raises(UserError, match="is no tokenizer"):
    clip_score.read_tokenizer(other, 100)


def near(found, expected):
  error = np.abs(found - expected).max() / np.abs(expected).max()
  print(f"relative error {error:.1e}")
  assert error < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("eos", [2, None])
def test_transformers_gives_the_same_embeddings(tmp_path, eos):
  """Whichever way its config tells the end of a text; 2 is OpenAI's."""
  import torch
  import transformers

  path = tmp_path / "tokenizer.json"
  tokenizer = clip_folder.make_tokenizer()
  begin, end = map(tokenizer.token_to_id, (clip_folder.BEGIN, clip_folder.END))
  torch.manual_seed(0)
  config = transformers.CLIPConfig(
    text_config=clip_folder.TEXT
    | dict(vocab_size=end + 1, bos_token_id=begin, eos_token_id=eos or end),
    vision_config=clip_folder.VISION,
    projection_dim=clip_folder.EMBEDDING,
  )
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for x in model.parameters():
      x.add_(0.2 * torch.randn_like(x))
  model.save_pretrained(tmp_path)
  tokenizer.save(str(path))
  formats.convert(tmp_path, "clip", tmp_path / "ours", reverse=False)
  judge = clip_score.load(tmp_path / "ours")
  images = [image(*size, seed=1) for size in SIZES]
  pixels = np.stack([clip_score.preprocess(x, 24) for x in images])
  rows = [clip_score.read_tokenizer(path, 999)(x, 20) for x in CAPTIONS]
  ids = np.array([row + [end] * (20 - len(row)) for row in rows])
  with torch.no_grad():
    out = model(
      pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
      input_ids=torch.tensor(ids),
    )
  near(judge.embed_images(images), out.image_embeds.numpy())
  near(judge.embed_texts(CAPTIONS), out.text_embeds.numpy())


@pytest.mark.parity
def test_a_tower_of_the_published_depth_stays_as_near(tmp_path):
  """Errors of twelve layers in float32 do not pile up."""
  import torch
  import transformers

  sizes = dict(hidden_size=64, intermediate_size=256, num_attention_heads=4)
  config = transformers.CLIPConfig(
    text_config=sizes
    | dict(vocab_size=300, bos_token_id=298, eos_token_id=299),
    vision_config=sizes,
    projection_dim=48,
  )
  torch.manual_seed(1)
  model = transformers.CLIPModel(config).eval()
  model.save_pretrained(tmp_path)
  clip_folder.make_tokenizer().save(str(tmp_path / "tokenizer.json"))
  formats.convert(tmp_path, "clip", tmp_path / "ours", reverse=False)
  judge = clip_score.load(tmp_path / "ours")
  images = [image(224, 300), image(320, 224)]
  pixels = np.stack([clip_score.preprocess(x) for x in images])
  with torch.no_grad():
    out = model.get_image_features(
      pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2))
    ).pooler_output.numpy()
  expected = out / np.linalg.norm(out, axis=-1, keepdims=True)
  near(judge.embed_images(images), expected)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(224, 224), (300, 451), (451, 300), (64, 99)])
def test_pixels_are_those_of_transformers(size):
  from transformers.models.clip import image_processing_pil_clip as theirs

  pixels = image(*size)
  out = theirs.CLIPImageProcessorPil()(pixels, return_tensors="np")
  np.testing.assert_allclose(
    clip_score.preprocess(pixels),
    out["pixel_values"][0].transpose(1, 2, 0),
    rtol=0,
    atol=1e-6,
  )
