"""Text encoders out of a folder: captions in, embeddings out, or a refusal."""

import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
import tokenizers

from goku_jax.data import clips
from goku_jax.parallel import mesh as meshes
from goku_jax.sample import text, text_kinds
from goku_jax.typing import UserError

SENTENCES = [
  "a red ball rolls over a wet road in the rain",
  "two dogs run along the beach at sunset",
  "a camera pans over a quiet city at night, motion score: 4.2",
  "slow motion of water drops on a green leaf",
]
CAPTIONS = ["", SENTENCES[0], "two red dogs", "a green city " * 12, "rain"]
CONFIG = dict(
  model_type="t5",
  feed_forward_proj="gated-gelu",
  vocab_size=128,
  d_model=32,
  d_kv=6,
  d_ff=40,
  num_layers=3,
  num_heads=8,
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  layer_norm_epsilon=1e-6,
)


def tokenizer_json() -> tokenizers.Tokenizer:
  """Unigram pieces with the first three ids that T5 has."""
  made = tokenizers.Tokenizer(tokenizers.models.Unigram())
  made.normalizer = tokenizers.normalizers.NFKC()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  trainer = tokenizers.trainers.UnigramTrainer(
    vocab_size=100,
    special_tokens=["<pad>", "</s>", "<unk>"],
    unk_token="<unk>",
    show_progress=False,
  )
  made.train_from_iterator(SENTENCES * 9, trainer)
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  return made


def spiece_model() -> bytes:
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(SENTENCES * 9),
    model_writer=written,
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return written.getvalue()


def random_tensors(config=CONFIG, seed=3) -> dict:
  """Weights under their names, a decoder's beside them."""
  rng = np.random.default_rng(seed)
  E, F = config["d_model"], config["d_ff"]
  inner = config["num_heads"] * config["d_kv"]
  draw = lambda *shape: (
    rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
  )
  norm = lambda: 1 + np.float32(0.1) * rng.standard_normal(E, np.float32)
  buckets = config["relative_attention_num_buckets"], config["num_heads"]
  attention = "layer.0.SelfAttention."
  tensors = {
    "shared.weight": draw(config["vocab_size"], E),
    f"encoder.block.0.{attention}relative_attention_bias.weight": draw(
      *buckets
    ),
    "encoder.final_layer_norm.weight": norm(),
    "decoder.final_layer_norm.weight": norm(),
    "lm_head.weight": draw(config["vocab_size"], E),
  }
  for i in range(config["num_layers"]):
    block = f"encoder.block.{i}."
    tensors |= {block + f"{attention}{n}.weight": draw(inner, E) for n in "qkv"}
    tensors |= {
      block + attention + "o.weight": draw(E, inner),
      block + "layer.0.layer_norm.weight": norm(),
      block + "layer.1.layer_norm.weight": norm(),
      block + "layer.1.DenseReluDense.wi_0.weight": draw(F, E),
      block + "layer.1.DenseReluDense.wi_1.weight": draw(F, E),
      block + "layer.1.DenseReluDense.wo.weight": draw(E, F),
    }
  return tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A whole folder, to be read alone."""
  folder = tmp_path_factory.mktemp("flan")
  (folder / "config.json").write_text(json.dumps(CONFIG))
  safetensors.numpy.save_file(random_tensors(), folder / "model.safetensors")
  tokenizer_json().save(str(folder / "tokenizer.json"))
  return folder


@pytest.fixture
def folder(whole, tmp_path):
  """A copy that a test may damage."""
  return shutil.copytree(whole, tmp_path / "flan")


@pytest.fixture(scope="module")
def loaded(whole):
  return text.load(whole)


def change_config(folder, **changes):
  (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def change_tensors(folder, change):
  tensors = random_tensors()
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def refusal(folder, **arguments):
  """The one line with which a folder is refused."""
  with pytest.raises(UserError) as caught:
    text.load(folder, **arguments)
  (line,) = str(caught.value).splitlines()
  return line


def gap(found, expected):
  """The largest difference, relative to the largest value."""
  pairs = list(zip(found, expected, strict=True))
  assert all(a.shape == b.shape for a, b in pairs)
  top = max(np.abs(b).max() for _, b in pairs)
  return max(np.abs(a - b).max() for a, b in pairs) / top


def test_each_caption_has_as_many_embeddings_as_tokens(loaded):
  out = loaded.encode(CAPTIONS)
  assert loaded.width == CONFIG["d_model"]
  for caption, array in zip(CAPTIONS, out, strict=True):
    assert array.shape == (loaded.count(caption), loaded.width)
    assert array.dtype == np.float32
    assert np.abs(array).max(-1).min() > 0
  assert loaded.count("") == 1
  assert loaded.encode([]) == []


def test_a_caption_alone_is_what_it_is_in_company(loaded):
  """Also where the company needs several batches and other lengths."""
  together = loaded.encode(CAPTIONS * 3)
  alone = [loaded.encode([caption])[0] for caption in CAPTIONS]
  assert gap(together, alone * 3) < 1e-6


def test_a_long_caption_keeps_its_motion_score(whole):
  """Here nearly every letter is a token: the most that any tokenizer needs."""
  short = text.load(whole, max_text=50)
  captions = [clips.add_motion_score(CAPTIONS[3] * 9, x) for x in (4.2, 999.9)]
  one, two = short.encode(captions)
  assert len(one) == len(two) == 50
  assert gap([one], [two]) > 0.1
  for caption in captions:
    sentence = short._ids("Motion" + caption.partition("Motion")[2])
    assert len(sentence) > 12
    assert list(short._ids(caption)[-len(sentence) :]) == sentence


def test_a_longer_padding_changes_nothing(whole, loaded, monkeypatch):
  monkeypatch.setattr(text, "LENGTHS", ())
  padded = text.load(whole, max_text=70)
  assert gap(padded.encode(CAPTIONS[:3]), loaded.encode(CAPTIONS[:3])) < 1e-5


def test_eight_devices_give_what_one_gives(whole, loaded):
  mesh = meshes.make_mesh(replica=2)
  sharded = text.load(whole, mesh=mesh)
  assert gap(sharded.encode(CAPTIONS), loaded.encode(CAPTIONS)) < 1e-5
  for leaf in jax.tree.leaves(sharded._params):
    assert len(leaf.sharding.device_set) == 8
    whole_on_each = leaf.sharding.is_fully_replicated
    assert whole_on_each == (leaf.size < 512), leaf.shape


def test_bfloat16_is_close_to_float32_and_half_as_large(whole, loaded):
  small = text.load(whole, dtype="bfloat16")
  exact = np.concatenate(loaded.encode(CAPTIONS))
  error = np.concatenate(small.encode(CAPTIONS)) - exact
  ratio = np.std(error) / np.std(exact)
  print(f"bfloat16: {ratio:.1e}")
  assert 1e-4 < ratio < 0.03
  size = lambda t: sum(x.nbytes for x in jax.tree.leaves(t._params))
  assert size(small) < 0.6 * size(loaded)


@pytest.mark.parametrize("kind", ["tokenizer.json", "spiece.model"])
def test_a_long_caption_is_cut_before_its_end_of_text(kind, folder):
  (folder / "tokenizer.json").unlink()
  if kind == "spiece.model":
    (folder / kind).write_bytes(spiece_model())
  else:
    made = tokenizer_json()  # with what such files also ask for
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(folder / kind))
  tokenizer = text.read_tokenizer(folder, CONFIG["vocab_size"], text_kinds.T5)
  assert tokenizer.ids_of("") == []
  assert tokenizer.end == [1]
  sentence = SENTENCES[1]
  ids = tokenizer.ids_of(sentence)
  assert len(ids) > 8
  assert not {0, 1, 2} & set(ids)  # every letter is known
  short, long = text.load(folder, max_text=8), text.load(folder)
  assert short.count(sentence) == 8
  assert long.count(sentence) == len(ids) + 1
  assert [short.count("") for short in (short, long)] == [1, 1]
  assert list(short._ids(sentence)) == [*ids[:4], *ids[-3:], 1]
  assert list(long._ids(sentence)) == [*ids, 1]
  assert short.encode([sentence])[0].shape == (8, CONFIG["d_model"])


def test_weights_that_name_the_table_after_the_encoder_are_the_same(
  folder, loaded
):
  change_tensors(
    folder,
    lambda x: x.update({"encoder.embed_tokens.weight": x.pop("shared.weight")}),
  )
  renamed = text.load(folder)
  assert gap(renamed.encode(CAPTIONS), loaded.encode(CAPTIONS)) == 0


def test_the_digest_follows_the_weights_and_the_tokenizer(folder, loaded):
  assert text.load(folder).digest == loaded.digest
  digests = {loaded.digest}
  change_tensors(folder, lambda x: x["shared.weight"].__imul__(2))
  digests.add(text.load(folder).digest)
  (folder / "tokenizer.json").unlink()
  (folder / "spiece.model").write_bytes(spiece_model())
  digests.add(text.load(folder).digest)
  assert [len(x) for x in digests] == [64] * 3


def test_a_folder_without_config_is_refused(tmp_path):
  assert "config.json cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
  "wrong",
  [{"model_type": "gpt2"}, {"feed_forward_proj": "relu"}],
  ids=str,
)
def test_another_model_is_refused(wrong, folder):
  change_config(folder, **wrong)
  (name,) = wrong
  assert f"config.json has {name}={wrong[name]!r}" in refusal(folder)


def test_a_config_without_a_size_is_refused(folder):
  config = {k: v for k, v in CONFIG.items() if k != "d_kv"}
  (folder / "config.json").write_text(json.dumps(config))
  assert refusal(folder).endswith("config.json lacks d_kv")


def test_a_missing_tensor_is_named(folder):
  name = "encoder.block.1.layer.1.DenseReluDense.wi_1.weight"
  change_tensors(folder, lambda x: x.pop(name))
  line = refusal(folder)
  assert f"1 missing ({name})" in line
  assert str(folder) in line


def test_a_misshapen_tensor_is_named(folder):
  change_config(folder, d_ff=48)
  line = refusal(folder)
  name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
  assert f"9 misshapen ({name} (32, 40) for (32, 48))" in line
  assert str(folder) in line


def test_more_layers_than_the_config_has_are_refused(folder):
  change_config(folder, num_layers=2)
  assert "unexpected (encoder.block.2." in refusal(folder)


def test_weights_cut_short_are_refused(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])
  assert f"{path} is missing, cut short" in refusal(folder)


def test_a_missing_shard_is_named(folder):
  (folder / "model.safetensors").unlink()
  index = {"weight_map": {"shared.weight": "model-1.safetensors"}}
  path = folder / "model.safetensors.index.json"
  path.write_text(json.dumps(index))
  assert f"{folder / 'model-1.safetensors'} is missing" in refusal(folder)


def test_weights_of_torch_alone_are_to_be_saved_as_safetensors(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  assert "save them as model.safetensors" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder):
  (folder / "model.safetensors").unlink()
  assert f"{folder} has no model.safetensors" in refusal(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
  (folder / "tokenizer.json").unlink()
  assert "neither tokenizer.json nor spiece.model" in refusal(folder)


@pytest.mark.parametrize("kind", ["tokenizer.json", "spiece.model"])
def test_a_tokenizer_cut_short_is_refused(kind, folder):
  data = spiece_model()
  if kind == "tokenizer.json":
    data = (folder / kind).read_bytes()
  (folder / "tokenizer.json").unlink()
  (folder / kind).write_bytes(data[: len(data) // 2])
  assert f"{folder / kind} is cut short" in refusal(folder)


def test_a_tokenizer_without_end_of_text_is_refused(folder):
  pieces = [("<unk>", 0.0), ("a", -1.0)]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
  made.save(str(folder / "tokenizer.json"))
  assert "tokenizer.json has no </s>" in refusal(folder)


def test_more_pieces_than_the_weights_have_are_refused(folder):
  (folder / "spiece.model").write_bytes(spiece_model())
  with pytest.raises(UserError, match=r"pieces, but the weights only 20$"):
    text.read_tokenizer(folder, 20, text_kinds.T5)


@pytest.mark.parametrize("kind", ["tokenizers", "sentencepiece"])
def test_a_missing_library_is_told_how_to_install(kind, folder, monkeypatch):
  if kind == "sentencepiece":
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(spiece_model())
  monkeypatch.setitem(sys.modules, kind, None)  # as if it were not installed
  assert refusal(folder).endswith(f"{kind}: pip install goku_jax[text]")


def test_settings_out_of_range_are_refused(folder):
  assert "dtype='float16' is not one of" in refusal(folder, dtype="float16")
  assert "max_text=0: set 1 or more" in refusal(folder, max_text=0)


@pytest.mark.parity
@pytest.mark.parametrize(
  "kind", [pytest.param("encoder", marks=pytest.mark.slow), "whole"]
)
def test_transformers_gives_the_same_from_the_shards_it_saves(kind, tmp_path):
  """Captions of 1 to 512 tokens, batched and masked there, cut at 512."""
  import torch
  import transformers

  config = CONFIG | dict(num_layers=6)
  config = {k: v for k, v in config.items() if k != "model_type"}
  make = transformers.T5EncoderModel
  if kind == "whole":
    make = transformers.T5ForConditionalGeneration
  torch.manual_seed(0)
  sizes = transformers.T5Config(**config, tie_word_embeddings=False)
  theirs = make(sizes).eval()  # no dropout
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      # The table as T5 has it; the rest so that every part counts.
      is_table = name == "shared.weight"
      parameter.normal_(std=1.0 if is_table else parameter.shape[-1] ** -0.5)
      parameter.add_(1.0 if "norm" in name else 0.0)
  theirs.save_pretrained(tmp_path, max_shard_size="20KB")
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
  made = tokenizer_json()
  made.save(str(tmp_path / "tokenizer.json"))
  made.enable_truncation(512)
  made.enable_padding(pad_id=0)

  captions = [*CAPTIONS, "a wet road at night " * 14, "two dogs run " * 90]
  batch = made.encode_batch(captions)
  ids, mask = (
    torch.tensor([getattr(row, name) for row in batch])
    for name in ("ids", "attention_mask")
  )
  with torch.no_grad():
    # In double precision, so that what is left is our own rounding.
    out = theirs.double().get_encoder()(input_ids=ids, attention_mask=mask)
  counts = mask.sum(-1).tolist()
  assert min(counts) == 1
  assert max(counts) == 512
  assert ids[:, -1].max() == 1
  expected = [
    x[:n].numpy() for x, n in zip(out.last_hidden_state, counts, strict=True)
  ]
  loaded = text.load(tmp_path)
  found = loaded.encode(captions)
  for a, b in zip(found, expected, strict=True):
    assert gap([a], [b]) < 1e-5


def bert_folder(folder, torch, transformers, **changes):
  """A BERT with weights at which every part counts, and its tokenizer."""
  sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3)
  sizes |= dict(num_attention_heads=4, intermediate_size=40)
  sizes |= dict(max_position_embeddings=64)
  torch.manual_seed(0)
  theirs = transformers.BertModel(transformers.BertConfig(**sizes | changes))
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      std = parameter.shape[-1] ** -0.5 if name.endswith("weight") else 0.3
      parameter.normal_(std=std)
      parameter.add_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
  theirs.eval().save_pretrained(folder)
  words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
  words += sorted({word for line in SENTENCES for word in line.split()})
  model = tokenizers.models.WordPiece(
    {word: i for i, word in enumerate(words)}, unk_token="[UNK]"
  )
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.save(str(folder / "tokenizer.json"))
  return theirs


@pytest.mark.parity
def test_transformers_bert_gives_the_same(tmp_path):
  import torch
  import transformers

  theirs = bert_folder(tmp_path, torch, transformers).double()
  loaded = text.load(tmp_path, max_text=64)
  captions = [*CAPTIONS, "a quiet city in the rain " * 20]
  counts = [loaded.count(caption) for caption in captions]
  assert (min(counts), max(counts)) == (2, 64)  # both marks are always there
  for caption, found in zip(captions, loaded.encode(captions), strict=True):
    ids = torch.tensor([list(loaded._ids(caption))])
    with torch.no_grad():
      expected = theirs(input_ids=ids).last_hidden_state[0].numpy()
    assert gap([found], [expected]) < 1e-5
  path = tmp_path / "model.safetensors"
  old = {"weight": "gamma", "bias": "beta"}
  rename = lambda name: (
    "bert." + name.rpartition(".")[0] + "." + old[name.rpartition(".")[2]]
    if "LayerNorm" in name
    else "bert." + name
  )
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({rename(k): v for k, v in tensors.items()}, path)
  renamed = text.load(tmp_path, max_text=64)
  assert gap(renamed.encode(captions), loaded.encode(captions)) == 0
  with pytest.raises(
    UserError, match=r"max_text=65: .* reads 64 tokens at most"
  ):
    text.load(tmp_path, max_text=65)


@pytest.mark.slow
def test_sentences_of_one_meaning_are_near_in_minilm(minilm):
  """Real weights, which a package carries."""
  loaded = text.load(minilm, max_text=64)
  captions = ["a rabbit sits in the grass", "a bunny on a green meadow"]
  captions.append("the stock market fell on monday")
  # Sentence vectors as its card has them: the mean over the tokens.
  one, two, far = (x.mean(0) for x in loaded.encode(captions))
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert loaded.width == 384
  assert cosine(one, two) > 0.5
  assert cosine(one, far) < 0.2
