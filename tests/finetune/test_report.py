from __future__ import annotations

import base64
import html.parser
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jgraph._finetune._report import CurveRow, write_report
from jgraph._finetune._score import Score
from jgraph._finetune._svg import confusion_matrix

TEMPLATE = Path(__file__).parents[2] / "jgraph" / "_finetune" / "report.html"
VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """The page's elements, checked to be nested properly, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, tag: str, css_class: str | None = None) -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and css_class in (None, *attributes.get("class", "").split())
        ]


def score_of(confusion, name="test", class_names=None) -> Score:
    """A score with this confusion matrix; row n's probability grows with n."""
    confusion = np.asarray(confusion)
    k = len(confusion)
    cells = [(i, j) for i in range(k) for j in range(k) for _ in range(confusion[i, j])]
    labels = np.array([i for i, _ in cells], np.int32)
    probabilities = np.zeros((len(cells), k), np.float32)
    for row, (_, called) in enumerate(cells):
        top = 0.6 + 0.3 * row / len(cells)
        probabilities[row] = (1 - top) / (k - 1)
        probabilities[row, called] = top
    names = tuple(class_names or (f"class {i}" for i in range(k)))
    return Score(name, names, labels, probabilities, 0.25)


def write(path: Path, score: Score, **changes) -> Page:
    arguments = {
        "title": "pets-001",
        "summary": [("Data", "pets")],
        "scores": [score],
        "curves": [],
        "pictures": [path.parent / "none" / f"{i}.jpg" for i in range(score.count)],
        "network": "",
        "next_commands": ["jgraph predict runs/pets-001 cat.jpg"],
        "notices": [],
    }
    write_report(path, **{**arguments, **changes})
    return Page(path.read_text("utf-8"))


CURVES = [
    CurveRow("head", 0, 1.1, 0.3, 1.1, 0.3),
    CurveRow("head", 1, 0.5, 0.8, 0.6, 0.7),
    CurveRow("fine-tune", 1, 0.4, 0.9, 0.5, 0.8),
]


def test_the_headline_says_set_count_interval_and_baseline(tmp_path):
    # 118 of 120: the issue's own example of how an accuracy is written.
    page = write(tmp_path / "r.html", score_of([[39, 1, 0], [1, 39, 0], [0, 0, 40]]))
    assert "0.983 accuracy on the test set" in page.text
    assert "right 118 of 120 pictures" in page.text
    assert "95 % interval 0.94-1.00" in page.text
    assert "always the most frequent class 0.333" in page.text


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("val", "on the validation set"),
        ("held-out", "on held-out pictures"),
        ("cross-validated", "cross-validated over the training pictures"),
        ("my set", "on my set"),
    ],
)
def test_every_accuracy_is_named_after_its_set(tmp_path, name, phrase):
    page = write(tmp_path / "r.html", score_of([[3, 1], [1, 3]], name))
    assert f"0.750 accuracy {phrase} 0 0.25" in page.text


def test_further_scores_are_listed(tmp_path):
    first, second = score_of([[3, 1], [1, 3]]), score_of([[9, 1], [0, 10]], "held-out")
    page = write(tmp_path / "r.html", first, scores=[first, second])
    assert "held-out 0.950 19 of 20 0.76-0.99 0.500 0.25" in page.text


def test_class_figures_lowest_f1_first(tmp_path):
    names = ("ant", "bee", "cow")
    page = write(
        tmp_path / "r.html", score_of([[10, 0, 0], [0, 8, 2], [0, 1, 9]], class_names=names)
    )
    # bee: recall 8/10, precision 8/9, F1 16/19. cow: 9/10, 9/11, 18/21.
    assert "bee 10 0.800 0.889 0.842 cow 10 0.900 0.818 0.857 ant 10 1.000 1.000 1.000" in page.text
    assert "Most frequent confusions True Called Pictures bee cow 2 of 10 cow bee 1 of 10" in (
        page.text
    )


def test_figures_without_a_denominator_are_dashes(tmp_path):
    page = write(
        tmp_path / "r.html",
        score_of([[2, 1, 0], [1, 0, 0], [0, 0, 0]], class_names=("ant", "bee", "cow")),
    )
    assert "bee 1 0.000 0.000 0.000" in page.text
    assert "cow 0 – – –" in page.text


def test_a_perfect_score_says_there_are_no_mistakes(tmp_path):
    page = write(tmp_path / "r.html", score_of([[5, 0], [0, 5]]))
    assert "No picture was given a wrong class." in page.text
    assert "Mistakes" not in page.text
    assert "Right, the least certain first" in page.text


def test_the_page_needs_nothing_beside_it(tmp_path):
    page = write(tmp_path / "r.html", score_of([[3, 1], [1, 3]]), curves=CURVES)
    names = {tag for tag, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "base"})
    for _, attributes in page.elements:
        assert "href" not in attributes
        assert attributes.get("src", "data:image/jpeg;").startswith("data:image/jpeg;")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for a in page.having("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(tmp_path):
    hostile = "<script>alert('1')</script> & \"$title\" $${x}"
    names = (hostile, "猫 é")
    score = score_of([[3, 1], [1, 3]], name=hostile, class_names=names)
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    page = write(
        tmp_path / "r.html",
        score,
        title=hostile,
        summary=[(hostile, hostile)],
        scores=[score, score],
        pictures=[folder / f'"{i}.jpg' for i in range(8)],
        next_commands=[hostile],
        notices=[hostile],
    )
    assert not page.having("script")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert page.text.count(hostile) > 10
    assert "猫 é" in page.text
    labels = [a["aria-label"] for a in page.having("div", "missing")]
    assert any(
        f'<img src=x onerror=alert(1)>/"3.jpg: called 猫 é with probability 0.712, is {hostile}'
        in label
        for label in labels
    )


def test_undecodable_file_names_are_written(tmp_path):
    score = score_of([[1, 0], [0, 1]])
    name = os.fsdecode(b"caf\xe9.jpg")
    page = write(tmp_path / "r.html", score, pictures=[Path("cat", name), Path("dog", name)])
    assert "cat/caf\\udce9.jpg" in page.text


def picture(path: Path, color, size=(40, 30), orientation: int | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = Image.new("RGB", size, color)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    image.save(path, quality=95, exif=exif)
    return path


def thumbnails(page: Page) -> list[np.ndarray]:
    data = [a["src"].removeprefix("data:image/jpeg;base64,") for a in page.having("img")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(item)))) for item in data]


def test_mistakes_come_first_the_most_confident_leading(tmp_path):
    score = score_of([[3, 2], [1, 4]], class_names=("ant", "bee"))
    files = [picture(tmp_path / "in" / f"{i}.jpg", (20 * i, 0, 200)) for i in range(10)]
    page = write(tmp_path / "r.html", score, pictures=files)
    # Rows 3, 4 (ant called bee) and 5 (bee called ant) are wrong; confidence grows with the row.
    alts = [a["alt"] for a in page.having("img")]
    assert alts[:3] == [
        "in/5.jpg: called ant with probability 0.750, is bee",
        "in/4.jpg: called bee with probability 0.720, is ant",
        "in/3.jpg: called bee with probability 0.690, is ant",
    ]
    assert alts[3] == "in/0.jpg: called ant with probability 0.600, is that"
    assert sorted(alt.partition(":")[0] for alt in alts) == [f"in/{i}.jpg" for i in range(10)]
    assert "Mistakes, the most confident first 3 of 3" in page.text
    reds = [int(thumbnail[64, 64, 0]) for thumbnail in thumbnails(page)[:4]]
    np.testing.assert_allclose(reds, [100, 80, 60, 0], atol=3)  # JPEG, twice


def test_thumbnails_are_small_upright_squares(tmp_path):
    # Stored with its left half white; orientation 6 turns it clockwise: white on top.
    file = picture(tmp_path / "in" / "a.jpg", (0, 0, 0), (300, 300), orientation=6)
    page = write(tmp_path / "r.html", score_of([[1, 0], [0, 1]]), pictures=[file, file])
    (first, _) = thumbnails(page)
    assert first.shape == (128, 128, 3)
    assert first[:50].min() > 240
    assert first[78:].max() < 15


def test_an_unreadable_picture_is_a_placeholder_that_says_the_same(tmp_path):
    bad = tmp_path / "in" / "bad.jpg"
    bad.parent.mkdir()
    bad.write_bytes(b"not a picture")
    page = write(
        tmp_path / "r.html", score_of([[0, 1], [0, 1]]), pictures=[bad, tmp_path / "gone.jpg"]
    )
    assert page.text.count("cannot be read") == 2
    missing = page.having("div", "missing")
    assert missing[0]["aria-label"].endswith(
        "in/bad.jpg: called class 1 with probability 0.600, is class 0"
    )


@pytest.mark.parametrize(("wrong", "expected"), [(10, (10, 25, 25)), (200, (36, 12, 12))])
def test_at_most_sixty_pictures(tmp_path, wrong, expected):
    page = write(tmp_path / "r.html", score_of([[100, wrong], [0, 100]]))
    assert len(page.having("div", "missing")) == sum(expected) == 60
    for count, total in zip(expected, (wrong, 200, 200), strict=True):
        assert f"{count} of {total}" in page.text
    # The sample of certain ones holds the surer half only and skips none of it at the ends.
    files = [words for words in page.words if words.startswith("none/")]
    sample = [int(Path(name).stem) for name in files[-expected[2] :]]
    assert sample == sorted(sample)
    assert (sample[0], sample[-1]) == (100 + wrong, 199 + wrong)


def test_probabilities_that_round_to_one_are_not_called_one(tmp_path):
    sure = Score(
        "test", ("a", "b"), np.array([0], np.int32), np.array([[1 - 1e-5, 1e-5]], np.float32), 0.0
    )
    assert "a >0.999 none/0.jpg" in write(tmp_path / "r.html", sure).text


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    file = picture(tmp_path / "in" / "a.jpg", (9, 90, 200), (300, 200))
    score = score_of([[3, 1], [1, 3]])
    for name in ("a.html", "b.html"):
        write(tmp_path / name, score, curves=CURVES, pictures=[file] * 8)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_optional_sections_are_left_out(tmp_path):
    page = write(tmp_path / "r.html", score_of([[1, 0], [0, 1]]), summary=[], next_commands=[])
    assert not page.having("section", "notices")
    for heading in ("Run", "Curves", "Next"):
        assert heading not in page.words


def test_commands_and_notices(tmp_path):
    page = write(tmp_path / "r.html", score_of([[1, 0], [0, 1]]), notices=["batch size is now 12"])
    assert "batch size is now 12" in page.text
    assert "jgraph predict runs/pets-001 cat.jpg" in page.words
    assert len(page.having("code")) == 1


def test_no_score_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a report needs at least one score, got none"):
        write(tmp_path / "r.html", score_of([[1, 0], [0, 1]]), scores=[])


def test_a_picture_for_each_row_is_needed(tmp_path):
    message = "one picture file for each row of its first score, got 1 files for 2 rows"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "r.html", score_of([[1, 0], [0, 1]]), pictures=[Path("a.jpg")])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "r.html", score_of([[1, 0], [0, 1]]))


def test_tables_and_charts_can_be_read_out(tmp_path):
    page = write(tmp_path / "r.html", score_of([[3, 1], [1, 3]]), curves=CURVES)
    assert all(a.get("scope") in ("row", "col") for a in page.having("th"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.having("svg"))
    labels = [a["aria-label"] for a in page.having("svg", "chart")]
    assert labels[:2] == [
        "Loss in nats by L-BFGS iteration: training from 1.1 to 0.5; held out from 1.1 to 0.6",
        "Accuracy by L-BFGS iteration: training from 0.300 to 0.800; held out from 0.300 to 0.700",
    ]
    assert len(labels) == 4
    assert labels[2].startswith("Loss in nats by epoch: training from 0.4 to 0.4")


def test_curves_without_held_out_values(tmp_path):
    rows = [row._replace(held_out_loss=None, held_out_accuracy=None) for row in CURVES[:2]]
    page = write(tmp_path / "r.html", score_of([[3, 1], [1, 3]]), curves=rows)
    assert len(page.having("svg", "chart")) == 2
    assert "held-out pictures" not in page.text


def test_only_the_most_mistaken_of_many_classes_are_drawn(tmp_path):
    counts = np.eye(60, dtype=int) * 2
    counts[59, 58] = 1
    page = write(tmp_path / "r.html", score_of(counts))
    assert "Of 60 classes, the 50 with the most mistakes are shown." in page.text
    svg = page.having("svg", "matrix")[0]
    assert svg["aria-label"] == (
        "Confusion matrix of 50 classes: 100 of 101 pictures on the diagonal"
    )
    assert "class 59 called class 58: 1 of 3" in page.text


def channels(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def luminance(rgb: np.ndarray) -> float:
    # WCAG 2.2, relative luminance.
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_wcag_asks_for(scheme):
    blocks = re.findall(r":root \{\s*(--paper.*?)\}", TEMPLATE.read_text("utf-8"), re.DOTALL)
    found = re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme])
    colors = {name: channels(value) for name, value in found}
    for ground in ("paper", "raised"):
        for text in ("ink", "soft", "blue", "orange"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    svg = confusion_matrix(("a", "b"), np.array([[1, 0], [1, 0]]), np.array([1, 1]))
    strongest = float(Page(svg).having("rect", "right")[0]["fill-opacity"])
    for fill in ("blue", "orange"):
        cell = strongest * colors[fill] + (1 - strongest) * colors["raised"]
        assert contrast(colors["ink"], cell) >= 4.5, fill


def test_the_network_is_a_picture_of_its_own(tmp_path):
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><style>text{fill:red}</style></svg>'
    page = write(tmp_path / "r.html", score_of([[3, 1], [1, 3]]), network=svg)
    (image,) = [x for x in page.having("img") if x["alt"].startswith("The network")]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == svg
    assert "fill:red" not in (tmp_path / "r.html").read_text("utf-8")
    assert "Network" not in write(tmp_path / "r.html", score_of([[3, 1], [1, 3]])).text
